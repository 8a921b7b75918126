package pgbatonui

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

// counted makes readings that take some time, and counts them.
func counted(takes time.Duration) (r *readings, count func() int) {
	var n atomic.Int64
	r = newReadings(every, linger, func(context.Context, *snapshot) *snapshot {
		time.Sleep(takes)
		n.Add(1)
		return &snapshot{at: time.Now()}
	})
	return r, func() int {
		synctest.Wait()
		return int(n.Load())
	}
}

// TestReadings: one a second for all viewers, and none a minute after the last has gone.
func TestReadings(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, count := counted(0)
		defer r.close()
		time.Sleep(time.Hour)
		require.Zero(t, count())
		var leave []func()
		for range 50 {
			leave = append(leave, r.watch())
		}
		require.NotNil(t, r.first(t.Context()))
		time.Sleep(10*time.Second + time.Millisecond)
		require.Equal(t, 11, count())
		for _, l := range leave {
			l()
			l()
		}
		time.Sleep(linger + time.Second)
		stopped := count()
		require.InDelta(t, 71, stopped, 1)
		time.Sleep(time.Hour)
		require.Equal(t, stopped, count())
		defer r.watch()()
		old, _ := r.current()
		require.NotSame(t, old, r.first(t.Context()), "too old to be shown")
		require.Equal(t, stopped+1, count())
	})
}

// TestReadings_Bursts: viewers who come and go have no more readings than those who stay.
func TestReadings_Bursts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, count := counted(0)
		defer r.close()
		for range 100 {
			r.watch()()
			time.Sleep(100 * time.Millisecond)
		}
		require.LessOrEqual(t, count(), 11)
	})
}

// TestReadings_Slow: a server that takes long has half of its time for others.
func TestReadings_Slow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, count := counted(3 * time.Second)
		defer r.close()
		defer r.watch()()
		time.Sleep(time.Minute)
		require.InDelta(t, 10, count(), 1)
	})
}

// TestHistory_Bounded: after a day of readings there are the last fifteen minutes, with a gap where nobody watched.
func TestHistory_Bounded(t *testing.T) {
	t.Parallel()
	var h history
	begun := time.Unix(1_800_000_000, 0)
	now := begun
	for ; now.Before(begun.Add(24 * time.Hour)); now = now.Add(time.Second) {
		if now.After(begun.Add(24*time.Hour-10*time.Minute)) && now.Before(begun.Add(24*time.Hour-5*time.Minute)) {
			continue
		}
		h.add(now, measures{held: 3, waiting: int(now.Unix()/600) % 2})
	}
	held := h.chart(now, func(m measures) float64 { return float64(m.held) }, func(v float64) string { return fmt.Sprint(v) })
	require.Equal(t, "3", held.Peak)
	require.Equal(t, 2, strings.Count(held.Line, "M"), "one gap: %s", held.Line)
	require.Equal(t, 2, strings.Count(held.Area, "Z"))
	require.Less(t, len(held.Line), 100)
	later := h.chart(now.Add(time.Hour), func(m measures) float64 { return float64(m.held) }, func(v float64) string { return fmt.Sprint(v) })
	require.Empty(t, later.Line)
	require.Len(t, h.ring, points)
}

func TestLosses_Bounded(t *testing.T) {
	t.Parallel()
	l := newLosses()
	for i := range int64(1000) {
		l.add(loss{row: row{id: i}})
		l.add(loss{row: row{id: i}})
	}
	all := l.all()
	require.Len(t, all, mostLosses)
	require.Len(t, l.known, mostLosses)
	require.Equal(t, int64(999), all[0].id)
	l.add(loss{row: row{id: 999, since: 1}})
	require.Equal(t, int64(1), l.all()[0].since, "another one: the numbers began again")
}

// TestTrees: chains are below one another, circles end, and what is much is cut.
func TestTrees(t *testing.T) {
	t.Parallel()
	plainEntry := func(l pgbaton.LockInfo) entry { return entry{What: what(l), Who: l.Client} }
	r := showcase(time.Now())
	trees, more := newForest(r.locks, plainEntry).trees()
	require.Zero(t, more)
	require.Len(t, trees, 2)
	require.Equal(t, "lock invoice/42", trees[0].What)
	require.Equal(t, "billing-1", trees[0].Waiters[0].Who)
	require.Equal(t, "lock account/7", trees[0].Waiters[0].Below[0].What)
	require.Equal(t, "ledger-1", trees[0].Waiters[0].Below[0].Waiters[0].Who)
	require.Equal(t, "semaphore partner-api", trees[1].What)

	// a waits for two behind b, and b for one behind a
	circle := []pgbaton.LockInfo{
		{State: stateHeld, Key: pgbaton.Name("one"), Name: "one", Client: "a", BlockedBy: []int{2}},
		{State: stateHeld, Key: pgbaton.Name("two"), Name: "two", Client: "b", BlockedBy: []int{3}},
		{State: "waiting", Key: pgbaton.Name("two"), Name: "two", Client: "a", BlockedBy: []int{1}},
		{State: "waiting", Key: pgbaton.Name("one"), Name: "one", Client: "b", BlockedBy: []int{0}},
	}
	trees, _ = newForest(circle, plainEntry).trees()
	require.Len(t, trees, 1)
	require.True(t, trees[0].Waiters[0].Below[0].Waiters[0].Below[0].Circle)

	var many []pgbaton.LockInfo
	for i := range 400 {
		name := fmt.Sprint("k", i%200)
		for _, state := range []string{stateHeld, "waiting"} {
			many = append(many, pgbaton.LockInfo{State: state, Key: pgbaton.Name(name), Name: name})
		}
	}
	trees, more = newForest(many, plainEntry).trees()
	require.Len(t, trees, mostTrees)
	require.Equal(t, 100, more)
	for range 100 {
		many = append(many, pgbaton.LockInfo{State: "waiting", Key: pgbaton.Name("k0"), Name: "k0"})
	}
	trees, _ = newForest(many[len(many)-100:], plainEntry).trees()
	require.Len(t, trees[0].Waiters, mostWaiters)
	require.Equal(t, 50, trees[0].MoreWaiters)
}
