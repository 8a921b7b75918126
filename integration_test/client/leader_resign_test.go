package client

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

func TestLead_Resignation(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	a, b := testclient.New(t, dsn, nil), testclient.New(t, dsn, nil)

	t.Run("NilIsAResignation", func(t *testing.T) {
		t.Parallel()
		terms, _ := lead(ctx, a, "nil")
		first := soon(t, terms)
		others, _ := lead(ctx, b, "nil")
		second := successor(t, first, &terms, others, func(r *reign) { r.finish <- nil })
		require.Greater(t, second.term, first.term)
		second.finish <- errors.New("b is no longer a candidate")
		require.Greater(t, soon(t, terms).term, second.term)
	})

	t.Run("OtherClientsComeFirst", func(t *testing.T) {
		t.Parallel()
		terms, _ := lead(ctx, a, "both")
		leadOn(ctx, a, "both", terms)
		first := soon(t, terms)
		others, _ := lead(ctx, b, "both")
		second := successor(t, first, &terms, others, func(r *reign) { r.finish <- nil })
		require.Greater(t, second.term, first.term)
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
		second := successor(t, first, &terms, others, func(r *reign) {
			require.NoError(t, r.lock.Release(ctx))
		})
		require.Greater(t, second.term, first.term)
		require.ErrorIs(t, context.Cause(first.ctx), pgbaton.ErrResigned)
	})
}

// successor has the leader resign and returns the other's term. One that has resigned holds back for two seconds: on a busy
// machine it may lead again before the other has looked, and resigns again.
func successor(t *testing.T, leader *reign, terms *chan *reign, others <-chan *reign, resign func(*reign)) *reign {
	t.Helper()
	for {
		resigned := time.Now()
		resign(leader)
		select {
		case second := <-others:
			return second
		case leader = <-*terms:
			require.GreaterOrEqual(t, time.Since(resigned), 2*time.Second, "it leads again without holding back")
		case <-time.After(testkit.Patience):
			require.FailNow(t, "nobody leads")
		}
	}
}

// A leader whose func fails again and again does not keep the others from leading.
func TestLead_FailureIsAResignation(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	sick, well := testclient.New(t, dsn, nil), testclient.New(t, dsn, nil)
	terms, done := lead(ctx, sick, "x")
	first := soon(t, terms)
	others, _ := lead(ctx, well, "x")
	second := successor(t, first, &terms, others, func(r *reign) {
		r.finish <- errors.New("no disk")
		require.ErrorContains(t, soon(t, done), "no disk")
		terms, done = lead(ctx, sick, "x") // as a service does
	})
	require.Greater(t, second.term, first.term)
	second.finish <- errors.New("it is no longer a candidate")
	require.Greater(t, soon(t, terms).term, second.term)
}

// What a func says besides that its context has ended is not lost.
func TestLead_ErrorBesideTheEnd(t *testing.T) {
	t.Parallel()
	client := testclient.New(t, testkit.Migrated(t), nil)
	broken := errors.New("the last batch was not saved")
	for name, test := range map[string]struct{ says, hears []error }{
		"nothing else":   {[]error{context.Canceled}, []error{context.Canceled}},
		"something else": {[]error{context.Canceled, broken}, []error{context.Canceled, broken}},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		err := client.Lead(ctx, name, func(ctx context.Context, _ *pgbaton.Lock) error {
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

// A candidate that is elected when its context has just ended leaves no row that says that it leads.
func TestLead_ElectedTooLate(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	client, watcher := testclient.New(t, dsn, nil), testclient.New(t, dsn, nil)
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
		}, testkit.Patience, 5*time.Millisecond)
		lock, err := watcher.TryAcquire(ctx, pgbaton.Name("pgbaton/leader/"+name))
		require.NoError(t, err)
		require.NoError(t, lock.Release(ctx))
	}
}

func TestLead_RequestResign(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	a, b := testclient.New(t, dsn, nil), testclient.New(t, dsn, nil)

	t.Run("RequestResign", func(t *testing.T) {
		t.Parallel()
		terms, _ := lead(ctx, a, "request")
		first := soon(t, terms)
		others, _ := lead(ctx, b, "request")
		second := successor(t, first, &terms, others, func(*reign) {
			require.Eventually(t, func() bool { return b.RequestResign(ctx, "request") == nil }, testkit.Patience, 5*time.Millisecond)
		})
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
		lock := first.lock
		inTx(t, dsn, func(tx pgx.Tx) { require.NoError(t, lock.Assert(ctx, tx)) })
		require.NoError(t, lock.Release(ctx))
		<-first.ctx.Done()
		require.ErrorIs(t, context.Cause(first.ctx), pgbaton.ErrResigned)
	})
}

// A request whose notification is lost is found in the row.
func TestLead_RequestWithoutNotification(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	control := testkit.Connect(t, dsn)
	terms, _ := lead(t.Context(), testclient.New(t, dsn, nil), "x")
	first := soon(t, terms)
	require.Eventually(t, func() bool {
		return testkit.Value[int](t, control, "SELECT count(pgbaton.request_resign('x'))") == 1
	}, testkit.Patience, time.Millisecond)
	asked := time.Now()
	<-first.ctx.Done()
	require.ErrorIs(t, context.Cause(first.ctx), pgbaton.ErrResigned)
	testkit.Figure(t, "a request to resign without a notification was heard after %v", time.Since(asked))
}
