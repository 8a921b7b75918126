package client

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/semaphore"
	"github.com/pgbaton/pgbaton/internal/session"
	"github.com/pgbaton/pgbaton/internal/sidecar"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// pooledLine is the semaphore s for a client that is behind a pooler.
func pooledLine(t *testing.T, dsn string, capacity int) *semaphore.Line {
	t.Helper()
	cfg, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	dialer := &session.Dialer{Config: cfg, TTL: 15 * time.Second}
	l := sidecar.New(sidecar.Config{
		TTL: dialer.TTL, Name: "pooled", Pooled: true, Report: func(string, error) {}, Dial: dialer.DialPooled, Hung: func() {},
	})
	d := semaphore.New(semaphore.Config{TTL: dialer.TTL, Sidecar: l, Pooled: true, Report: func(string, error) {}})
	t.Cleanup(func() {
		d.Close(context.Background())
		require.NoError(t, l.Close(context.Background()))
		d.Wait()
	})
	admin := testkit.Connect(t, dsn)
	return d.Line(testkit.Value[int32](t, admin, "SELECT id FROM pgbaton.semaphore WHERE name = 's'"), "s",
		advisory.Key{ID: testkit.Value[int64](t, admin, "SELECT gate FROM pgbaton.semaphore WHERE name = 's'")}, capacity)
}

// Three clients behind a pooler, which always have somebody waiting, do not keep one that is not from its turn, nor
// the other way round.
func TestSemaphore_PoolersAndGatesTakeTurns(t *testing.T) {
	t.Parallel()
	type release func()
	for _, behind := range []bool{true, false} {
		_, dsn, _ := openSemaphore(t, 1, 0)
		direct := func() func(context.Context) (release, error) {
			s, err := testclient.New(t, dsn, nil).Semaphore(t.Context(), "s", 1)
			require.NoError(t, err)
			return func(ctx context.Context) (release, error) {
				p, err := s.Acquire(ctx, 1)
				return func() { _ = p.Release(ctx) }, err
			}
		}
		pooled := func() func(context.Context) (release, error) {
			line := pooledLine(t, dsn, 1)
			return func(ctx context.Context) (release, error) {
				p, err := line.Acquire(ctx, 1, false)
				return func() { _ = p.Release() }, err
			}
		}
		many, lone := pooled, direct
		if !behind {
			many, lone = direct, pooled
		}
		ctx, stop := context.WithCancel(t.Context())
		var busy sync.WaitGroup
		for range 3 {
			acquire := many()
			for range 2 {
				busy.Go(func() {
					for {
						done, err := acquire(ctx)
						if err != nil {
							return
						}
						time.Sleep(30*time.Millisecond + rand.N(20*time.Millisecond))
						done()
					}
				})
			}
		}
		time.Sleep(200 * time.Millisecond)
		acquire, waits := lone(), []time.Duration(nil)
		for range 4 {
			wait, cancel := context.WithTimeout(ctx, testkit.Patience)
			started := time.Now()
			done, err := acquire(wait)
			cancel()
			require.NoError(t, err, "many behind a pooler: %v", behind)
			done()
			waits = append(waits, time.Since(started))
		}
		t.Logf("many behind a pooler: %v; the lone one's longest wait: %v", behind, slices.Max(waits))
		stop()
		busy.Wait()
	}
}

// A process that has lost its session for rows, and gets no other, does not keep the permits from those who have one.
func TestSemaphore_GateWithoutASession(t *testing.T) {
	t.Parallel()
	const ttl = time.Hour // nobody waits for its end
	s, dsn, admin := openSemaphore(t, 1, ttl)
	ctx := testkit.Context(t)
	held, err := s.Acquire(ctx, 1)
	require.NoError(t, err)
	first, proxy := through(t, testkit.Named(t, dsn, "first"), ttl, 1)
	var others []*pgbaton.Semaphore // two, since within a process a permit is handed over without the gate
	for range 2 {
		other, err := testclient.New(t, dsn, &pgbaton.Config{TTL: ttl}).Semaphore(ctx, "s", 1)
		require.NoError(t, err)
		others = append(others, other)
	}
	wait, cancel := context.WithCancel(ctx)
	var waiting sync.WaitGroup
	waiting.Go(func() { _, _ = first.Acquire(wait, 1) })
	testkit.WaitFor(t, admin, `SELECT EXISTS (SELECT FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid), pgbaton.semaphore AS s
		WHERE l.locktype = 'advisory' AND a.application_name = 'first' AND a.datname = current_database() AND a.query ~ 'FROM pgbaton[.]wait_for_turns'
			AND (l.classid::bigint << 32 | l.objid::bigint) = s.gate)`)
	proxy.Refuse(true) // what is open stays open
	testkit.WaitFor(t, admin, `SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
		WHERE application_name = 'first' AND datname = current_database() AND query ~ 'claim_slots|enlist|LISTEN' LIMIT 1`)
	// The others come to the gate behind the first, which has to leave it: it must not come back behind one of them.
	bounded, end := context.WithTimeout(ctx, testkit.Patience)
	defer end()
	got := make(chan *pgbaton.Permit, 1)
	next := func(other *pgbaton.Semaphore) {
		p, err := other.Acquire(bounded, 1)
		if err != nil {
			t.Error(err)
		}
		got <- p
	}
	go next(others[0])
	require.NoError(t, held.Release(ctx))
	for i := range 5 {
		p := <-got
		require.NotNil(t, p)
		go next(others[(i+1)%2]) // and waits, since there is one permit
		time.Sleep(100 * time.Millisecond)
		require.NoError(t, p.Release(ctx))
	}
	p := <-got
	require.NotNil(t, p)
	require.NoError(t, p.Release(ctx))
	cancel()
	waiting.Wait()
}

// Tries that share a statement are judged each by itself.
func TestSemaphore_TryBesideALargerTry(t *testing.T) {
	t.Parallel()
	s, _, _ := openSemaphore(t, 4, 0)
	ctx := testkit.Context(t)
	held, err := s.Acquire(ctx, 2)
	require.NoError(t, err)
	for range testkit.Rounds(300) {
		var tries sync.WaitGroup
		for _, n := range []int{1, 3, 1} { // the first is under way when the others come, so these share a statement
			tries.Go(func() {
				p, err := s.TryAcquire(ctx, n)
				if n == 3 {
					require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
					return
				}
				if err != nil {
					t.Errorf("1 of 2 that are free: %v", err)
					return
				}
				_ = p.Release(ctx)
			})
			for began := time.Now(); time.Since(began) < 20*time.Microsecond; {
			}
		}
		tries.Wait()
	}
	require.NoError(t, held.Release(ctx))
}

// A try is refused while somebody waits, and not any more when nobody does.
func TestSemaphore_TryAndWaiters(t *testing.T) {
	t.Parallel()
	s, _, _ := openSemaphore(t, 2, 0)
	ctx := testkit.Context(t)
	for range testkit.Rounds(50) {
		held, err := s.Acquire(ctx, 1)
		require.NoError(t, err)
		wait, cancel := context.WithCancel(ctx)
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			_, _ = s.Acquire(wait, 2)
		}()
		require.Eventually(t, func() bool {
			p, err := s.TryAcquire(ctx, 1)
			if err == nil {
				_ = p.Release(ctx)
			}
			return err != nil
		}, testkit.Patience, time.Millisecond, "it waits for two, and one is free")
		cancel()
		<-gone
		var p *pgbaton.Permit
		require.Eventually(t, func() bool { // its place at the gate may be given up a moment later
			p, err = s.TryAcquire(ctx, 1)
			return err == nil
		}, testkit.Patience, time.Millisecond)
		require.NoError(t, p.Release(ctx))
		require.NoError(t, held.Release(ctx))
	}
}

// When the first in line gives up, the next is served at once if it wants less.
func TestSemaphore_NextAfterTheFirstGaveUp(t *testing.T) {
	t.Parallel()
	s, _, _ := openSemaphore(t, 4, 0)
	ctx := testkit.Context(t)
	held, err := s.Acquire(ctx, 2)
	require.NoError(t, err)
	var sum time.Duration
	rounds := time.Duration(testkit.Rounds(15))
	for range rounds {
		wait, cancel := context.WithCancel(ctx)
		go func() { _, _ = s.Acquire(wait, 4) }()
		require.Eventually(t, func() bool {
			p, err := s.TryAcquire(ctx, 1)
			if err == nil {
				_ = p.Release(ctx)
			}
			return err != nil
		}, testkit.Patience, time.Millisecond)
		got := make(chan time.Time)
		go func() {
			p, err := s.Acquire(ctx, 1)
			at := time.Now()
			if err == nil {
				_ = p.Release(ctx)
			}
			got <- at
		}()
		time.Sleep(20 * time.Millisecond)
		gaveUp := time.Now()
		cancel()
		sum += (<-got).Sub(gaveUp)
	}
	testkit.Figure(t, "when the first in line gives up, the next is served after %v (a poll would take 150 ms on average)", sum/rounds)
	require.NoError(t, held.Release(ctx))
}

// Who wants more than there is is told at once, also behind others who wait at the gate, and when the capacity is
// changed elsewhere.
func TestSemaphore_OverCapacityBehindOthers(t *testing.T) {
	t.Parallel()
	s, dsn, _ := openSemaphore(t, 4, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 2*testkit.Patience)
	defer cancel()
	held, err := s.Acquire(ctx, 4)
	require.NoError(t, err)
	var waiting sync.WaitGroup
	wait, stop := context.WithCancel(ctx)
	second, err := testclient.New(t, dsn, nil).Semaphore(ctx, "s", 4)
	require.NoError(t, err)
	third, err := testclient.New(t, dsn, nil).Semaphore(ctx, "s", 4)
	require.NoError(t, err)
	for _, other := range []*pgbaton.Semaphore{second, third} {
		waiting.Go(func() { _, _ = other.Acquire(wait, 1) })
		time.Sleep(200 * time.Millisecond)
	}
	_, err = third.Acquire(ctx, 5)
	require.ErrorIs(t, err, pgbaton.ErrCapacityMismatch)

	told := make(chan error, 1)
	go func() {
		_, err := third.Acquire(ctx, 3)
		told <- err
	}()
	time.Sleep(200 * time.Millisecond)
	require.NoError(t, s.Resize(ctx, 2))
	require.ErrorIs(t, soon(t, told), pgbaton.ErrCapacityMismatch)
	stop()
	waiting.Wait()
	require.NoError(t, held.Release(ctx))
}

// A client that holds as many locks as it may still waits for permits, though it cannot stand at the gate.
func TestSemaphore_WaitWithoutRoomForALock(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	client := testclient.New(t, testkit.Migrated(t), &pgbaton.Config{MaxHeld: 1})
	s, err := client.Semaphore(ctx, "s", 1)
	require.NoError(t, err)
	lock, err := client.Acquire(ctx, pgbaton.Name("k"))
	require.NoError(t, err)
	held, err := s.Acquire(ctx, 1)
	require.NoError(t, err)
	got := make(chan error, 1)
	go func() {
		p, err := s.Acquire(ctx, 1)
		if err == nil {
			err = p.Release(ctx)
		}
		got <- err
	}()
	select {
	case err := <-got:
		require.Fail(t, "it does not wait", "%v", err)
	case <-time.After(1500 * time.Millisecond): // longer than a permit is handed over in the process
	}
	require.NoError(t, held.Release(ctx))
	require.NoError(t, soon(t, got))
	require.NoError(t, lock.Release(ctx))
}

// Many waits that end together end soon.
func TestSemaphore_ManyWaitsEndTogether(t *testing.T) {
	s, _, _ := openSemaphore(t, 1, 0)
	held, err := s.Acquire(t.Context(), 1)
	require.NoError(t, err)
	deadline := time.Now().Add(3 * time.Second)
	ctx, cancel := context.WithDeadline(t.Context(), deadline)
	defer cancel()
	var waits sync.WaitGroup
	many := testkit.Rounds(10_000)
	for range many {
		waits.Go(func() {
			if _, err := s.Acquire(ctx, 1); err == nil {
				t.Error("it was granted")
			}
		})
	}
	waits.Wait()
	testkit.Figure(t, "the last of %d waits that end together returned %v after the end", many, time.Since(deadline))
	require.Less(t, time.Since(deadline), testkit.Patience, "they wait for one another")
	require.NoError(t, held.Release(t.Context()))
}

// SKIP LOCKED may miss a slot that another transaction only looks at. As long as there is one for each, no try is
// refused.
func TestSemaphore_NoneIsRefusedThatIsFree(t *testing.T) {
	t.Parallel()
	const clients = 6
	_, dsn, _ := openSemaphore(t, clients, 0)
	var tries sync.WaitGroup
	deadline := time.Now().Add(testkit.Length(2 * time.Second))
	for range clients {
		other, err := testclient.New(t, dsn, nil).Semaphore(t.Context(), "s", clients)
		require.NoError(t, err)
		tries.Go(func() {
			for time.Now().Before(deadline) {
				p, err := other.TryAcquire(t.Context(), 1)
				if err == nil {
					err = p.Release(t.Context())
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	tries.Wait()
}
