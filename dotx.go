package pgbaton

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/backoff"
	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/rowstmt"
)

// DoTx runs fn in a transaction, as [InTx] does, while it holds the key, as [Client.Do] does. The lock is taken
// before the transaction begins, so at every isolation level it reads what the last holder committed, and it
// is released after the commit, so nobody can be granted the key before the changes are there. The context
// given to fn ends when the lock is lost, and the transaction is then rolled back, not committed.
//
// A commit whose outcome is unknown, [ErrCommitUnknown], gives the lock up while the server may still be at work on the
// commit. The DoTx of the next holder, in this process or another, waits until that transaction is over, and sees what it
// has committed. So does the DoTx that follows the one of a holder that has lost its lock.
//
// An error that matches [ErrLost] alone means that the lock was lost after the transaction had been sent to be committed, and
// says that it is committed: with [LockOpts.Fence] that is all right, without it another holder may have been at work.
//
// The transaction's connection comes from db; waiting for the lock occupies none. The errors are those of
// [Client.Do] and [InTx]. A deadline, or a wait by [LockOpts.Wait], that passes before fn has run is [ErrNotAcquired].
//
// # How it works
//
// The transaction begins with a try for a transaction-level advisory lock on a second key, which is made of the key and is
// DoTx's own. PostgreSQL frees it when the transaction has ended, also for an in-doubt transaction without a client. When the
// try is refused, the transaction is rolled back and begun anew a moment later: nobody waits in an open transaction, and no
// snapshot is older than the lock. In REPEATABLE READ and SERIALIZABLE the transaction is begun anew after a try that was
// granted as well, because the snapshot of that try may be older than its grant.
func (c *Client) DoTx(
	ctx context.Context,
	db interface {
		BeginTx(ctx context.Context, opts pgx.TxOptions) (pgx.Tx, error)
	},
	key Key,
	opts *LockOpts,
	fn func(ctx context.Context, tx pgx.Tx, lock *Lock) error,
) error {
	return doTx(ctx, c, key, opts, func(tx *TxOpts) *runner[pgx.Tx] { return pgxRunner(db, tx) },
		func(tx pgx.Tx) pgx.Tx { return tx }, fn)
}

// DoSQLTx is [Client.DoTx] for a *sql.DB, as [InSQLTx] is [InTx] for one.
func (c *Client) DoSQLTx(
	ctx context.Context, db *sql.DB, key Key, opts *LockOpts,
	fn func(ctx context.Context, tx *sql.Tx, lock *Lock) error,
) error {
	return doTx(ctx, c, key, opts, func(tx *TxOpts) *runner[*boundSQLTx] { return sqlRunner(db, tx) },
		func(tx *boundSQLTx) *sql.Tx { return tx.tx }, fn)
}

// doTx is DoTx over handles of a kind H, which fn knows as F.
func doTx[H Tx, F any](
	ctx context.Context, c *Client, key Key, opts *LockOpts,
	newRunner func(opts *TxOpts) *runner[H], handle func(H) F,
	fn func(ctx context.Context, tx F, lock *Lock) error,
) error {
	began := time.Now()
	o, err := opts.checked(c, "DoTx", usesWait|usesShared|usesMaxHold|usesTx)
	var txOpts *TxOpts
	if err == nil {
		txOpts, err = o.Tx.withDefaults()
	}
	if err != nil {
		return wrap(err, "do with %s", key.what())
	}
	lock, err := c.acquireFor(ctx, key, o)
	if err != nil {
		return err
	}
	committed, ran := false, false
	err = lock.do(ctx, func(ctx context.Context, lock *Lock) error {
		r := newRunner(txOpts)
		begin := r.begin
		r.begin = func(ctx context.Context) (H, error) {
			t := turn[H]{key: txKey(key.key), portable: c.dialer.Portable, shared: o.Shared, begin: begin, wait: o.Wait, until: began.Add(o.Wait), ran: &ran}
			tx, err := t.transaction(ctx)
			if err != nil {
				err = fmt.Errorf("of DoTx on lock %v: %w", key, err)
			}
			return tx, err
		}
		r.fn = func(ctx context.Context, tx H) error {
			ran = true
			if o.Fence {
				if err := lock.Assert(ctx, tx); err != nil {
					return err
				}
			}
			return fn(ctx, handle(tx), lock)
		}
		err := r.run(ctx, txOpts)
		committed = err == nil
		return err
	})
	if err != nil && committed {
		return wrap(err, "the transaction of lock %v is committed, but", key)
	}
	return err
}

// txKey is the advisory key that the transactions of DoTx hold until they are over. It must never change: clients of
// different versions share a database.
func txKey(key advisory.Key) int64 {
	of := fmt.Sprintf("pgbaton:pgbaton/tx/%t/%d", key.Pair, key.ID)
	sum := sha256.Sum256([]byte(of))
	return int64(binary.BigEndian.Uint64(sum[:8])) //nolint:gosec // the bits are the key
}

// turn is a wish for a transaction that holds the key of DoTx.
type turn[H Tx] struct {
	key      int64
	portable bool // it is a row's
	shared   bool
	begin    func(ctx context.Context) (H, error)
	wait     time.Duration // NoWait, or zero for no bound but that of the context
	until    time.Time     // when a wait that is bounded ends
	ran      *bool         // fn has been called, in a transaction that is run again
}

// sqlTakeTurn is the first statement of a transaction of DoTx.
const sqlTakeTurn = `SELECT CASE WHEN $2::pg_catalog.bool THEN pg_catalog.pg_try_advisory_xact_lock_shared($1::pg_catalog.int8)
            ELSE pg_catalog.pg_try_advisory_xact_lock($1::pg_catalog.int8) END,
       pg_catalog.current_setting('transaction_isolation')`

// sqlTakePortableTurn is sqlTakeTurn where there is no such lock: it locks a row.
const sqlTakePortableTurn = `SELECT pgbaton.try_turn($1, $2), pg_catalog.current_setting('transaction_isolation')`

// sqlMakePortableTurn makes that row.
const sqlMakePortableTurn = `SELECT pgbaton.make_turn($1)`

// transaction begins transactions until one has the key, and had it before its snapshot.
func (t *turn[H]) transaction(ctx context.Context) (H, error) {
	var none H
	statement := sqlTakeTurn
	if t.portable {
		statement = sqlTakePortableTurn
	}
	sure := false // that all earlier transactions had ended before this one began
	for attempt := 1; ; attempt++ {
		tx, err := t.begin(ctx)
		if err != nil {
			return none, t.failed(ctx, err)
		}
		var granted *bool // nil: there is no row to lock
		var level string
		err = tx.QueryRow(ctx, statement, t.key, t.shared).Scan(&granted, &level)
		fresh := level == "read committed" || level == "read uncommitted"
		has := err == nil && granted != nil && *granted
		if has && (fresh || sure) {
			return tx, nil
		}
		made := false
		if err == nil && granted == nil {
			err = t.makeRow(ctx, tx)
			made = err == nil
		}
		rollback(ctx, tx)
		if err != nil && (!t.portable || !pgerr.Retryable(err)) {
			return none, t.failed(ctx, translate(err))
		}
		if sure = has; sure || made {
			continue
		}
		if err := t.pause(ctx, attempt); err != nil {
			return none, err
		}
	}
}

// makeRow makes the row to lock, in a transaction that is nothing else: others wait for it.
func (t *turn[H]) makeRow(ctx context.Context, tx H) error {
	if err := rowstmt.Exec(ctx, tx, sqlMakePortableTurn, t.key); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// failed adds that the context has ended, if it has.
func (t *turn[H]) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return t.notAcquired(fmt.Errorf("%w: %w", lockerr.Ended(ctx, nil), err))
	}
	return err
}

// notAcquired adds that fn has not run, if so.
func (t *turn[H]) notAcquired(err error) error {
	if *t.ran {
		return err
	}
	return fmt.Errorf("%w: %w", lockerr.NotAcquired, err)
}

// pause waits before the next try, if there may be one.
func (t *turn[H]) pause(ctx context.Context, attempt int) error {
	const why = "the transaction of an earlier holder is not over yet"
	if t.wait != 0 && !time.Now().Before(t.until) {
		if t.wait == NoWait {
			return t.notAcquired(errors.New(why))
		}
		return t.notAcquired(fmt.Errorf("%w: the wait of %v is over: %s", context.DeadlineExceeded, t.wait, why))
	}
	if err := backoff.Wait(ctx, attempt); err != nil {
		return t.notAcquired(fmt.Errorf("%w: %s", lockerr.Ended(ctx, nil), why))
	}
	return nil
}
