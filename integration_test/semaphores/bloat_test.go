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
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
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
		s, err := testclient.New(t, dsn, nil).Semaphore(ctx, name, 0)
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

// tellSize tells and returns how large the slots' table is, with its indexes and maps. In a run for figures it has to be
// small.
func tellSize(t *testing.T, conn *pgx.Conn, what string, pairs int64, took time.Duration) int64 {
	t.Helper()
	table := testkit.Value[int64](t, conn, "SELECT pg_relation_size('pgbaton.slot')")
	total := testkit.Value[int64](t, conn, "SELECT pg_total_relation_size('pgbaton.slot')")
	testkit.Figure(t, "bloat %s: %d pairs in %v, then the slots have %d KiB, with indexes %d KiB", what, pairs,
		took.Round(time.Millisecond), table>>10, total>>10)
	if lab.Figures() {
		require.LessOrEqual(t, total, int64(mebibyte), what)
	}
	return total
}

// keepSnapshot begins a transaction that sees the database as it is now.
func keepSnapshot(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	testkit.Exec(t, conn, "BEGIN ISOLATION LEVEL REPEATABLE READ")
	require.NotEmpty(t, testkit.Value[string](t, conn, "SELECT pg_current_snapshot()::text"))
}

// writeAnew lets the table of slots grow faster than by a load alone, and writes it anew if it can: the clients do it
// too, unless they are too busy.
func writeAnew(t *testing.T, conn *pgx.Conn) error {
	t.Helper()
	testkit.Exec(t, conn, `DO $$ BEGIN
		WHILE pg_relation_size('pgbaton.slot') <= 524288 LOOP -- in one transaction no row makes room for another
			UPDATE pgbaton.slot SET closed = closed WHERE semaphore = (SELECT id FROM pgbaton.semaphore WHERE name = 'ballast');
		END LOOP;
	END $$`)
	_, err := conn.Exec(t.Context(), "SELECT pgbaton.compact_slots(524288)")
	return err
}

// sqlFile names the file of the table of slots: another when it was written anew.
const sqlFile = "SELECT pg_relation_filenode('pgbaton.slot')::bigint"

func relationFile(conn *pgx.Conn) (file int64, err error) {
	err = conn.QueryRow(context.Background(), sqlFile).Scan(&file)
	return file, err
}

// Acquiring and releasing leaves nothing behind in the tables, also while somebody holds an old snapshot.
func TestBloat(t *testing.T) {
	t.Parallel()
	pairs := int64(loadSize(t))
	t.Run("nobody looks", func(t *testing.T) {
		t.Parallel()
		dsn := lab.Database(t)
		s := create(t, dsn, "s", 16)
		conn := testkit.Connect(t, dsn)
		started := time.Now()
		var done int64
		t.Run("eight clients", func(t *testing.T) { // its clients are closed before the lone one goes on
			done = churn(t, dsn, "s", func(done int64) bool { return done < pairs })
		})
		tellSize(t, conn, "without a snapshot", done, time.Since(started))
		// An ANALYZE under way, or a client that was stopped in the middle of a statement, keeps others from cleaning up for a
		// while. Without cleaning up each pair would need 200 bytes and more.
		const few = 500
		testkit.Eventually(t, "a lone client finds room in what is there", func() bool {
			before := testkit.Value[int64](t, conn, "SELECT pg_total_relation_size('pgbaton.slot')")
			for range few {
				require.NoError(t, pair(t.Context(), s))
			}
			done += few
			return tellSize(t, conn, "without a snapshot, and after a lone client", done, time.Since(started)) <= before
		})
	})
	t.Run("an old snapshot", func(t *testing.T) {
		t.Parallel()
		dsn := lab.Database(t)
		create(t, dsn, "s", 16)
		conn, old := testkit.Connect(t, dsn), testkit.Connect(t, dsn)
		keepSnapshot(t, old)
		file := testkit.Value[int64](t, conn, sqlFile)
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
		tellSize(t, conn, "under an old snapshot", done, time.Since(started))
		testkit.WaitFor(t, conn, "SELECT pgbaton.compact_slots(1) IS NOT NULL") // with nobody in it
		// The 16 slots and no version of them that is over, though the snapshot could still see it.
		require.LessOrEqual(t, tellSize(t, conn, "written anew under an old snapshot", done, time.Since(started)), int64(mebibyte))
		testkit.Exec(t, old, "ROLLBACK")
	})
}

// Under an old snapshot the table of slots is written anew again and again, while processes claim and release. No
// permit is given twice by that, and none is lost.
func TestBloat_Exclusion(t *testing.T) {
	t.Parallel()
	const capacity = 4
	dsn := lab.Database(t)
	s := create(t, dsn, "s", capacity)
	create(t, dsn, "ballast", 1000)
	conn, old := testkit.Connect(t, dsn), testkit.Connect(t, dsn)
	keepSnapshot(t, old)
	file, rewrites := testkit.Value[int64](t, conn, sqlFile), 0
	var workers []*worker.Process
	var calls []*worker.Call
	for range 3 {
		p := worker.Start(t)
		workers = append(workers, p)
		calls = append(calls, p.Begin(worker.Command{
			Do: worker.Permits, DSN: dsn, Key: "s", N: 3, Goroutines: 8, For: lab.Hang,
		}))
	}
	begun, load := time.Now(), testkit.Brief(4*time.Second, 2*time.Second)
	testkit.Eventually(t, "the table is written anew, and the processes are at work meanwhile", func() bool {
		time.Sleep(50 * time.Millisecond)
		require.NoError(t, writeAnew(t, conn))
		if now := testkit.Value[int64](t, conn, sqlFile); now != file {
			if grants, _ := workers[0].History(); len(grants) > 0 {
				rewrites++
			}
			file = now
		}
		return rewrites > 2 && time.Since(begun) > load
	})
	for i, call := range calls {
		workers[i].Do(worker.Command{Do: worker.Stop})
		require.Zero(t, call.Wait().Counts["lost"])
	}
	testkit.Figure(t, "bloat between processes: the table was written anew %d times", rewrites)
	testkit.Exec(t, old, "ROLLBACK")
	_, overlaps := judge(t, fixed(capacity), workers...)
	require.Empty(t, overlaps)
	requireWhole(t, s, capacity)
}
