package pgbaton

import (
	"errors"
	"fmt"

	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// ErrNotAcquired means that nothing was granted: somebody else holds it (TryAcquire and its
// relatives), or the context ended during the wait. In the second case the error matches the context's
// error as well.
var ErrNotAcquired = lockerr.NotAcquired

// ErrLost means that a lock, permit or term ended before it was released: the connection or the server was lost, its lease
// ran out, or an operator ended its session. Somebody else may hold it by now. [LossReasonOf]
// returns which.
var ErrLost = lockerr.Lost

// LossReasonOf returns in which way something was lost that an error of [Lock.Err], [Lock.Release], their relatives or a
// context's cause reports; "" for other errors. The reasons are texts that stay as they are, so they serve as labels of
// a metric as well:
//
//	connection lost
//	lease expired              the process, the network or the server stalled
//	terminated by an operator or by the server's shutdown
//	server restarted after a crash
//	server became a standby
//	moved to another server    the address leads to another one: the client has moved there
//	client closed
//	not held on the server     the server did not know of it
//	token sequence went back   somebody altered the sequence; it is repaired by now
//	held too long              Config.MaxHold, or that of the call, has passed
//	freed by an operator       by [Client.Free]; the cause says by whom, and why
//	defect of pgbaton          what must not happen did: nothing is trusted that may be concerned; please report it
func LossReasonOf(err error) string {
	var loss *lockerr.LossError
	if errors.As(err, &loss) {
		return string(loss.Reason)
	}
	return ""
}

// ErrTooManyLocks means that the client holds as many locks as [Config.MaxHeld] allows, or that the
// server's lock table is nearly full or full. A full lock table refuses logins to everybody, so the
// client stops before.
var ErrTooManyLocks = lockerr.TooManyLocks

// ErrDeadlock means that a wait was ended because it and others waited for one another: each for what the next one
// holds. The message names their keys. Release what is held, so that the others go on, and begin anew, best with
// [Client.AcquireAll].
//
// The client finds such a cycle, within the process or between processes of one service, in less than 2 s, and ends one of
// its waits, the youngest; that error matches [ErrNotAcquired] as well. Where several cycles overlap, no more waits end
// than needed to break them all. With thousands of such waits at the same time it takes longer.
//
// The client knows what a goroutine holds by the context of its acquire: it must be, or derive from, [Lock.Context],
// [LockSet.Context] or what [Client.Do], [Client.Lead] or [Client.Once] gives to its function. Only waits for locks are
// watched: the waits of Acquire, AcquireShared, AcquireAll and what is made of them. A wait for a permit of a [Semaphore],
// or to lead by [Client.Lead], is not, whatever its context, and permits do not count as held. With
// [Config.MaxConns] 2, and while the table of waits cannot be reached, only cycles within the process are found.
//
// It is also the error for what PostgreSQL's own detector finds, for row locks and the locks of [AcquireTx].
var ErrDeadlock = lockerr.Deadlock

// ErrPooler means that a connection pooler is between the client and the server. In transaction
// mode a pooler gives one session's locks to many clients. See [Config.SessionPooler].
var ErrPooler = lockerr.Pooler

// ErrStandby means that the server is a standby: it grants advisory locks that its primary knows nothing of.
var ErrStandby = lockerr.Standby

// ErrUnsupportedServer means that the server is older than PostgreSQL 14, or not PostgreSQL.
var ErrUnsupportedServer = lockerr.UnsupportedServer

// ErrSchema means that the schema pgbaton is missing, is not of a version that serves this client, has
// been altered, or that the role lacks a privilege on it. The message names it, and what to do.
var ErrSchema = lockerr.Schema

// ErrEngine means that the locks of the database are of another engine than the client's: session locks and leases do not
// exclude one another. The message says who recorded the engine, when, and what to do; see [Config.Engine].
var ErrEngine = lockerr.Engine

// ErrClosed means that the client was closed before, or during, the call.
var ErrClosed = lockerr.Closed

// ErrResigned is the cause with which the context of a leader's func ends when it should resign; see [Client.Lead].
var ErrResigned = lockerr.Resigned

// ErrNotHeld means that a lock, a set or a permit was released already, or was never acquired.
var ErrNotHeld = lockerr.NotHeld

// ErrConflict means that a row was changed by somebody else since it was read, or that PostgreSQL could not
// serialize the transaction (SQLSTATE 40001). Above read committed the transaction is aborted with it.
// [UpdateVersion] and [DeleteVersion] return it with a [*ConflictError] beside it.
var ErrConflict = lockerr.Conflict

// ErrStaleToken means that a newer fencing token has been seen than the one that was shown: the lock behind it
// was lost, and somebody else has held it since. [Lock.Assert] and [Fence] return it with a [*StaleTokenError]; the error
// of a write to a table that a trigger of pgbaton.fence_guard() guards matches it after [Translate], or when [InTx]
// has returned it.
var ErrStaleToken = lockerr.StaleToken

// ErrCapacityMismatch means that a semaphore has another capacity than the one given, or less than the permits that were
// asked for at once. The message has both numbers.
var ErrCapacityMismatch = lockerr.CapacityMismatch

// ErrNotFound means that no row has the key, that there is no semaphore of the name, or that nobody leads.
var ErrNotFound = lockerr.NotFound

// ErrCommitUnknown means that the connection was lost, or the context ended, after COMMIT was sent and before
// its answer came. The transaction may be committed or not, so [InTx] does not retry it: look before doing it
// again.
var ErrCommitUnknown = lockerr.CommitUnknown

// wrap adds to an error what failed, which may be nothing. Unlike those of fmt, its text has the library's prefix once, at its front, also when
// the error has it because it came out of the library into a func of the user's.
func wrap(err error, what string, args ...any) error {
	return &wrapped{fmt.Sprintf(what, args...), err}
}

type wrapped struct {
	what string
	err  error
}

func (w *wrapped) Error() string {
	if w.what == "" {
		return lockerr.Prefix + lockerr.Line(w.err)
	}
	return lockerr.Prefix + w.what + ": " + lockerr.Line(w.err)
}

func (w *wrapped) Unwrap() error { return w.err }

// also is an error with another beside it, on one line. Either may be nil.
func also(err, other error) error {
	switch {
	case other == nil:
		return err
	case err == nil:
		return other
	}
	return &both{err, other}
}

type both struct{ err, other error }

func (b *both) Error() string   { return b.err.Error() + "; " + lockerr.Line(b.other) }
func (b *both) Unwrap() []error { return []error{b.err, b.other} }
