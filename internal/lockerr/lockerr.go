// Package lockerr holds the sentinel errors that the rooms of the library share with its door.
// The root package exports each one under its public name and documents it there.
package lockerr

import (
	"errors"
	"fmt"
)

var (
	NotAcquired       = errors.New("pgbaton: lock not acquired")
	Lost              = errors.New("pgbaton: lock lost")
	NotHeld           = errors.New("pgbaton: lock not held")
	Deadlock          = errors.New("pgbaton: deadlock")
	TooManyLocks      = errors.New("pgbaton: too many locks")
	Pooler            = errors.New("pgbaton: connection goes through a pooler")
	Standby           = errors.New("pgbaton: server is a standby")
	UnsupportedServer = errors.New("pgbaton: unsupported server")
	Schema            = errors.New("pgbaton: schema does not serve this client")
	Conflict          = errors.New("pgbaton: conflict")
	StaleToken        = errors.New("pgbaton: stale token")
	NotFound          = errors.New("pgbaton: not found")
	CommitUnknown     = errors.New("pgbaton: outcome of the commit is unknown")
	Closed            = errors.New("pgbaton: client closed")
	Resigned          = errors.New("pgbaton: leadership resigned")
	CapacityMismatch  = errors.New("pgbaton: the semaphore has another capacity")
	OverCapacity      = errors.New("pgbaton: more permits wanted than the semaphore has")
	StaleSnapshot     = errors.New("pgbaton: the transaction's snapshot may be older than the lock: " +
		"acquire before the transaction begins, or use READ COMMITTED")
)

// Limit is TooManyLocks for a client that holds all that it may.
func Limit(maxHeld int) error {
	return fmt.Errorf("%w: this client holds the %d that its MaxHeld allows", TooManyLocks, maxHeld)
}

// LossReason says in which way a lock was lost.
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
)

// LossError is why a link, or one lock on it, was lost.
type LossError struct {
	Reason LossReason
	Cause  error // what was seen
}

// ClosedLoss is why what a client holds is lost when it is closed.
var ClosedLoss = &LossError{Reason: ClientClosed, Cause: Closed}

// Error says the reason and what was seen.
func (l *LossError) Error() string {
	if l.Cause == nil {
		return string(l.Reason)
	}
	return string(l.Reason) + ": " + l.Cause.Error()
}

// Unwrap returns what was seen.
func (l *LossError) Unwrap() error { return l.Cause }
