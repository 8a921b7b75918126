package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// reign is a term as the leader's func saw it.
type reign struct {
	lock   *pgbaton.Lock
	term   pgbaton.Token
	ctx    context.Context //nolint:containedctx // the test looks at how it ended
	finish chan error      // what the func shall return
}

// lead calls Lead in the background. Each term arrives on terms; its func returns when the test says so or
// its context ends.
func lead(ctx context.Context, client *pgbaton.Client, name string) (terms chan *reign, done chan error) {
	terms = make(chan *reign, 16)
	return terms, leadOn(ctx, client, name, terms)
}

// leadOn is lead with a channel for the terms that is there already.
func leadOn(ctx context.Context, client *pgbaton.Client, name string, terms chan<- *reign) (done chan error) {
	done = make(chan error, 1)
	go func() {
		done <- client.Lead(ctx, name, func(ctx context.Context, lock *pgbaton.Lock) error {
			r := &reign{lock, lock.Token(), ctx, make(chan error, 1)}
			terms <- r
			select {
			case err := <-r.finish:
				return err
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	}()
	return done
}

func soon[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case got := <-ch:
		return got
	case <-time.After(testkit.Patience):
		require.FailNow(t, "nothing came")
		panic("not reached")
	}
}

func TestLead(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	a := testclient.New(t, dsn, &pgbaton.Config{Name: "a"})
	b := testclient.New(t, dsn, &pgbaton.Config{Name: "b"})

	t.Run("OneLeads", func(t *testing.T) {
		t.Parallel()
		before := testkit.Value[time.Time](t, testkit.Connect(t, dsn), "SELECT clock_timestamp()")
		_, err := b.Leader(ctx, "one")
		require.ErrorIs(t, err, pgbaton.ErrNotFound)
		require.ErrorIs(t, b.RequestResign(ctx, "one"), pgbaton.ErrNotFound)

		stop, cancel := context.WithCancelCause(ctx)
		terms, done := lead(stop, a, "one")
		first := soon(t, terms)
		other, _ := lead(ctx, b, "one")
		var info pgbaton.Holder
		require.Eventually(t, func() bool {
			info, err = b.Leader(ctx, "one")
			return err == nil
		}, testkit.Patience, 5*time.Millisecond)
		require.Equal(t, pgbaton.Holder{Client: "a", Since: info.Since, Token: first.term}, info)
		require.False(t, info.Since.Before(before))
		_, err = b.TryAcquire(ctx, pgbaton.Name("pgbaton/leader/one"))
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired, "the leader's lock is one like any other")

		why := errors.New("shutdown")
		cancel(why)
		err = soon(t, done)
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, err, why)
		second := soon(t, other)
		require.Greater(t, second.term, first.term)
		second.finish <- errors.New("the end")
	})

	t.Run("ErrorOfTheFunc", func(t *testing.T) {
		t.Parallel()
		terms, done := lead(ctx, a, "error")
		broken := errors.New("broken")
		soon(t, terms).finish <- broken
		require.ErrorIs(t, soon(t, done), broken)
		_, err := b.Leader(ctx, "error")
		require.ErrorIs(t, err, pgbaton.ErrNotFound, "when Lead has returned the row is cleared")
	})
}

func TestLead_Edges(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	a, b := testclient.New(t, dsn, nil), testclient.New(t, dsn, nil)

	t.Run("Panic", func(t *testing.T) {
		t.Parallel()
		require.PanicsWithValue(t, "own", func() {
			_ = a.Lead(ctx, "panic", func(context.Context, *pgbaton.Lock) error { panic("own") })
		})
		lock, err := b.TryAcquire(ctx, pgbaton.Name("pgbaton/leader/panic"))
		require.NoError(t, err)
		require.NoError(t, lock.Release(ctx))
	})

	t.Run("Names", func(t *testing.T) {
		t.Parallel()
		for _, name := range []string{"", strings.Repeat("x", 498), "a\x00", "\xff"} {
			require.Error(t, a.Lead(ctx, name, nil), "%q", name)
			_, err := a.Leader(ctx, name)
			require.Error(t, err)
			require.Error(t, a.RequestResign(ctx, name))
		}
		for _, name := range []string{`"quoted\"`, "{a,b}", "leader/free/x", " ", "NULL"} {
			terms, done := lead(ctx, a, name)
			first := soon(t, terms)
			require.Eventually(t, func() bool {
				info, err := b.Leader(ctx, name)
				return err == nil && info.Token == first.term
			}, testkit.Patience, 5*time.Millisecond)
			require.NoError(t, b.RequestResign(ctx, name))
			<-first.ctx.Done()
			_ = done
		}
	})
}

// A candidate never passes a lock of its own client that waits for the leader's key, however long it has waited itself.
func TestLead_GoesBehindLocks(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	key := pgbaton.Name("pgbaton/leader/x")
	held, err := testclient.New(t, dsn, nil).Acquire(ctx, key)
	require.NoError(t, err)
	client := testclient.New(t, dsn, nil)
	terms, _ := lead(ctx, client, "x")
	others, _ := lead(ctx, client, "y")
	soon(t, others) // the candidate for x has been tried with it, or is about to be
	granted := make(chan *pgbaton.Lock, 1)
	go func() {
		lock, err := client.Acquire(ctx, key)
		if err != nil {
			t.Error(err)
		}
		granted <- lock
	}()
	testkit.WaitFor(t, testkit.Connect(t, dsn), `SELECT EXISTS (SELECT FROM pg_locks
		WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		  AND (classid::bigint << 32 | objid::bigint) = pgbaton.key('pgbaton/leader/x'))`)
	require.NoError(t, held.Release(ctx))
	lock := soon(t, granted)
	require.NotNil(t, lock)
	require.Empty(t, terms)
	require.NoError(t, lock.Release(ctx))
	require.Greater(t, soon(t, terms).term, lock.Token())
}

func inTx(t *testing.T, dsn string, f func(pgx.Tx)) {
	t.Helper()
	tx, err := testkit.Connect(t, dsn).Begin(context.Background())
	require.NoError(t, err)
	f(tx)
	require.NoError(t, tx.Commit(context.Background()))
}

// The loss of the lock ends the term at once, and the row with it.
func TestLead_Lost(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	control := testkit.Connect(t, dsn)
	client := testclient.New(t, testkit.Named(t, dsn, "leader"), nil)
	watcher := testclient.New(t, dsn, nil)
	terms, _ := lead(ctx, client, "x")
	first := soon(t, terms)
	require.Eventually(t, func() bool { _, err := watcher.Leader(ctx, "x"); return err == nil }, testkit.Patience, time.Millisecond)
	endLeadersSession(t, control)
	<-first.ctx.Done()
	require.ErrorIs(t, context.Cause(first.ctx), pgbaton.ErrLost)
	second := soon(t, terms)
	require.Greater(t, second.term, first.term)

	// The session for rows is another one: the row is written again, and requests are heard.
	require.Eventually(t, func() bool {
		info, err := watcher.Leader(ctx, "x")
		return err == nil && info.Token == second.term
	}, testkit.Patience, time.Millisecond)
	since := testkit.Value[time.Time](t, control, "SELECT since FROM pgbaton.leader")
	testkit.Value[bool](t, control, `SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity AS a JOIN pg_locks AS l USING (pid)
		JOIN pgbaton.leader AS r ON (l.classid::bigint << 32 | l.objid::bigint) = r.holder`)
	require.Eventually(t, func() bool {
		info, err := watcher.Leader(ctx, "x")
		return err == nil && info.Token == second.term && info.Since.Equal(since)
	}, testkit.Patience, time.Millisecond)
	require.NoError(t, second.ctx.Err(), "rows decide nothing")
	// The old session may have been seen for a moment after it was told to end.
	require.Eventually(t, func() bool { return watcher.RequestResign(ctx, "x") == nil }, testkit.Patience, time.Millisecond)
	soon(t, second.ctx.Done())
}

// A term that is lost is nobody's from then on, also while its func has not returned.
func TestLead_LostIsNobodys(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	dsn := testkit.Migrated(t)
	control := testkit.Connect(t, dsn)
	client, watcher := testclient.New(t, dsn, nil), testclient.New(t, dsn, nil)
	stuck, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- client.Lead(ctx, "x", func(context.Context, *pgbaton.Lock) error {
			<-stuck
			return nil
		})
	}()
	require.Eventually(t, func() bool { _, err := watcher.Leader(ctx, "x"); return err == nil }, testkit.Patience, time.Millisecond)
	endLeadersSession(t, control)
	require.Eventually(t, func() bool {
		_, err := watcher.Leader(ctx, "x")
		return errors.Is(err, pgbaton.ErrNotFound)
	}, testkit.Patience, time.Millisecond)
	cancel()
	close(stuck)
	require.ErrorIs(t, soon(t, done), context.Canceled)
}

// endLeadersSession ends the session that holds the lock of the leader of x.
func endLeadersSession(t *testing.T, control *pgx.Conn) {
	t.Helper()
	testkit.Value[bool](t, control, `SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity AS a JOIN pg_locks AS l USING (pid)
		WHERE l.locktype = 'advisory' AND a.datname = current_database()
		  AND (l.classid::bigint << 32 | l.objid::bigint) = pgbaton.key('pgbaton/leader/x')`)
}

func TestLead_Close(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	client, err := pgbaton.Open(ctx, dsn, nil)
	require.NoError(t, err)
	terms, done := lead(ctx, client, "x")
	first := soon(t, terms)
	_, waiting := lead(ctx, client, "x")
	others, _ := lead(ctx, testclient.New(t, dsn, nil), "x")
	closed := time.Now()
	require.NoError(t, client.Close(ctx))
	require.ErrorIs(t, context.Cause(first.ctx), pgbaton.ErrResigned)
	require.ErrorIs(t, context.Cause(first.ctx), pgbaton.ErrClosed)
	require.ErrorIs(t, soon(t, done), pgbaton.ErrClosed)
	require.ErrorIs(t, soon(t, waiting), pgbaton.ErrClosed)
	soon(t, others)
	testkit.Figure(t, "another leads %v after the leader's client was closed", time.Since(closed))
	require.ErrorIs(t, client.Lead(ctx, "x", nil), pgbaton.ErrClosed)
}

// A func that does not return holds Close up for half a TTL.
func TestLead_CloseDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	client, err := pgbaton.Open(ctx, testkit.Migrated(t), &pgbaton.Config{TTL: 10 * time.Second})
	require.NoError(t, err)
	leading, stuck := make(chan context.Context, 1), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- client.Lead(ctx, "x", func(ctx context.Context, _ *pgbaton.Lock) error {
			leading <- ctx
			<-stuck
			return nil
		})
	}()
	term := soon(t, leading)
	started, closed := time.Now(), make(chan error, 1)
	go func() { closed <- client.Close(ctx) }()
	<-term.Done()
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, client.Close(short), context.DeadlineExceeded, "the second call has a context of its own")
	require.NoError(t, soon(t, closed))
	testkit.Figure(t, "with TTL 10 s Close gave a func that does not return %v", time.Since(started))
	close(stuck)
	require.ErrorIs(t, soon(t, done), pgbaton.ErrClosed)
}

func TestLead_NeedsAThirdConnection(t *testing.T) {
	t.Parallel()
	client := testclient.New(t, testkit.Migrated(t), &pgbaton.Config{MaxConns: 2})
	require.ErrorContains(t, client.Lead(t.Context(), "x", nil), "a third connection")
	_, err := client.Leader(t.Context(), "x")
	require.ErrorContains(t, err, "Config.MaxConns is 2")
	err = client.Once(t.Context(), "x", time.Second, nil)
	require.ErrorContains(t, err, "a third connection")
}

// Many candidates of one name in one process: one leads.
func TestLead_Crowd(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dsn := testkit.Migrated(t)
	clients := []*pgbaton.Client{testclient.New(t, dsn, nil), testclient.New(t, dsn, nil)}
	var mu sync.Mutex
	var last pgbaton.Token
	leading, terms := 0, 0
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			err := clients[i%2].Lead(ctx, "x", func(_ context.Context, lock *pgbaton.Lock) error {
				term := lock.Token()
				mu.Lock()
				leading, terms = leading+1, terms+1
				if leading != 1 || term <= last {
					t.Errorf("%d lead, term %d after %d", leading, term, last)
				}
				last = term
				mu.Unlock()
				time.Sleep(2 * time.Millisecond)
				mu.Lock()
				defer mu.Unlock()
				leading--
				if terms < 8 {
					return fmt.Errorf("next")
				}
				cancel()
				return nil
			})
			if err == nil {
				t.Error("Lead returned nil")
			}
		})
	}
	wg.Wait()
	require.GreaterOrEqual(t, terms, 8)
}
