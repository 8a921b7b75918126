package pgbaton

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/pgbaton/pgbaton/internal/link"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// NotDueError is the [ErrNotAcquired] of [Client.Once].
type NotDueError struct {
	Key     Key
	Running bool      // the window has passed, but somebody else runs it, or is about to; else nobody has looked
	Last    time.Time // when the last run began, by the database's clock; zero if it is not known
	Next    time.Time // when the next one may begin; zero if it is not known
}

func (e *NotDueError) Error() string {
	switch {
	case e.Running && e.Last.IsZero():
		return fmt.Sprintf("%v: somebody else is running it", ErrNotAcquired)
	case e.Running:
		return fmt.Sprintf("%v: somebody else is running it; the last run that is known began at %s",
			ErrNotAcquired, stamp(e.Last))
	}
	return fmt.Sprintf("%v: its last run began at %s, the next may at %s", ErrNotAcquired, stamp(e.Last), stamp(e.Next))
}

// Unwrap makes the error match [ErrNotAcquired].
func (e *NotDueError) Unwrap() error { return ErrNotAcquired }

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// Once runs fn if the key's last run began at least atLeast ago, by the database's clock, and nobody runs it now. It is
// for what cron calls in every replica: let each call Once at the scheduled time, with a window that is longer than the
// replicas' clocks differ and shorter than the time between two runs; exactly one runs fn.
//
// The others return at once, with a [*NotDueError], which matches [ErrNotAcquired] and says when the last run was and when
// the next may be. Where fn takes longer than the window, runs still do not overlap: fn runs under the key's
// exclusive lock, as in [Client.Do], and its context ends with a cause that matches [ErrLost] when that is lost.
// The error of a run is fn's, joined with [ErrLost] when the lock was lost before fn had returned.
//
// A run is recorded before fn begins, and the record is on the server's disk by then. So there is at most one run in a
// window, also when fn fails or the process dies in it; it is not tried again before the next. (An
// asynchronous standby that is promoted may not know of the last runs.) An error that is neither fn's nor
// ErrNotAcquired says that fn did not run; the run may be recorded all the same.
//
// # How it works
//
// The table pgbaton.last_run has a row for each key, under the name by which [AssertHeld] fences it. The SQL function
// pgbaton.begin_run compares and writes it in one statement. A client looks at the row before it tries for
// the lock, so that only those who find a run due try.
func (c *Client) Once(
	ctx context.Context, key Key, atLeast time.Duration, fn func(ctx context.Context, lock *Lock) error,
) (err error) {
	if err := key.validate(); err != nil {
		return fmt.Errorf("once: %w", err)
	}
	if atLeast <= 0 {
		return fmt.Errorf("once %v: pgbaton: the window is %v, the least is 1µs", key, atLeast)
	}
	if err := c.sideSession(); err != nil {
		return fmt.Errorf("once %v: %w", key, err)
	}
	seen, err := c.beginRun(ctx, key, atLeast, nil)
	if err != nil {
		return err
	}
	lock, err := c.TryAcquire(ctx, key)
	switch {
	case err == nil:
	case errors.Unwrap(err) == ErrNotAcquired: //nolint:errorlint // with another reason beside it nobody need be running it
		seen.Running = true
		return fmt.Errorf("once %v: %w", key, seen)
	default:
		return fmt.Errorf("once: %w", err)
	}
	defer func() { err = errors.Join(err, lock.Release(ctx)) }()
	if _, err := c.beginRun(ctx, key, atLeast, lock); err != nil {
		return err
	}
	if lock.Err() != nil { // the record may have taken longer than the lock lived
		return nil // but for what the release says
	}
	ctx, cancel := context.WithCancelCause(lock.holding())
	defer cancel(nil)
	lock.hold.OnEnd(cancel)
	return fn(ctx, lock)
}

var stmtBeginRun = &link.Statement{
	Name: "pgbaton_begin_run",
	SQL: "SELECT due, (extract(epoch FROM last_run) * 1000000)::bigint, (extract(epoch FROM next_run) * 1000000)::bigint " +
		"FROM pgbaton.begin_run($1, make_interval(secs => $2), $3)",
}

// beginRun looks whether a run is due, and with a lock records that it begins. The error is a NotDueError if it is not;
// seen is about the last run if it is.
func (c *Client) beginRun(ctx context.Context, key Key, atLeast time.Duration, lock *Lock) (seen *NotDueError, err error) {
	window := strconv.FormatFloat(max(atLeast, time.Microsecond).Seconds(), 'f', -1, 64)
	var token []byte
	if lock != nil {
		token = strconv.AppendInt(nil, int64(lock.Token()), 10)
	}
	rows, err := c.ledger.Query(ctx, stmtBeginRun, []byte(key.resource()), []byte(window), token)
	if err == nil && (len(rows) != 1 || len(rows[0]) != 3) { //nolint:mnd // as in the statement
		err = errors.New("pgbaton: the server's answer is not what the schema promises")
	}
	if err != nil {
		return nil, fmt.Errorf("once %v: %w", key, pgerr.Schema(translate(err)))
	}
	seen = &NotDueError{Key: key, Last: micros(rows[0][1]), Next: micros(rows[0][2])}
	if string(rows[0][0]) != "t" {
		return nil, fmt.Errorf("once %v: %w", key, seen)
	}
	return seen, nil
}

// micros reads microseconds since 1970; NULL is no time.
func micros(text []byte) time.Time {
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMicro(n)
}
