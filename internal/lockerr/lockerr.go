// Package lockerr holds the sentinel errors that the packages of the library share with the root.
// The root package exports each one under its public name and documents it there.
package lockerr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Prefix begins the text of every error that the library returns, once.
const Prefix = "pgbaton: "

// condition is a sentinel. By itself it says whose it is; within another error, whose text begins with that, only what.
type condition struct{ text string }

func sentinel(text string) error { return &condition{text} }

// Error is the text with the prefix.
func (c *condition) Error() string { return Prefix + c.text }

// Format writes the text without the prefix, so that %w and %v in the text of another error do not repeat it.
func (c *condition) Format(f fmt.State, verb rune) {
	if verb == 'q' {
		_, _ = fmt.Fprintf(f, "%q", c.text)
		return
	}
	_, _ = io.WriteString(f, c.text)
}

var (
	NotAcquired       = sentinel("not acquired")
	Lost              = sentinel("lost")
	NotHeld           = sentinel("not held")
	Deadlock          = sentinel("deadlock")
	TooManyLocks      = sentinel("too many locks")
	Pooler            = sentinel("connection goes through a pooler")
	Standby           = sentinel("server is a standby")
	UnsupportedServer = sentinel("unsupported server")
	Schema            = sentinel("schema does not serve this client")
	Engine            = sentinel("locks are of another engine")
	Conflict          = sentinel("conflict")
	StaleToken        = sentinel("stale token")
	NotFound          = sentinel("not found")
	CommitUnknown     = sentinel("outcome of the commit is unknown")
	Closed            = sentinel("client closed")
	Resigned          = sentinel("resigned")
	CapacityMismatch  = sentinel("another capacity")

	// HeldHere is NotAcquired for a key that the same client holds.
	HeldHere = fmt.Errorf("%w: this client holds it itself", NotAcquired)

	// OverCapacity is CapacityMismatch for a wish that can never be met.
	OverCapacity = fmt.Errorf("%w: more permits wanted than there are", CapacityMismatch)
)

// Line is the text of an error on one line, without the prefix.
func Line(err error) string {
	lines := strings.FieldsFunc(strings.TrimPrefix(fmt.Sprint(err), Prefix), func(r rune) bool { return r == '\n' })
	for i, line := range lines {
		lines[i] = strings.TrimSpace(line)
	}
	text := strings.Join(lines, "; ")
	return strings.ReplaceAll(text, ":; ", ": ") // a list with a heading
}

// Limit is TooManyLocks for a client that holds all that it may.
func Limit(maxHeld int) error {
	return fmt.Errorf("%w: this client holds the %d that its MaxHeld allows", TooManyLocks, maxHeld)
}

// LossReason reports in which way a lock was lost.
type LossReason string

const (
	ConnectionLost  LossReason = "connection lost"
	LeaseExpired    LossReason = "lease expired"
	Terminated      LossReason = "terminated by an operator or by the server's shutdown"
	ServerRestarted LossReason = "server restarted after a crash"
	BecameStandby   LossReason = "server became a standby"
	ServerChanged   LossReason = "moved to another server"
	ClientClosed    LossReason = "client closed"
	NotThere        LossReason = "not held on the server"
	TokensWentBack  LossReason = "token sequence went back"
	HeldTooLong     LossReason = "held too long"
	Freed           LossReason = "freed by an operator"
	Defect          LossReason = "defect of pgbaton"
)

// LossError is why a session, or one lock of it, was lost.
type LossError struct {
	Reason LossReason
	Cause  error // what was seen
}

// ClosedLoss is why what a client holds is lost when it is closed.
var ClosedLoss = &LossError{Reason: ClientClosed, Cause: Closed}

// Error returns the reason and what was seen.
func (l *LossError) Error() string {
	cause := fmt.Sprint(l.Cause)
	if l.Cause == nil || cause == string(l.Reason) {
		return string(l.Reason)
	}
	return string(l.Reason) + ": " + cause
}

// Unwrap returns what was seen.
func (l *LossError) Unwrap() error { return l.Cause }

// Ended is the error of a call that its context ended, with the cause of that, and with what was wrong meanwhile, if
// anything was.
func Ended(ctx context.Context, trouble error) error {
	err := ctx.Err()
	if cause := context.Cause(ctx); !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	if trouble != nil {
		err = fmt.Errorf("%w; %w", err, trouble)
	}
	return err
}

// NoConnection is what was wrong with a connection that could not be opened; nil if nothing was.
func NoConnection(failure error) error {
	if failure == nil {
		return nil
	}
	return fmt.Errorf("there is no connection: %w", failure)
}
