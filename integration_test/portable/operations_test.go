package portable

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/emulation"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// place is a database with the portable schema, and two clients of it.
type place struct {
	*testing.T

	ctx      context.Context
	one, two *pgbaton.Client
	pool     *pgxpool.Pool
}

// Every operation works in the portable schema, at every isolation level, and where 30 % of the statements have to be sent again.
func TestOperations(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"read committed", "repeatable read", "serializable", "serializable, 40001"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			dsn, admin := migrated(t, level == "serializable")
			conn := testkit.Connect(t, admin)
			name := testkit.Value[string](t, conn, "SELECT quote_ident(current_database())")
			isolation := level[:len(level)-len(suffix(level))]
			testkit.Exec(t, conn, fmt.Sprintf("ALTER DATABASE %s SET default_transaction_isolation = '%s'", name, isolation))
			testkit.Exec(t, conn, "CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL); INSERT INTO account VALUES (1, 0); GRANT ALL ON account TO PUBLIC")
			through := dsn
			if suffix(level) != "" {
				proxy, err := emulation.Start(dsn, emulation.Habits{Seed: 1, FailStatements: 0.3})
				require.NoError(t, err)
				t.Cleanup(proxy.Close)
				through = proxy.URL()
			}
			p := place{
				T: t, ctx: testkit.Context(t), pool: testkit.Pool(t, dsn),
				one: testclient.New(t, through, &pgbaton.Config{Name: "one"}), two: testclient.New(t, through, &pgbaton.Config{Name: "two"}),
			}
			for _, operation := range []func(*place){locks, listing, sets, transactions, permits, leaders, jobs, fences} {
				operation(&p)
			}
		})
	}
}

func suffix(level string) string {
	const again = ", 40001"
	if len(level) > len(again) && level[len(level)-len(again):] == again {
		return again
	}
	return ""
}

func (p *place) acquired(lock *pgbaton.Lock, err error) *pgbaton.Lock {
	p.Helper()
	require.NoError(p, err)
	return lock
}

func (p *place) refused(_ any, err error) {
	p.Helper()
	require.ErrorIs(p, err, pgbaton.ErrNotAcquired)
}

func locks(p *place) {
	key := pgbaton.Name("key")
	lock := p.acquired(p.one.Acquire(p.ctx, key))
	p.refused(p.one.TryAcquire(p.ctx, key))
	p.refused(p.two.TryAcquire(p.ctx, key))
	p.refused(p.two.TryAcquireShared(p.ctx, key))
	waits := make(chan *pgbaton.Lock, 1)
	go func() {
		next, err := p.two.Acquire(p.ctx, key)
		if err != nil {
			p.Error(err)
		}
		waits <- next
	}()
	require.NoError(p, lock.Release(p.ctx))
	next := <-waits
	require.Greater(p, next.Token(), lock.Token())
	require.NoError(p, next.Release(p.ctx))

	reader := p.acquired(p.one.AcquireShared(p.ctx, key))
	require.Greater(p, reader.Token(), next.Token())
	second := p.acquired(p.two.AcquireShared(p.ctx, key))
	p.refused(p.two.TryAcquire(p.ctx, key))
	short, cancel := context.WithTimeout(p.ctx, 200*time.Millisecond)
	_, err := p.two.Acquire(short, key)
	cancel()
	require.ErrorIs(p, err, context.DeadlineExceeded)
	require.NoError(p, reader.Release(p.ctx))
	require.NoError(p, second.Release(p.ctx))
	require.NoError(p, p.acquired(p.one.Acquire(p.ctx, key)).Release(p.ctx))
	require.NoError(p, p.two.Do(p.ctx, key, func(context.Context, *pgbaton.Lock) error { return nil }))
}

// listing lists what is held, and frees nothing.
func listing(p *place) {
	lock := p.acquired(p.one.Acquire(p.ctx, pgbaton.Name("listed")))
	found, err := p.two.Locks(p.ctx, nil)
	require.NoError(p, err)
	require.Len(p, found, 1)
	require.Equal(p, pgbaton.LockInfo{
		State: "held", Kind: "lock", Name: "listed", Key: lock.Key(), Permits: 1, Token: lock.Token(), Since: found[0].Since,
		Client: "one", Host: found[0].Host, Process: found[0].Process, Holder: found[0].Holder,
	}, found[0])
	require.False(p, found[0].Since.IsZero())
	_, err = p.two.Free(p.ctx, found[0], nil)
	require.ErrorIs(p, err, pgbaton.ErrUnsupportedServer)
	sem, err := p.one.Semaphore(p.ctx, "listed", 1)
	require.NoError(p, err)
	permit, err := sem.Acquire(p.ctx, 1)
	require.NoError(p, err)
	reader := p.acquired(p.one.AcquireShared(p.ctx, pgbaton.Name("listed/shared")))
	p.locates("one", 3)
	require.NoError(p, reader.Release(p.ctx))
	require.NoError(p, permit.Release(p.ctx))
	require.NoError(p, lock.Release(p.ctx))
	found, err = p.two.Locks(p.ctx, nil)
	require.NoError(p, err)
	require.Empty(p, found)
}

// locates waits until it is listed of all that is held where its client runs, which says so when something has lasted for a second.
func (p *place) locates(client string, held int) {
	p.Helper()
	host, err := os.Hostname()
	require.NoError(p, err)
	testkit.Eventually(p.T, "host and process are listed", func() bool {
		found, err := p.two.Locks(p.ctx, &pgbaton.LockFilter{Client: client})
		require.NoError(p, err)
		require.Len(p, found, held)
		return !slices.ContainsFunc(found, func(l pgbaton.LockInfo) bool { return l.Host != host || l.Process != os.Getpid() })
	})
}

func sets(p *place) {
	set, err := p.one.AcquireAll(p.ctx, pgbaton.Name("b"), pgbaton.ID(7), pgbaton.Pair(0, 7))
	require.NoError(p, err)
	p.refused(p.two.TryAcquireAll(p.ctx, pgbaton.ID(8), pgbaton.ID(7)))
	require.NoError(p, p.acquired(p.two.TryAcquire(p.ctx, pgbaton.ID(8))).Release(p.ctx))
	require.NoError(p, set.Release(p.ctx))
}

// transactions takes what DoTx takes, and makes sure that the transaction of a holder keeps that of the next out until it is over. What
// there is not says so.
func transactions(p *place) {
	for range 3 {
		for _, client := range []*pgbaton.Client{p.one, p.two} {
			for _, shared := range []bool{false, true} {
				require.NoError(p, client.DoTx(p.ctx, p.pool, pgbaton.Name("tx"), &pgbaton.LockOpts{Shared: shared, Fence: true}, func(ctx context.Context, tx pgx.Tx, _ *pgbaton.Lock) error {
					_, err := tx.Exec(ctx, "UPDATE account SET balance = balance + 1")
					return err
				}))
			}
		}
	}
	require.Equal(p, 12, p.balance())
	inside, over, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	leave := sync.OnceFunc(func() { close(over) })
	defer leave()
	go func() { // whose lock is lost while its transaction goes on
		ended <- p.one.DoTx(p.ctx, p.pool, pgbaton.Name("turn"), nil, func(ctx context.Context, _ pgx.Tx, lock *pgbaton.Lock) error {
			if err := lock.Release(ctx); err != nil {
				return err
			}
			close(inside)
			<-over
			return nil
		})
	}()
	<-inside
	err := p.two.DoTx(p.ctx, p.pool, pgbaton.Name("turn"), &pgbaton.LockOpts{Wait: 300 * time.Millisecond}, func(context.Context, pgx.Tx, *pgbaton.Lock) error { return nil })
	p.refused(nil, err)
	require.ErrorContains(p, err, "the transaction of an earlier holder is not over yet")
	leave()
	require.ErrorIs(p, <-ended, context.Canceled, "its lock was released")
	require.NoError(p, p.two.DoTx(p.ctx, p.pool, pgbaton.Name("turn"), nil, func(context.Context, pgx.Tx, *pgbaton.Lock) error { return nil }))

	tx, err := p.pool.Begin(p.ctx)
	require.NoError(p, err)
	_, err = pgbaton.AcquireTx(p.ctx, tx, pgbaton.Name("tx"), &pgbaton.LockOpts{StaleSnapshot: true})
	require.ErrorIs(p, err, pgbaton.ErrUnsupportedServer)
	require.ErrorContains(p, err, "portable schema")
	require.NoError(p, tx.Commit(p.ctx))
}

func (p *place) balance() (n int) {
	p.Helper()
	require.NoError(p, p.pool.QueryRow(p.ctx, "SELECT balance FROM account").Scan(&n))
	return n
}

func permits(p *place) {
	s, err := p.one.Semaphore(p.ctx, "s", 3)
	require.NoError(p, err)
	_, err = p.two.Semaphore(p.ctx, "s", 4)
	require.ErrorIs(p, err, pgbaton.ErrCapacityMismatch)
	other, err := p.two.Semaphore(p.ctx, "s", 0)
	require.NoError(p, err)
	_, err = p.two.Semaphore(p.ctx, "none", 0)
	require.ErrorIs(p, err, pgbaton.ErrNotFound)
	first, err := s.Acquire(p.ctx, 2)
	require.NoError(p, err)
	p.refused(other.TryAcquire(p.ctx, 2))
	second, err := other.Acquire(p.ctx, 1)
	require.NoError(p, err)
	state, err := s.State(p.ctx)
	require.NoError(p, err)
	require.Equal(p, 3, state.Capacity)
	require.Zero(p, state.Available)
	require.Len(p, state.Holders, 2)
	require.Equal(p, "one", state.Holders[0].Client)
	require.NoError(p, pgbaton.InTx(p.ctx, p.pool, nil, func(ctx context.Context, tx pgx.Tx) error { return first.Assert(ctx, tx) }))
	require.NoError(p, first.Release(p.ctx))
	third, err := other.Acquire(p.ctx, 2)
	require.NoError(p, err)
	require.Greater(p, third.Token(), first.Token())
	require.NoError(p, s.Resize(p.ctx, 1))
	require.NoError(p, second.Release(p.ctx))
	p.refused(s.TryAcquire(p.ctx, 1))
	require.NoError(p, third.Release(p.ctx))
	for range 20 { // each slot that is left
		require.NoError(p, s.Do(p.ctx, 1, nil, func(context.Context, *pgbaton.Permit) error { return nil }))
	}
	revised, err := p.two.Semaphore(p.ctx, "s", 5, &pgbaton.SemaphoreOpts{Revision: 1})
	require.NoError(p, err)
	all, err := revised.Acquire(p.ctx, 5)
	require.NoError(p, err)
	require.NoError(p, all.Release(p.ctx))
}

func leaders(p *place) {
	ctx, stop := context.WithCancel(p.ctx)
	defer stop()
	var terms []pgbaton.Token
	err := p.one.Lead(ctx, "l", func(_ context.Context, term *pgbaton.Lock) error {
		terms = append(terms, term.Token())
		testkit.Eventually(p, "the row says who leads", func() bool {
			holder, err := p.two.Leader(p.ctx, "l")
			return err == nil && holder.Client == "one" && holder.Token == term.Token()
		})
		p.refused(p.two.TryAcquire(p.ctx, pgbaton.Name("pgbaton/leader/l")))
		require.NoError(p, p.two.RequestResign(p.ctx, "l"))
		return errors.New("over")
	})
	require.ErrorContains(p, err, "over")
	err = p.two.Lead(ctx, "l", func(_ context.Context, term *pgbaton.Lock) error {
		require.Greater(p, term.Token(), terms[0])
		stop()
		return nil
	})
	require.ErrorIs(p, err, context.Canceled)
	testkit.Eventually(p, "the row says that nobody leads", func() bool {
		_, err := p.one.Leader(p.ctx, "l")
		return errors.Is(err, pgbaton.ErrNotFound)
	})
}

func jobs(p *place) {
	runs := 0
	run := func(client *pgbaton.Client, opts *pgbaton.LockOpts, result error) error {
		return client.OnceWith(p.ctx, "job", time.Hour, opts, func(context.Context, *pgbaton.Lock) error {
			runs++
			return result
		})
	}
	failed := errors.New("failed")
	require.ErrorIs(p, run(p.one, nil, failed), failed)
	p.refused(nil, run(p.two, nil, nil))
	require.NoError(p, run(p.two, &pgbaton.LockOpts{RetryFailed: true}, nil))
	p.refused(nil, run(p.one, &pgbaton.LockOpts{RetryFailed: true}, nil))
	require.NoError(p, run(p.one, &pgbaton.LockOpts{Force: true}, nil))
	last, err := p.two.LastRun(p.ctx, "job")
	require.NoError(p, err)
	require.False(p, last.Failed)
	require.NoError(p, p.two.ForgetRun(p.ctx, "job"))
	_, err = p.one.LastRun(p.ctx, "job")
	require.ErrorIs(p, err, pgbaton.ErrNotFound)
	require.NoError(p, run(p.two, nil, nil))
	require.Equal(p, 4, runs)
}

func fences(p *place) {
	show := func(token pgbaton.Token, opts ...*pgbaton.LockOpts) error {
		return pgbaton.InTx(p.ctx, p.pool, nil, func(ctx context.Context, tx pgx.Tx) error { return pgbaton.Fence(ctx, tx, `a "thing"`, token, opts...) })
	}
	require.NoError(p, show(5, &pgbaton.LockOpts{Shared: true}))
	require.NoError(p, show(7))
	require.NoError(p, show(7))
	require.NoError(p, show(8, &pgbaton.LockOpts{Shared: true}))
	for _, opts := range [][]*pgbaton.LockOpts{nil, {{Shared: true}}} {
		err := show(6, opts...)
		require.ErrorIs(p, err, pgbaton.ErrStaleToken)
		stale := (*pgbaton.StaleTokenError)(nil)
		require.ErrorAs(p, err, &stale)
		require.Equal(p, pgbaton.StaleTokenError{Resource: `a "thing"`, Token: 6, Newest: 7}, *stale)
	}
	require.Error(p, show(1<<52+1<<51), "far ahead of the clock")
	// A stale token costs the transaction.
	tx, err := p.pool.Begin(p.ctx)
	require.NoError(p, err)
	require.Error(p, pgbaton.Fence(p.ctx, tx, `a "thing"`, 6))
	_, err = tx.Exec(p.ctx, "SELECT 1")
	require.ErrorContains(p, err, "25P02")
	require.NoError(p, tx.Rollback(p.ctx))
	// A newer one waits for a transaction that has shown an older one.
	for _, opts := range [][]*pgbaton.LockOpts{nil, {{Shared: true}}} {
		tx, err = p.pool.Begin(p.ctx)
		require.NoError(p, err)
		require.NoError(p, pgbaton.Fence(p.ctx, tx, `a "thing"`, 9, opts...))
		waits, err := p.pool.Begin(p.ctx)
		require.NoError(p, err)
		_, err = waits.Exec(p.ctx, "SET LOCAL lock_timeout = '50ms'")
		require.NoError(p, err)
		require.ErrorIs(p, pgbaton.Fence(p.ctx, waits, `a "thing"`, 10), pgbaton.ErrNotAcquired)
		require.NoError(p, waits.Rollback(p.ctx))
		require.NoError(p, tx.Commit(p.ctx))
	}
}
