package client

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// A waiter behind a network that has fallen silent costs those behind it no more than one that is frozen.
func TestSilentNetwork_OfAWaiter(t *testing.T) {
	t.Parallel()
	key := pgbaton.Name("2")
	lock := func(c *pgbaton.Client) func(context.Context) (releaser, error) {
		return func(ctx context.Context) (releaser, error) { return c.Acquire(ctx, key) }
	}
	set := func(c *pgbaton.Client) func(context.Context) (releaser, error) {
		return func(ctx context.Context) (releaser, error) { return c.AcquireAll(ctx, keysOf("1", "2", "3")...) }
	}
	permit := func(c *pgbaton.Client) func(context.Context) (releaser, error) {
		return func(ctx context.Context) (releaser, error) {
			s, err := c.Semaphore(ctx, "s", 1)
			if err != nil {
				return nil, err
			}
			return s.Acquire(ctx, 1)
		}
	}
	for name, way := range map[string]wayOf{"Lock": lock, "Set": set, "Semaphore": permit} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for attempt := 1; !passesSilentWaiter(t, way); attempt++ {
				require.Less(t, attempt, 10, "each time the silent client was granted the permit just before")
			}
		})
	}
}

// wayOf makes a client's way to wait for something.
type wayOf func(*pgbaton.Client) func(context.Context) (releaser, error)

// passesSilentWaiter has a holder release in front of a waiter that has fallen silent, and the next get it. It returns false
// if the silent one was no waiter: of permits the one whose turn it is asks every now and then, and what was under way when the network
// fell silent may have been granted, as to a holder that falls silent.
func passesSilentWaiter(t *testing.T, way wayOf) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
	defer cancel()
	dsn := testkit.Migrated(t)
	silent, proxy := proxied(t, testkit.Named(t, dsn, "silent"))
	holder, next := testclient.New(t, dsn, nil), testclient.New(t, testkit.Named(t, dsn, "next"), nil)
	held, err := way(holder)(ctx)
	require.NoError(t, err)
	stopped, stop := context.WithCancel(ctx)
	defer stop()
	begin := func(ctx context.Context, c *pgbaton.Client) chan error {
		done := make(chan error, 1)
		go func() {
			r, err := way(c)(ctx)
			if err == nil {
				err = r.Release(context.WithoutCancel(ctx))
			}
			done <- err
		}()
		return done
	}
	conn := testkit.Connect(t, dsn)
	stands := func(name string) {
		testkit.WaitFor(t, conn, `SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
			WHERE application_name = $1 AND datname = current_database() AND query ~ 'wait_for_turn' AND locktype = 'advisory')`, name)
	}
	lost := begin(stopped, silent)
	stands("silent")
	got := begin(ctx, next)
	stands("next")
	proxy.Stall(true)
	released := time.Now()
	require.NoError(t, held.Release(ctx))
	for waiting := true; waiting; {
		select {
		case err := <-got:
			require.NoError(t, err)
			waiting = false
		case <-time.After(time.Second):
			if testkit.Value[bool](t, conn, "SELECT EXISTS (SELECT FROM pgbaton.slot WHERE lease = $1)", time.Hour.Milliseconds()) {
				proxy.Stall(false)
				require.NoError(t, silent.Close(ctx))
				require.NoError(t, <-got)
				return false
			}
		}
	}
	testkit.Figure(t, "%s: behind a silent waiter the next holder had it after %v", t.Name(), time.Since(released))
	stop()
	err = <-lost
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
	proxy.Stall(false)
	require.NoError(t, silent.Close(ctx))
	return true
}
