package semaphores

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/dbtest"
)

const mebibyte = 1 << 20

// churn acquires and releases in eight clients, as long as there is more to do. Each has one goroutine, so that nothing
// is handed over in memory: every pair writes twice.
func churn(t *testing.T, dsn, name string, more func(done int64) bool) int64 {
	t.Helper()
	const clients = 8
	ctx := context.Background()
	var group sync.WaitGroup
	var done atomic.Int64
	errs := make(chan error, clients)
	for range clients {
		s, err := lab.Client(t, dsn, nil).Semaphore(ctx, name, 0)
		require.NoError(t, err)
		group.Go(func() {
			for more(done.Load()) {
				if err := pair(ctx, s); err != nil {
					errs <- err
					return
				}
				done.Add(1)
			}
		})
	}
	group.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	return done.Load()
}

func pair(ctx context.Context, s *pgbaton.Semaphore) error {
	permit, err := s.Acquire(ctx, 1)
	if err != nil {
		return err
	}
	return permit.Release(ctx)
}

// requireSmall makes sure that the slots' table, with its indexes and maps, has not grown.
func requireSmall(t *testing.T, conn *pgx.Conn, what string, pairs int64, took time.Duration) {
	t.Helper()
	table := dbtest.Value[int64](t, conn, "SELECT pg_relation_size('pgbaton.slot')")
	total := dbtest.Value[int64](t, conn, "SELECT pg_total_relation_size('pgbaton.slot')")
	lab.Note(t, "bloat %s: %d pairs in %v, then the slots have %d KiB, with indexes %d KiB", what, pairs,
		took.Round(time.Millisecond), table>>10, total>>10)
	require.LessOrEqual(t, total, int64(mebibyte), what)
}

// keepSnapshot begins a transaction that sees the database as it is now.
func keepSnapshot(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	dbtest.Exec(t, conn, "BEGIN ISOLATION LEVEL REPEATABLE READ")
	require.NotEmpty(t, dbtest.Value[string](t, conn, "SELECT pg_current_snapshot()::text"))
}

// writeAnew lets the table of slots grow faster than by a load alone, and writes it anew if it can: the clients do it
// too, unless they are too busy.
func writeAnew(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	dbtest.Exec(t, conn, `UPDATE pgbaton.slot SET closed = closed
		WHERE semaphore = (SELECT id FROM pgbaton.semaphore WHERE name = 'ballast')`)
	dbtest.Exec(t, conn, "SELECT pgbaton.compact_slots(524288)")
}

// sqlFile names the file of the table of slots: another when it was written anew.
const sqlFile = "SELECT pg_relation_filenode('pgbaton.slot')::bigint"

func relationFile(conn *pgx.Conn) (file int64, err error) {
	err = conn.QueryRow(context.Background(), sqlFile).Scan(&file)
	return file, err
}

// Acquiring and releasing leaves nothing behind in the tables, also while somebody holds an old snapshot.
func TestBloat(t *testing.T) {
	pairs := int64(loadSize(t))
	t.Run("nobody looks", func(t *testing.T) {
		dsn := lab.Database(t)
		create(t, dsn, "s", 16)
		started := time.Now()
		done := churn(t, dsn, "s", func(done int64) bool { return done < pairs })
		requireSmall(t, dbtest.Connect(t, dsn), "without a snapshot", done, time.Since(started))
	})
	t.Run("an old snapshot", func(t *testing.T) {
		dsn := lab.Database(t)
		create(t, dsn, "s", 16)
		conn, old := dbtest.Connect(t, dsn), dbtest.Connect(t, dsn)
		keepSnapshot(t, old)
		file := dbtest.Value[int64](t, conn, sqlFile)
		var anew atomic.Bool
		over := make(chan struct{})
		go func() { // how soon depends on the machine: the table must be free for a moment when a client looks
			defer close(over)
			for end := time.Now().Add(5 * time.Minute); time.Now().Before(end) && !anew.Load(); time.Sleep(20 * time.Millisecond) {
				if now, err := relationFile(conn); err != nil || now != file {
					anew.Store(true)
				}
			}
		}()
		started := time.Now()
		done := churn(t, dsn, "s", func(done int64) bool {
			select {
			case <-over:
				return done < pairs
			default:
				return true
			}
		})
		<-over
		require.True(t, anew.Load(), "the clients write the table anew by themselves")
		lab.Note(t, "bloat under an old snapshot: %d pairs in %v, and the slots have %d KiB", done, time.Since(started).Round(time.Millisecond),
			dbtest.Value[int64](t, conn, "SELECT pg_relation_size('pgbaton.slot')")>>10)
		dbtest.WaitFor(t, conn, "SELECT pgbaton.compact_slots(524288) IS NOT NULL") // with nobody in it
		requireSmall(t, conn, "written anew under an old snapshot", done, time.Since(started))
		dbtest.Exec(t, old, "ROLLBACK")
	})
}

// Under an old snapshot the table of slots is written anew again and again, while processes claim and release. No
// permit is given twice by that, and none is lost.
func TestBloat_Exclusion(t *testing.T) {
	const capacity = 4
	dsn := lab.Database(t)
	s := create(t, dsn, "s", capacity)
	create(t, dsn, "ballast", 1000)
	conn, old := dbtest.Connect(t, dsn), dbtest.Connect(t, dsn)
	keepSnapshot(t, old)
	file, rewrites := dbtest.Value[int64](t, conn, sqlFile), 0
	var workers []*worker.Process
	var calls []*worker.Call
	for range 3 {
		p := worker.Start(t)
		workers = append(workers, p)
		calls = append(calls, p.Begin(worker.Command{
			Do: worker.Permits, DSN: dsn, Key: "s", N: 3, Goroutines: 8, For: 4 * time.Second,
		}))
	}
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for done := false; !done; {
		select {
		case <-calls[0].Settled():
			done = true
		case <-ticker.C:
			writeAnew(t, conn)
			if now := dbtest.Value[int64](t, conn, sqlFile); now != file {
				file, rewrites = now, rewrites+1
			}
		}
	}
	for _, call := range calls {
		require.Zero(t, call.Wait().Counts["lost"])
	}
	lab.Note(t, "bloat between processes: the table was written anew %d times", rewrites)
	require.Positive(t, rewrites, "it was to be written anew; without that this test proves nothing")
	dbtest.Exec(t, old, "ROLLBACK")
	_, overlaps := judge(t, fixed(capacity), workers...)
	require.Empty(t, overlaps)
	requireWhole(t, s, capacity, time.Second)
}
