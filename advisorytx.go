package pgbaton

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/rowstmt"
)

// txGrace is how long after the context's deadline the server's own word on the wait is still awaited, so that
// a wait that times out does not cost the transaction.
const txGrace = time.Second

// sqlLockForTransaction answers with a negative number instead of locking where the transaction cannot have the lock:
// when it reads from one snapshot, which may be older than the grant, or when no token can be drawn. Arguments:
// key, pair, shared, milliseconds to wait, any isolation level.
const sqlLockForTransaction = `
SELECT CASE
    WHEN pg_catalog.pg_is_in_recovery() THEN -3
    WHEN pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool THEN -2
    WHEN $5 OR pg_catalog.current_setting('transaction_isolation') IN ('read committed', 'read uncommitted')
    THEN pgbaton.lock_for_transaction($1, $2, $3, $4) ELSE -1 END`

// Answers of sqlLockForTransaction in the place of a token.
const (
	refusedSnapshot = -1
	refusedReadOnly = -2
	refusedStandby  = -3
	refusedPortable = -4
)

// errPortableTx is the reason why no transaction can take a lock of its own in a database with the portable schema.
var errPortableTx = fmt.Errorf("%w: the database has the portable schema, which has no locks that end with a transaction: acquire before the "+
	"transaction begins (Client.DoTx), or lock a row of yours (LockRow)", lockerr.UnsupportedServer)

// errSnapshot is the reason why a transaction above READ COMMITTED cannot take a lock.
var errSnapshot = errors.New("the transaction's snapshot may be older than the lock: " +
	"acquire before the transaction begins, use READ COMMITTED, or set LockOpts.StaleSnapshot where no read depends on the lock")

// errReadOnly is the reason why a read-only transaction cannot take a lock that has a token.
var errReadOnly = errors.New("the transaction is read-only: every lock has a token, and to draw one is a write. " +
	"Begin the transaction read-write, or take the lock with Client.Acquire before")

// AcquireTx waits until the caller's transaction holds the key exclusively. PostgreSQL itself frees it when
// the transaction commits or rolls back, or rolls back to a savepoint set before the call. The lock excludes
// those of [Client.Acquire] too. tx is a pgx.Tx, or a *sql.Tx by [SQLTx]. At most one opts may be given:
// [LockOpts.Shared] takes the lock in the shared mode, [LockOpts.Wait] bounds the wait, or with NoWait does without.
//
// On success it returns a fencing token greater than that of every earlier grant of the key. The context's
// deadline, or LockOpts.Wait, bounds the wait through a lock_timeout of this call alone: when it passes, the error matches
// [ErrNotAcquired], and the transaction stays usable. A deadline in more than 24 days is none, since the server cannot
// count so far. A context that ends otherwise, by cancel, interrupts the connection and costs the transaction; a
// statement_timeout that ends the wait is ErrNotAcquired and costs it, too. A deadlock that PostgreSQL finds is
// [ErrDeadlock] and costs it.
//
// A read-only transaction cannot draw a token: AcquireTx refuses it with an error of its own, and on a standby
// with [ErrStandby]. The transaction stays usable.
//
// The wait, and the connection for it, are the caller's: with a pool of N connections, N transactions that
// wait leave none for the holder. [Client.Acquire] does not have this trouble.
//
// In REPEATABLE READ and SERIALIZABLE the transaction may go on reading what was there before it waited
// for the lock, so AcquireTx refuses it in words. Take a lock with [Client.Acquire] before the
// transaction begins; or, where no read depends on the lock, say so with [LockOpts.StaleSnapshot].
func AcquireTx(ctx context.Context, tx Tx, key Key, opts ...*LockOpts) (Token, error) {
	o, err := only(opts, "AcquireTx", usesWait|usesShared|usesSnapshot)
	if err == nil {
		err = key.validate()
	}
	if err != nil {
		return 0, wrap(err, "acquire lock for the transaction")
	}
	token, err := lockForTransaction(ctx, tx, key.key, o)
	if err != nil {
		return 0, wrap(err, "acquire %s for the transaction", key.what())
	}
	return token, nil
}

func lockForTransaction(ctx context.Context, tx Tx, key advisory.Key, o LockOpts) (Token, error) {
	if ctx.Err() != nil {
		return 0, fmt.Errorf("%w: %w", lockerr.NotAcquired, ctx.Err())
	}
	query, wait, over := ctx, any(nil), context.DeadlineExceeded // NULL: as long as the session's own lock_timeout lets it
	deadline, bounded := ctx.Deadline()
	if bounded && o.Wait != NoWait {
		var stop func()
		query, stop = graceful(ctx, deadline.Add(txGrace))
		defer stop()
	}
	if limit := rowstmt.DeadlineAfter(o.Wait); o.Wait > 0 && (!bounded || limit.Before(deadline)) {
		deadline, bounded, over = limit, true, fmt.Errorf("%w: %w", context.DeadlineExceeded, o.waited())
	}
	switch {
	case o.Wait == NoWait:
		wait = int64(0)
	case bounded:
		if ms := rowstmt.Milliseconds(time.Until(deadline)); ms > 0 {
			wait = ms
		}
	}
	var token *int64
	err := tx.QueryRow(query, sqlLockForTransaction,
		key.ID, key.Pair, o.Shared, wait, o.StaleSnapshot).Scan(&token)
	switch {
	case err != nil:
		return 0, pgerr.Schema(translate(waitEnded(ctx, err)))
	case token == nil && o.Wait == NoWait:
		return 0, lockerr.NotAcquired
	case token == nil && wait == nil:
		return 0, fmt.Errorf("%w: the session's lock_timeout has ended the wait", lockerr.NotAcquired)
	case token == nil:
		return 0, fmt.Errorf("%w: %w", lockerr.NotAcquired, over)
	case *token == refusedSnapshot:
		return 0, errSnapshot
	case *token == refusedReadOnly:
		return 0, errReadOnly
	case *token == refusedPortable:
		return 0, errPortableTx
	case *token == refusedStandby:
		return 0, fmt.Errorf("%w: its locks exclude nobody on the primary, and it has no tokens: use the primary", lockerr.Standby)
	}
	return Token(*token), nil
}

// graceful is ctx with a later deadline: its cancel still counts at once, its deadline only then.
func graceful(ctx context.Context, deadline time.Time) (context.Context, func()) {
	later, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
	stop := context.AfterFunc(ctx, func() {
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			cancel()
		}
	})
	return later, func() {
		stop()
		cancel()
	}
}
