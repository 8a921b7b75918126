package client

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// listed lists with a filter until what is found is as wished. It counts its looks, since a clock goes on while a machine stands still: then all that
// was to happen meanwhile has not.
func listed(t *testing.T, c *pgbaton.Client, f *pgbaton.LockFilter, what string, is func([]pgbaton.LockInfo) bool) []pgbaton.LockInfo {
	t.Helper()
	var found []pgbaton.LockInfo
	ok := func() bool {
		var err error
		found, err = c.Locks(testkit.Context(t), f)
		require.NoError(t, err)
		return is(found)
	}
	const pause = 50 * time.Millisecond
	for left := int(testkit.Patience / pause); !ok(); left-- {
		require.Positive(t, left, "%s: %+v", what, found)
		time.Sleep(pause)
	}
	return found
}

// steady is a config of a client whose locks outlast a machine that stands still for minutes.
func steady(name string) *pgbaton.Config { return &pgbaton.Config{Name: name, TTL: time.Hour} }

// count counts what is in a state.
func count(all []pgbaton.LockInfo, state string) (n int) {
	for _, l := range all {
		if l.State == state {
			n++
		}
	}
	return n
}

func published(all []pgbaton.LockInfo) bool {
	return len(all) == 1 && all[0].Token != 0 && !all[0].Since.IsZero() && all[0].Host != ""
}

func TestLocks(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	conn := testkit.Connect(t, dsn)
	a, b := testclient.New(t, dsn, steady("anna")), testclient.New(t, dsn, steady("bert"))
	ctx := testkit.Context(t)
	now := func() time.Time { return testkit.Value[time.Time](t, conn, "SELECT clock_timestamp()") }

	t.Run("OfAHolder", func(t *testing.T) {
		t.Parallel()
		key := pgbaton.Name("locks/holder")
		before := now()
		lock, err := a.Acquire(ctx, key)
		require.NoError(t, err)
		after := now()
		found, err := b.Locks(ctx, &pgbaton.LockFilter{Key: key})
		require.NoError(t, err)
		require.Len(t, found, 1, "at once, by its number")
		require.Equal(t, "held", found[0].State)
		require.Equal(t, "anna", found[0].Client)
		require.NotZero(t, found[0].Session)
		found = listed(t, b, &pgbaton.LockFilter{Key: key}, "its name", published)
		l := found[0]
		host, err := os.Hostname()
		require.NoError(t, err)
		require.Equal(t, pgbaton.LockInfo{
			State: "held", Kind: "lock", Name: "locks/holder", Key: key, Permits: 1, Token: lock.Token(), Since: l.Since,
			Client: "anna", Host: host, Process: os.Getpid(), Application: "pgbaton/anna", Session: l.Session, Holder: l.Holder,
		}, l)
		require.WithinRange(t, l.Since, before.Add(-time.Second), after.Add(testkit.Patience))
		require.NoError(t, lock.Release(ctx))
		listed(t, b, &pgbaton.LockFilter{Key: key}, "nothing", func(all []pgbaton.LockInfo) bool { return len(all) == 0 })
		testkit.WaitFor(t, conn, "SELECT NOT EXISTS (SELECT FROM pgbaton.registry WHERE name = 'locks/holder')")
	})
	t.Run("OfSharedHoldersAndAWaiter", func(t *testing.T) {
		t.Parallel()
		key := pgbaton.Pair(7, -7)
		first, err := a.AcquireShared(ctx, key)
		require.NoError(t, err)
		second, err := b.AcquireShared(ctx, key)
		require.NoError(t, err)
		third := background(t, func() (*pgbaton.Lock, error) { return b.Acquire(ctx, key) })
		found := listed(t, a, &pgbaton.LockFilter{Key: key}, "all three, published", func(all []pgbaton.LockInfo) bool {
			return count(all, "held") == 2 && count(all, "waiting") == 1 && all[0].Token != 0 && all[1].Token != 0
		})
		for _, l := range found {
			require.Equal(t, key, l.Key)
			require.Empty(t, l.Name)
			require.Equal(t, l.State == "held", l.Shared)
			if l.State == "waiting" && l.Holder != 0 {
				require.Equal(t, "bert", l.Client)
				require.Len(t, l.BlockedBy, 2)
				for _, i := range l.BlockedBy {
					require.Equal(t, "held", found[i].State)
				}
			}
		}
		require.NoError(t, first.Release(ctx))
		require.NoError(t, second.Release(ctx))
		require.NoError(t, (<-third).Release(ctx))
	})
	t.Run("OfAWaiterThatHoldsOthers", func(t *testing.T) {
		t.Parallel()
		outer, err := a.Acquire(ctx, pgbaton.Name("locks/outer"))
		require.NoError(t, err)
		inner, err := b.Acquire(ctx, pgbaton.Name("locks/inner"))
		require.NoError(t, err)
		got := background(t, func() (*pgbaton.Lock, error) { return a.Acquire(outer.Context(), pgbaton.Name("locks/inner")) })
		waiting := func(all []pgbaton.LockInfo) bool {
			for _, l := range all {
				if l.Name == "" || (l.State == "waiting" && len(l.Holds) != 1) {
					return false
				}
			}
			return len(all) == 3
		}
		found := listed(t, b, &pgbaton.LockFilter{Key: pgbaton.Name("locks/outer")}, "what it is behind", waiting)
		at := map[string]int{}
		for i, l := range found {
			at[l.State+" "+l.Name] = i
		}
		require.Len(t, at, 3)
		require.Equal(t, []int{at["waiting locks/inner"]}, found[at["held locks/outer"]].BlockedBy)
		require.Equal(t, []int{at["held locks/inner"]}, found[at["waiting locks/inner"]].BlockedBy)
		require.Empty(t, found[at["held locks/inner"]].BlockedBy)
		require.Equal(t, pgbaton.ID(keyNumber(pgbaton.Name("locks/outer"))), found[at["waiting locks/inner"]].Holds[0])
		require.NoError(t, inner.Release(ctx))
		require.NoError(t, (<-got).Release(ctx))
		require.NoError(t, outer.Release(ctx))
	})
	t.Run("OfAPermitAndItsWaiter", func(t *testing.T) {
		t.Parallel()
		sem, err := a.Semaphore(ctx, "locks/sem", 2)
		require.NoError(t, err)
		permit, err := sem.Acquire(ctx, 2)
		require.NoError(t, err)
		other, err := b.Semaphore(ctx, "locks/sem", 2)
		require.NoError(t, err)
		waiting, cancel := context.WithCancel(ctx)
		over := make(chan error, 1)
		go func() {
			_, err := other.Acquire(waiting, 1)
			over <- err
		}()
		found := listed(t, a, &pgbaton.LockFilter{Kind: "permit", Name: "locks/sem"}, "both", func(all []pgbaton.LockInfo) bool {
			return len(all) == 2 && !all[0].Since.IsZero() && !all[1].Since.IsZero()
		})
		for _, l := range found {
			require.Equal(t, pgbaton.Key{}, l.Key)
			if l.State == "held" {
				require.Equal(t, 2, l.Permits)
				require.Equal(t, "anna", l.Client)
			} else {
				require.Equal(t, 1, l.Permits)
				require.Equal(t, "bert", l.Client)
				require.Len(t, l.BlockedBy, 1)
			}
		}
		cancel()
		require.ErrorIs(t, <-over, context.Canceled)
		require.NoError(t, permit.Release(ctx))
	})
	t.Run("OfALeaderAndACandidate", func(t *testing.T) {
		t.Parallel()
		leading, stop := context.WithCancel(ctx)
		over := make(chan error, 2)
		for _, c := range []*pgbaton.Client{a, b} {
			go func() {
				over <- c.Lead(leading, "locks/leader", func(ctx context.Context, _ *pgbaton.Lock) error {
					<-ctx.Done()
					return nil
				})
			}()
		}
		listed(t, a, &pgbaton.LockFilter{Kind: "term", Name: "locks/leader"}, "both", func(all []pgbaton.LockInfo) bool {
			return count(all, "held") == 1 && count(all, "waiting") == 1
		})
		stop()
		require.ErrorIs(t, <-over, context.Canceled)
		require.ErrorIs(t, <-over, context.Canceled)
	})
	t.Run("OfASetThatWaits", func(t *testing.T) {
		t.Parallel()
		one, two := pgbaton.Name("locks/set/1"), pgbaton.Name("locks/set/2")
		busy, err := a.Acquire(ctx, two)
		require.NoError(t, err)
		sets := make(chan *pgbaton.LockSet, 1)
		go func() {
			set, err := b.AcquireAll(ctx, one, two)
			if err != nil {
				t.Error(err)
			}
			sets <- set
		}()
		found := listed(t, a, &pgbaton.LockFilter{Client: "bert", Name: "locks/set/2"}, "the set", func(all []pgbaton.LockInfo) bool {
			return count(all, "waiting") == 1 && count(all, "held") >= 1
		})
		for _, l := range found {
			if l.Key == two && l.State == "held" {
				require.Equal(t, "lock", l.Kind)
			}
		}
		require.NoError(t, busy.Release(ctx))
		set := <-sets
		listed(t, a, &pgbaton.LockFilter{Kind: "set", Client: "bert"}, "both of the set", func(all []pgbaton.LockInfo) bool {
			return count(all, "held") == 2 && all[0].Name != "" && all[1].Name != ""
		})
		require.NoError(t, set.Release(ctx))
	})
	t.Run("OfARun", func(t *testing.T) {
		t.Parallel()
		require.NoError(t, a.Once(ctx, "locks/run", time.Hour, func(context.Context, *pgbaton.Lock) error {
			l := listed(t, b, &pgbaton.LockFilter{Kind: "once", Name: "locks/run"}, "it", published)[0]
			require.Equal(t, "anna", l.Client)
			return nil
		}))
	})
	t.Run("OfTheDatabase", func(t *testing.T) {
		t.Parallel()
		holder, waiter := testkit.Connect(t, dsn), testkit.Connect(t, dsn)
		testkit.Exec(t, holder, "CREATE TABLE public.account (id integer PRIMARY KEY); INSERT INTO public.account VALUES (1)")
		testkit.Exec(t, holder, "BEGIN; SELECT FROM public.account FOR UPDATE")
		over := make(chan error, 1)
		go func() {
			_, err := waiter.Exec(ctx, "UPDATE public.account SET id = 2")
			over <- err
		}()
		found := listed(t, a, &pgbaton.LockFilter{Kind: "database", Database: true}, "both sessions", func(all []pgbaton.LockInfo) bool { return len(all) == 2 })
		for _, l := range found {
			if l.State == "waiting" {
				require.Equal(t, int(waiter.PgConn().PID()), l.Session)
				require.Contains(t, l.Name, "transaction")
				require.Len(t, l.BlockedBy, 1)
				require.Equal(t, int(holder.PgConn().PID()), found[l.BlockedBy[0]].Session)
			}
		}
		testkit.Exec(t, holder, "COMMIT")
		require.NoError(t, <-over)
	})
	t.Run("OfAnotherProgram", func(t *testing.T) {
		t.Parallel()
		key := pgbaton.ID(1_234_567)
		other := testkit.Connect(t, testkit.With(t, dsn, "application_name", "rails"))
		testkit.Exec(t, other, "SELECT pg_advisory_lock(1234567)")
		if testclient.Engine() == pgbaton.EngineLease {
			return // which excludes nobody else
		}
		got := background(t, func() (*pgbaton.Lock, error) { return a.Acquire(ctx, key) })
		found := listed(t, b, &pgbaton.LockFilter{Key: key}, "holder and waiter", func(all []pgbaton.LockInfo) bool {
			return count(all, "held") == 1 && count(all, "waiting") == 1 && (all[0].Client == "anna" || all[1].Client == "anna")
		})
		for _, l := range found {
			if l.State == "held" {
				require.Equal(t, pgbaton.LockInfo{
					State: "held", Kind: "lock", Key: key, Permits: 1, Application: "rails", Session: int(other.PgConn().PID()),
				}, l)
			}
		}
		testkit.Exec(t, other, "SELECT pg_advisory_unlock(1234567)")
		require.NoError(t, (<-got).Release(ctx))
	})
}

// keyNumber is the number of a key.
func keyNumber(key pgbaton.Key) int64 {
	_, id, _ := key.Parts()
	return id
}
