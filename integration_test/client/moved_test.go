package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// moving is a client whose address leads to one of two places, which know nothing of each other.
type moving struct {
	*pgbaton.Client

	places [2]string
	admins [2]*pgx.Conn
	now    atomic.Int32
	name   string
}

func newMoving(t *testing.T, cfg *pgbaton.Config) *moving {
	t.Helper()
	m := &moving{places: [2]string{testkit.Migrated(t), testkit.Migrated(t)}, name: "moving_" + t.Name()[len(t.Name())-12:]}
	for i, place := range m.places {
		m.admins[i] = testkit.Connect(t, place)
	}
	config, err := pgxpool.ParseConfig(testkit.Named(t, m.places[0], m.name))
	require.NoError(t, err)
	config.BeforeConnect = func(_ context.Context, cfg *pgx.ConnConfig) error {
		there, err := pgx.ParseConfig(m.places[m.now.Load()])
		if err == nil {
			cfg.Database = there.Database
		}
		return err
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	m.Client, err = pgbaton.New(t.Context(), pool, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = m.Close(context.Background()) })
	return m
}

// sessions is how many sessions of the client there are in a place.
func (m *moving) sessions(t *testing.T, place int) int64 {
	t.Helper()
	return testkit.Value[int64](t, m.admins[place],
		"SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()", m.name)
}

// A client that holds so many locks that it opens another session, to an address that has come to lead elsewhere, loses
// what it held there before it is granted anything here.
func TestMoved_AnotherSession(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	m := newMoving(t, &pgbaton.Config{MaxHeld: 4000})
	other := testclient.New(t, m.places[0], nil) // stays
	theirs, err := other.Acquire(ctx, pgbaton.Name("theirs"))
	require.NoError(t, err)

	const many = 1200
	m.now.Store(1)
	var locks []*pgbaton.Lock
	for i := range many {
		lock, err := m.TryAcquire(ctx, pgbaton.ID(int64(i)))
		if err != nil {
			require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
			continue
		}
		locks = append(locks, lock)
	}
	require.Eventually(t, func() bool { return m.sessions(t, 1) > 0 }, testkit.Patience, 10*time.Millisecond, "it has moved")
	require.Eventually(t, func() bool { return m.sessions(t, 0) == 0 }, testkit.Patience, 10*time.Millisecond, "and left nothing behind")
	lost := 0
	for i, lock := range locks {
		if err := lock.Err(); err != nil {
			require.ErrorIs(t, err, pgbaton.ErrLost)
			require.Equal(t, "moved to another server", pgbaton.LossReasonOf(err))
			require.Equal(t, i, lost, "it was granted something there while it held this one here")
			lost++
		}
	}
	require.Positive(t, lost)
	there := testkit.Value[int64](t, m.admins[1], `SELECT count(*) FROM pg_locks
		WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND classid = 0 AND objid < $1`, many) // and not the lock by which the session for rows shows that it lives
	require.EqualValues(t, len(locks)-lost, there, "what it holds it holds there")
	require.NoError(t, theirs.Release(ctx))
}

// Only the connection that holds is ended when the address leads elsewhere: what is kept in rows goes with it.
func TestMoved_RowsToo(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	for round := range testkit.Rounds(5) {
		m := newMoving(t, nil)
		here := testclient.New(t, m.places[1], nil) // where the address will lead
		sem, err := m.Semaphore(ctx, "s", 1)
		require.NoError(t, err)
		permit, err := sem.Acquire(ctx, 1)
		require.NoError(t, err)
		lock, err := m.Acquire(ctx, pgbaton.Name("k"))
		require.NoError(t, err)
		once := fmt.Sprint("job ", round)
		require.NoError(t, here.Once(ctx, once, time.Hour, func(context.Context, *pgbaton.Lock) error { return nil }))

		m.now.Store(1)
		testkit.Exec(t, m.admins[0], `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE application_name = '`+m.name+`' AND datname = current_database() AND query LIKE '%advisory_lock%'`)
		<-lock.Done()
		<-permit.Done()
		require.Equal(t, "moved to another server", pgbaton.LossReasonOf(permit.Err()))

		err = m.Once(ctx, once, time.Hour, func(context.Context, *pgbaton.Lock) error { return errors.New("ran twice") })
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired)
		var notDue *pgbaton.NotDueError
		require.ErrorAs(t, err, &notDue)
		there, err := here.Semaphore(ctx, "s", 1)
		require.NoError(t, err)
		elsewhere, err := there.Acquire(ctx, 1)
		require.NoError(t, err)
		again, err := m.Semaphore(ctx, "s", 1)
		require.NoError(t, err)
		_, err = again.TryAcquire(ctx, 1)
		require.ErrorIs(t, err, pgbaton.ErrNotAcquired, "one permit in all")
		require.NoError(t, elsewhere.Release(ctx))
		require.Eventually(t, func() bool { return m.sessions(t, 0) == 0 }, testkit.Patience, 10*time.Millisecond)
	}
}

// An address that leads here and there all the time costs locks, and never the exclusion.
func TestMoved_BackAndForth(t *testing.T) {
	t.Parallel()
	m := newMoving(t, &pgbaton.Config{TTL: 2 * time.Second})
	ctx, cancel := context.WithCancel(testkit.Context(t))
	defer cancel()
	var wg sync.WaitGroup
	var holders, grants, overlaps atomic.Int64
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				lock, err := m.Acquire(ctx, pgbaton.Name("one"))
				if err != nil {
					continue
				}
				if lock.Err() == nil {
					grants.Add(1)
					if holders.Add(1) > 1 && lock.Err() == nil {
						overlaps.Add(1)
					}
					time.Sleep(time.Millisecond)
					holders.Add(-1)
				}
				_ = lock.Release(ctx)
			}
		})
	}
	for began := time.Now(); grants.Load() < 20 || time.Since(began) < testkit.Length(3*time.Second); {
		require.NoError(t, ctx.Err())
		m.now.Store(1 - m.now.Load())
		testkit.Exec(t, m.admins[0], `SELECT pg_terminate_backend(pid) FROM (
			SELECT pid FROM pg_stat_activity WHERE application_name = '`+m.name+`' AND datname = current_database() ORDER BY random() LIMIT 1) AS one`)
		time.Sleep(50 * time.Millisecond)
	}
	cancel()
	wg.Wait()
	t.Logf("%d grants, %d times somebody had not yet looked", grants.Load(), overlaps.Load())
}

// What the server is called in pg_stat_activity tells the pod.
func TestNew_ApplicationName(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	client, err := pgbaton.Open(ctx, testkit.With(t, dsn, "pool_max_conns", "7"), &pgbaton.Config{Name: "pod-7"})
	require.NoError(t, err)
	defer client.Close(ctx)
	require.Equal(t, int64(1), testkit.Value[int64](t, testkit.Connect(t, dsn),
		"SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbaton/pod-7' AND datname = current_database()"))
}

// A semaphore that was opened on one server is the one of its name on another, whatever ids they have there.
func TestMoved_Semaphores(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	m := newMoving(t, nil)
	here := testclient.New(t, m.places[1], nil)
	for _, name := range []string{"two", "one", "three"} { // other ids than on the first server
		_, err := here.Semaphore(ctx, name, len(name))
		require.NoError(t, err)
	}
	one, err := m.Semaphore(ctx, "one", 1)
	require.NoError(t, err)
	two, err := m.Semaphore(ctx, "two", 2)
	require.NoError(t, err)
	gone, err := m.Semaphore(ctx, "only there", 2)
	require.NoError(t, err)
	permit, err := one.Acquire(ctx, 1)
	require.NoError(t, err)

	m.now.Store(1)
	testkit.Exec(t, m.admins[0], `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '`+m.name+`' AND datname = current_database()`)
	<-permit.Done()
	all, err := one.Acquire(ctx, 3) // of "one" there, which has three
	require.NoError(t, err)
	for name, free := range map[string]int{"one": 0, "two": 3, "three": 5} {
		sem, err := here.Semaphore(ctx, name, 0)
		require.NoError(t, err)
		available, err := testclient.Available(ctx, sem)
		require.NoError(t, err)
		require.Equal(t, free, available, name)
	}
	require.NoError(t, two.Resize(ctx, 4))
	capacity, err := testclient.Capacity(ctx, two)
	require.NoError(t, err)
	require.Equal(t, 4, capacity)
	require.NoError(t, all.Release(ctx))
	_, err = gone.Acquire(ctx, 1)
	require.ErrorIs(t, err, pgbaton.ErrNotFound)
	_, err = testclient.Capacity(ctx, gone)
	require.ErrorIs(t, err, pgbaton.ErrNotFound)
}
