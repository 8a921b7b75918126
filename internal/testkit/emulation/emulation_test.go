package emulation_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/emulation"
)

const conflict = "40001"

var modes = []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"}

// bench is a database with an engine in front of it.
type bench struct {
	*emulation.Proxy

	control *pgx.Conn // past the proxy
}

func newBench(t *testing.T, habits emulation.Habits) *bench {
	t.Helper()
	dsn := testkit.Empty(t)
	proxy, err := emulation.Start(dsn, habits)
	require.NoError(t, err)
	t.Cleanup(proxy.Close)
	b := &bench{Proxy: proxy, control: testkit.Connect(t, dsn)}
	testkit.Exec(t, b.control, "CREATE TABLE kept (n int PRIMARY KEY)")
	return b
}

// connect opens a connection through the proxy, in a mode of pgx's.
func (b *bench) connect(t *testing.T, mode string) *pgx.Conn {
	t.Helper()
	return testkit.Connect(t, testkit.With(t, b.URL(), "default_query_exec_mode", mode))
}

func (b *bench) kept(t *testing.T) []int {
	t.Helper()
	rows, err := b.control.Query(t.Context(), "SELECT n FROM kept ORDER BY n")
	require.NoError(t, err)
	kept, err := pgx.CollectRows(rows, pgx.RowTo[int])
	require.NoError(t, err)
	return kept
}

func requireConflict(t *testing.T, err error) {
	t.Helper()
	var pgErr *pgconn.PgError
	require.ErrorAs(t, err, &pgErr)
	require.Equal(t, conflict, pgErr.Code, pgErr.Message)
}

func insert(ctx context.Context, db interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}, n int,
) error {
	_, err := db.Exec(ctx, "INSERT INTO kept VALUES ($1)", n)
	return err
}

// Without habits nobody notices the proxy.
func TestProxy_PassesEverything(t *testing.T) { //nolint:tparallel // its subtests share counts and tables
	t.Parallel()
	b := newBench(t, emulation.Habits{})
	for i, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			ctx := testkit.Context(t)
			conn := b.connect(t, mode)
			for n := range 3 {
				require.NoError(t, insert(ctx, conn, 100*i+n))
			}
			require.Equal(t, 3, testkit.Value[int](t, conn, "SELECT count(*) FROM kept WHERE n BETWEEN $1 AND $1 + 99", 100*i))
			_, err := conn.Exec(ctx, "SELECT 1/0")
			require.ErrorContains(t, err, "22012")
			var batch pgx.Batch
			batch.Queue("SELECT 1")
			batch.Queue("SELECT repeat('x', 100000)")
			require.NoError(t, conn.SendBatch(ctx, &batch).Close())
			n, err := conn.CopyFrom(ctx, pgx.Identifier{"kept"}, []string{"n"}, pgx.CopyFromRows([][]any{{100*i + 50}, {100*i + 51}}))
			require.NoError(t, err)
			require.Equal(t, int64(2), n)
			_, err = conn.Exec(ctx, "LISTEN news; NOTIFY news, 'read'")
			require.NoError(t, err)
			news, err := conn.WaitForNotification(ctx)
			require.NoError(t, err)
			require.Equal(t, "read", news.Payload)
		})
	}
	counts := b.Counts()
	require.Zero(t, counts.Faults())
	require.Equal(t, int64(len(modes)), counts.Connections)
	require.Greater(t, counts.Commits, int64(5*len(modes)))
}

// A request to cancel reaches the statement that it is for.
func TestProxy_PassesCancelRequests(t *testing.T) {
	t.Parallel()
	b := newBench(t, emulation.Habits{Delay: time.Millisecond})
	conn := b.connect(t, "exec")
	failed := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), "SELECT pg_sleep(600)")
		failed <- err
	}()
	testkit.WaitFor(t, b.control, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND query ~ '^SELECT pg_sleep')")
	require.NoError(t, conn.PgConn().CancelRequest(testkit.Context(t)))
	require.ErrorContains(t, <-failed, "57014")
	require.Equal(t, int64(1), b.Counts().Cancels)
}

// A statement that fails has done nothing, and takes its transaction with it.
func TestProxy_FailsStatements(t *testing.T) { //nolint:tparallel // its subtests share counts and tables
	t.Parallel()
	b := newBench(t, emulation.Habits{FailStatements: 1})
	for i, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			ctx := testkit.Context(t)
			conn := b.connect(t, mode)
			requireConflict(t, insert(ctx, conn, i))
			requireConflict(t, insert(ctx, conn, i)) // the connection goes on
			for _, harmless := range []string{"SET application_name = 'x'", "SHOW application_name", "BEGIN", "ROLLBACK"} {
				_, err := conn.Exec(ctx, harmless)
				require.NoError(t, err, harmless)
			}
			tx, err := conn.Begin(ctx)
			require.NoError(t, err)
			requireConflict(t, insert(ctx, tx, i))
			b.Set(emulation.Habits{})
			defer b.Set(emulation.Habits{FailStatements: 1})
			require.ErrorContains(t, insert(ctx, tx, i), "25P02")
			require.ErrorIs(t, tx.Commit(ctx), pgx.ErrTxCommitRollback)
			require.NoError(t, insert(ctx, conn, 100+i))
		})
	}
	require.Equal(t, []int{100, 101, 102, 103, 104}, b.kept(t))
	require.Equal(t, int64(3*len(modes)), b.Counts().FailedStatements)
	require.Equal(t, b.Counts().Faults(), b.Counts().FailedStatements)
}

// A commit that fails has undone everything, after the answers to it came; and the transaction is over.
func TestProxy_FailsCommits(t *testing.T) { //nolint:tparallel // its subtests share counts and tables
	t.Parallel()
	b := newBench(t, emulation.Habits{FailCommits: 1})
	for i, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			ctx := testkit.Context(t)
			conn := b.connect(t, mode)
			requireConflict(t, insert(ctx, conn, i))
			tx, err := conn.Begin(ctx)
			require.NoError(t, err)
			require.NoError(t, insert(ctx, tx, i))
			requireConflict(t, tx.Commit(ctx))
			require.Equal(t, byte('I'), conn.PgConn().TxStatus())
			require.False(t, conn.IsClosed())
			tx, err = conn.Begin(ctx)
			require.NoError(t, err)
			require.NoError(t, insert(ctx, tx, i))
			require.NoError(t, tx.Rollback(ctx), "what is rolled back does not fail")
			var batch pgx.Batch
			batch.Queue("INSERT INTO kept VALUES (1000)")
			batch.Queue("INSERT INTO kept VALUES (1001)")
			requireConflict(t, conn.SendBatch(ctx, &batch).Close())
			_, err = conn.PgConn().Exec(ctx, "BEGIN; INSERT INTO kept VALUES (2000); COMMIT; SELECT 1").ReadAll()
			requireConflict(t, err)
			require.Equal(t, byte('I'), conn.PgConn().TxStatus())
			b.Set(emulation.Habits{})
			defer b.Set(emulation.Habits{FailCommits: 1})
			require.NoError(t, insert(ctx, conn, 100+i))
		})
	}
	require.Equal(t, []int{100, 101, 102, 103, 104}, b.kept(t))
	require.Equal(t, int64(4*len(modes)), b.Counts().FailedCommits)
}

// Of a pipeline, each batch up to a Sync is a transaction; those before and after the one that fails go on.
func TestProxy_FailsOneOfAPipeline(t *testing.T) {
	t.Parallel()
	for name, habits := range map[string]emulation.Habits{
		"Statements": {Seed: 7, FailStatements: 0.3}, "Commits": {Seed: 7, FailCommits: 0.3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, habits)
			conn := b.connect(t, "exec").PgConn()
			ctx := testkit.Context(t)
			const batches = 40
			p := conn.StartPipeline(ctx)
			for i := range batches {
				for j := range 2 {
					n := pgtype.Int4OID
					p.SendQueryParams("INSERT INTO kept VALUES ($1)", [][]byte{fmt.Append(nil, 10*i+j)}, []uint32{uint32(n)}, nil, nil)
				}
				p.SendPipelineSync()
			}
			require.NoError(t, p.Flush())
			var want []int
			for i := range batches {
				err := batchAnswer(t, p)
				if err == nil {
					want = append(want, 10*i, 10*i+1)
				} else {
					requireConflict(t, err)
				}
			}
			require.NoError(t, p.Close())
			require.Equal(t, want, b.kept(t))
			require.NotEmpty(t, want)
			require.Positive(t, b.Counts().Faults())
			require.Len(t, want, 2*(batches-int(b.Counts().Faults())))
		})
	}
}

// batchAnswer reads the answers up to a Sync, and returns the error among them.
func batchAnswer(t *testing.T, p *pgconn.Pipeline) (failed error) {
	t.Helper()
	for {
		results, err := p.GetResults()
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		switch results := results.(type) {
		case *pgconn.PipelineSync:
			return failed
		case *pgconn.ResultReader:
			_, err := results.Close()
			failed = errors.Join(failed, err)
		default:
			require.Fail(t, "an answer to nothing", "%T", results)
		}
	}
}

// A commit whose answer is lost is a commit.
func TestProxy_DropsCommits(t *testing.T) { //nolint:tparallel // its subtests share counts and tables
	t.Parallel()
	b := newBench(t, emulation.Habits{DropCommits: 1})
	for i, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			ctx := testkit.Context(t)
			b.Set(emulation.Habits{DropCommits: 1})
			conn := b.connect(t, mode)
			err := insert(ctx, conn, i)
			require.Error(t, err)
			require.True(t, conn.IsClosed(), err)
			conn = b.connect(t, mode)
			tx, err := conn.Begin(ctx)
			require.NoError(t, err)
			require.NoError(t, insert(ctx, tx, 100+i), "it is no commit")
			_, err = tx.Exec(ctx, "SELECT 1/0")
			require.ErrorContains(t, err, "22012")
			require.ErrorIs(t, tx.Commit(ctx), pgx.ErrTxCommitRollback, "that is none, too")
			tx, err = conn.Begin(ctx)
			require.NoError(t, err)
			require.NoError(t, insert(ctx, tx, 200+i))
			require.Error(t, tx.Commit(ctx))
			require.True(t, conn.IsClosed())
		})
	}
	require.Equal(t, []int{0, 1, 2, 3, 4, 200, 201, 202, 203, 204}, b.kept(t))
	require.Equal(t, int64(2*len(modes)), b.Counts().DroppedCommits)
}

// The delay is of each round trip: what is sent together is answered together.
func TestProxy_Delays(t *testing.T) {
	t.Parallel()
	const delay, rounds = 20 * time.Millisecond, 5
	b := newBench(t, emulation.Habits{Delay: delay})
	conn := b.connect(t, "exec")
	began := time.Now()
	for range rounds {
		testkit.Exec(t, conn, "SELECT 1")
	}
	require.GreaterOrEqual(t, time.Since(began), rounds*delay)
	began = time.Now()
	var batch pgx.Batch
	for range 100 {
		batch.Queue("SELECT 1")
	}
	require.NoError(t, conn.SendBatch(testkit.Context(t), &batch).Close())
	testkit.Figure(t, "a batch of 100 statements, each answer %v late, took %v", delay, time.Since(began))
}

// The share is what was asked for, and a seed repeats the choices.
func TestProxy_IsRandomBySeed(t *testing.T) {
	t.Parallel()
	const statements = 600
	run := func(seed uint64) string {
		b := newBench(t, emulation.Habits{Seed: seed, FailStatements: 0.3})
		conn := b.connect(t, "exec")
		var fates strings.Builder
		for i := range statements {
			if err := insert(testkit.Context(t), conn, i); err != nil {
				requireConflict(t, err)
				fates.WriteByte('!')
			} else {
				fates.WriteByte('.')
			}
		}
		require.Equal(t, int64(statements), b.Counts().Statements)
		require.Equal(t, int64(strings.Count(fates.String(), "!")), b.Counts().FailedStatements)
		return fates.String()
	}
	first := run(1)
	require.InDelta(t, 0.3*statements, strings.Count(first, "!"), 0.08*statements)
	require.Equal(t, first, run(1))
	require.NotEqual(t, first, run(2))
}
