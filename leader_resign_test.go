package pgbaton_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/dbtest"
)

func TestLead_Resignation(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dsn := dbtest.Migrated(t)
	a, b := newClient(t, dsn, nil), newClient(t, dsn, nil)

	t.Run("NilIsAResignation", func(t *testing.T) {
		t.Parallel()
		terms, _ := lead(ctx, a, "nil")
		first := soon(t, terms)
		others, _ := lead(ctx, b, "nil")
		first.finish <- nil
		second := soon(t, others)
		require.Greater(t, second.term, first.term)
		second.finish <- errors.New("b campaigns no more")
		require.Greater(t, soon(t, terms).term, second.term)
	})

	t.Run("TakesItAgainIfNobodyDoes", func(t *testing.T) {
		t.Parallel()
		terms, _ := lead(ctx, a, "alone")
		first := soon(t, terms)
		resigned := time.Now()
		first.finish <- nil
		second := soon(t, terms)
		require.Greater(t, second.term, first.term)
		require.GreaterOrEqual(t, time.Since(resigned), 2*time.Second)
	})

	t.Run("Resign", func(t *testing.T) {
		t.Parallel()
		terms, _ := lead(ctx, a, "resign")
		first := soon(t, terms)
		others, _ := lead(ctx, b, "resign")
		require.NoError(t, a.Resign(ctx, "resign"))
		require.ErrorIs(t, context.Cause(first.ctx), pgbaton.ErrResigned)
		second := soon(t, others)
		require.Greater(t, second.term, first.term)
		require.ErrorIs(t, a.Resign(ctx, "resign"), pgbaton.ErrNotHeld)
	})
}

// A leader whose func fails again and again does not keep the others from leading.
func TestLead_FailureIsAResignation(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dsn := dbtest.Migrated(t)
	sick, well := newClient(t, dsn, nil), newClient(t, dsn, nil)
	terms, done := lead(ctx, sick, "x")
	first := soon(t, terms)
	others, _ := lead(ctx, well, "x")
	failed := time.Now() // before Lead returns: the time in which it holds back has begun by then
	first.finish <- errors.New("no disk")
	require.ErrorContains(t, soon(t, done), "no disk")
	terms, _ = lead(ctx, sick, "x") // as a service does
	select {
	case second := <-others:
		require.Greater(t, second.term, first.term)
		second.finish <- errors.New("it campaigns no more")
		soon(t, terms)
		require.GreaterOrEqual(t, time.Since(failed), 2*time.Second)
	case <-terms:
		require.Fail(t, "the one that failed leads again")
	}
}

// What a func says besides that its context has ended is not lost.
func TestLead_ErrorBesideTheEnd(t *testing.T) {
	t.Parallel()
	client := newClient(t, dbtest.Migrated(t), nil)
	broken := errors.New("the last batch was not saved")
	for name, test := range map[string]struct{ says, hears []error }{
		"nothing else":   {[]error{context.Canceled}, []error{context.Canceled}},
		"something else": {[]error{context.Canceled, broken}, []error{context.Canceled, broken}},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		err := client.Lead(ctx, name, func(ctx context.Context, _ pgbaton.Token) error {
			cancel()
			<-ctx.Done()
			return errors.Join(test.says...)
		})
		for _, heard := range test.hears {
			require.ErrorIs(t, err, heard)
		}
	}
}

// late is a context that has ended when somebody looks, and not before.
type late struct{ context.Context } //nolint:containedctx // it is one

func (late) Done() <-chan struct{} { return nil }
func (late) Err() error            { return context.Canceled }

// A campaign that is elected when its context has just ended leaves no row that says that it leads.
func TestLead_ElectedTooLate(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dsn := dbtest.Migrated(t)
	client, watcher := newClient(t, dsn, nil), newClient(t, dsn, nil)
	_, err := client.Leader(ctx, "warm")
	require.ErrorIs(t, err, pgbaton.ErrNotFound)
	names := make([]string, 100)
	for i := range names {
		names[i] = fmt.Sprint("x", i)
		require.ErrorIs(t, client.Lead(late{ctx}, names[i], nil), context.Canceled)
	}
	for _, name := range names {
		require.Eventually(t, func() bool {
			_, err := watcher.Leader(ctx, name)
			return errors.Is(err, pgbaton.ErrNotFound)
		}, 3*time.Second, 5*time.Millisecond)
		lock, err := watcher.TryAcquire(ctx, pgbaton.Name("pgbaton/leader/"+name))
		require.NoError(t, err)
		require.NoError(t, lock.Release(ctx))
	}
}

func TestLead_RequestResign(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dsn := dbtest.Migrated(t)
	a, b := newClient(t, dsn, nil), newClient(t, dsn, nil)

	t.Run("RequestResign", func(t *testing.T) {
		t.Parallel()
		terms, _ := lead(ctx, a, "request")
		first := soon(t, terms)
		others, _ := lead(ctx, b, "request")
		require.Eventually(t, func() bool { return b.RequestResign(ctx, "request") == nil }, 5*time.Second, 5*time.Millisecond)
		second := soon(t, others)
		require.Greater(t, second.term, first.term)
		require.ErrorIs(t, context.Cause(first.ctx), pgbaton.ErrResigned)
		ended, cancel := context.WithCancel(ctx)
		cancel()
		require.ErrorIs(t, b.RequestResign(ended, "request"), context.Canceled)
		require.NoError(t, second.ctx.Err(), "a request is for one term")
		require.NoError(t, b.RequestResign(ctx, "request"), "the leader's own client")
		<-second.ctx.Done()
	})

	t.Run("ReleaseInTheFunc", func(t *testing.T) {
		t.Parallel()
		terms, _ := lead(ctx, a, "release")
		first := soon(t, terms)
		lock := pgbaton.LeaderLock(first.ctx)
		require.Equal(t, first.term, lock.Token())
		require.Nil(t, pgbaton.LeaderLock(ctx))
		inTx(t, dsn, func(tx pgx.Tx) { require.NoError(t, pgbaton.AssertHeld(ctx, tx, lock)) })
		require.NotNil(t, lock.Jeopardy())
		require.NoError(t, lock.Release(ctx))
		<-first.ctx.Done()
		require.ErrorIs(t, context.Cause(first.ctx), pgbaton.ErrResigned)
	})
}

// A request whose notification is lost is found in the row.
func TestLead_RequestWithoutNotification(t *testing.T) {
	t.Parallel()
	dsn := dbtest.Migrated(t)
	control := dbtest.Connect(t, dsn)
	terms, _ := lead(t.Context(), newClient(t, dsn, nil), "x")
	first := soon(t, terms)
	require.Eventually(t, func() bool {
		return dbtest.Value[int](t, control, "SELECT count(pgbaton.request_resign('x'))") == 1
	}, 5*time.Second, time.Millisecond)
	asked := time.Now()
	<-first.ctx.Done()
	require.ErrorIs(t, context.Cause(first.ctx), pgbaton.ErrResigned)
	require.Less(t, time.Since(asked), 6*time.Second, "5 s, and a busy machine")
}
