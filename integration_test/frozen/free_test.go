package frozen

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// What a frozen process holds is freed with its session, and an operator is told first what dies with it.
func TestFrozen_Freed(t *testing.T) {
	t.Parallel()
	s := open(t, lab.Database(t))
	ctx := testkit.Context(t)
	operator := testclient.New(t, s.dsn, nil)
	holder, last := s.start("holder", worker.Command{}), s.start("last", worker.Command{})
	for _, key := range []string{"a", "b", "c"} {
		holder.Hold("c", key)
	}
	last.Hold("c", "d")
	call := last.Begin(acquire("a", false, 0))
	s.stands("last")
	var held pgbaton.LockInfo
	testkit.Eventually(t, "it has its token", func() bool {
		found, err := operator.Locks(ctx, &pgbaton.LockFilter{Key: pgbaton.Name("a")})
		require.NoError(t, err)
		i := slices.IndexFunc(found, func(l pgbaton.LockInfo) bool { return l.State == "held" && l.Token != 0 })
		if i >= 0 {
			held = found[i]
		}
		return i >= 0
	})
	s.freeze(holder)
	all := []pgbaton.Key{pgbaton.Name("a"), pgbaton.Name("b"), pgbaton.Name("c")}
	would, err := operator.Free(ctx, held, &pgbaton.FreeOpts{DryRun: true, EndSession: true})
	require.NoError(t, err)
	require.ElementsMatch(t, all, keys(would))
	_, err = operator.Free(ctx, held, nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, `lock "b"`)
	require.ErrorContains(t, err, `lock "c"`)
	freed, err := operator.Free(ctx, held, &pgbaton.FreeOpts{EndSession: true, Reason: "it does not answer"})
	require.NoError(t, err)
	require.ElementsMatch(t, all, keys(freed))
	require.True(t, call.Wait().Result.OK(), "somebody else has it")
	for _, key := range []string{"a", "d"} {
		require.True(t, last.Release(key).OK())
	}
	require.Equal(t, []string{"not answered", "session ended"}, testkit.Value[[]string](t, s.control,
		"SELECT array_agg(outcome ORDER BY id) FROM pgbaton.freeing"))
	s.thaw()
	for _, key := range []string{"a", "b", "c"} {
		require.Contains(t, holder.Release(key).Err, "lost")
	}
}

// The names of what killed processes held and waited for are gone within a minute, though nobody of theirs is left.
func TestFrozen_KilledLeaveNoNames(t *testing.T) {
	t.Parallel()
	s := open(t, lab.Database(t))
	ctx := testkit.Context(t)
	next := testclient.New(t, s.dsn, nil)
	_, err := next.Semaphore(ctx, "s", 1)
	require.NoError(t, err)
	holder, waiter, gatherer := s.start("holder", worker.Command{}), s.start("waiter", worker.Command{}), s.start("gatherer", worker.Command{})
	holder.Hold("c", "g/1")
	waiter.Hold("c", "own")
	waiter.Begin(acquire("g/1", false, 0))
	gatherer.Begin(worker.Command{Do: worker.Gather, Client: "c", Key: "g", Count: 2, As: "g"})
	require.True(t, holder.Do(acquire("s", false, 1)).Result.OK())
	testkit.Eventually(t, "all are published", func() bool {
		return testkit.Value[bool](t, s.control, `SELECT count(*) FILTER (WHERE kind = 'held') = 3 AND count(*) FILTER (WHERE kind IN ('waiting', 'watched')) = 2
			FROM pgbaton.registry`)
	})
	killed := history.Now()
	for _, p := range []*worker.Process{holder, waiter, gatherer} {
		p.Kill()
	}
	testkit.Eventually(t, "nothing is listed, nor left", func() bool {
		found, err := next.Locks(ctx, nil)
		require.NoError(t, err)
		return len(found) == 0 && testkit.Value[int](t, s.control, "SELECT count(*)::int FROM pgbaton.registry") == 0
	})
	lab.Report(t, "names of killed processes are gone", lab.NewSpread([]int64{history.Now() - killed}), time.Minute)
}

func keys(all []pgbaton.LockInfo) (keys []pgbaton.Key) {
	for _, l := range all {
		keys = append(keys, l.Key)
	}
	return keys
}
