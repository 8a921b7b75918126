package rowtest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
)

// jobs makes a table of jobs whose state decides in which partition they are.
func (b *bundle) jobs(ctx context.Context, t *testing.T, count int) pgx.Identifier {
	t.Helper()
	table := pgx.Identifier{b.table[0], "jobs"}
	name := table.Sanitize()
	b.exec(ctx, t, "CREATE TABLE "+name+
		" (id int, state text, runs int NOT NULL DEFAULT 0, version int NOT NULL DEFAULT 1, PRIMARY KEY (id, state)) PARTITION BY LIST (state)")
	for _, state := range []string{"ready", "done"} {
		partition := pgx.Identifier{b.table[0], "jobs_" + state}.Sanitize()
		b.exec(ctx, t, "CREATE TABLE "+partition+" PARTITION OF "+name+" FOR VALUES IN ('"+state+"')")
	}
	_, err := b.pool.Exec(ctx, "INSERT INTO "+name+" SELECT i, 'ready' FROM generate_series(1, $1::int) i", count)
	require.NoError(t, err)
	return table
}

func (s *suite) partitions(t *testing.T) {
	t.Helper()
	t.Run("Partitions/WorkersMoveWhatTheyClaim", s.movingJobs)
	t.Run("Partitions/LockFollowsRowThatMoves", func(t *testing.T) {
		ctx, b := s.setup(t)
		table := b.jobs(ctx, t, 10)
		for i, wait := range []time.Duration{0, 30 * time.Second} {
			b.movesWhile(ctx, t, table, 1+i, func() {
				tx := b.begin(t)
				state, err := pgbaton.LockRow[string](ctx, tx, table, pgbaton.Values{"id": 1 + i},
					&pgbaton.RowOpts{Wait: wait, Column: "state"})
				require.NoError(t, err)
				require.Equal(t, "done", state)
				require.NoError(t, tx.Commit(ctx))
			})
			b.movesWhile(ctx, t, table, 4+i, func() {
				tx := b.begin(t)
				states, err := pgbaton.LockRows[string](ctx, tx, table, []pgbaton.Values{{"id": 4 + i}, {"id": 3}},
					&pgbaton.RowOpts{Wait: wait, Column: "state"})
				require.NoError(t, err)
				require.Equal(t, []string{"done", "ready"}, states)
				require.NoError(t, tx.Commit(ctx))
			})
		}
	})
	t.Run("Partitions/LockSeesRowLeaveItsPartition", func(t *testing.T) {
		ctx, b := s.setup(t)
		table := b.jobs(ctx, t, 1)
		b.movesWhile(ctx, t, table, 1, func() {
			_, err := pgbaton.LockRow[struct{}](ctx, b.begin(t), pgx.Identifier{b.table[0], "jobs_ready"}, keyOne, nil)
			require.ErrorIs(t, err, pgbaton.ErrNotFound)
		})
	})
	t.Run("Partitions/WritesTellNewVersion", func(t *testing.T) {
		ctx, b := s.setup(t)
		table := b.jobs(ctx, t, 10)
		writes := []func(q pgbaton.Querier, key pgbaton.Values) error{
			func(q pgbaton.Querier, key pgbaton.Values) error {
				_, err := pgbaton.UpdateVersion(ctx, q, table, key, 1, pgbaton.Values{"runs": 7}, nil)
				return err
			},
			func(q pgbaton.Querier, key pgbaton.Values) error {
				return pgbaton.DeleteVersion(ctx, q, table, key, 1, nil)
			},
		}
		for i, write := range writes {
			for j, with := range []func(*testing.T, func(pgbaton.Querier)){
				s.way.With, func(t *testing.T, f func(pgbaton.Querier)) { t.Helper(); f(b.begin(t)) },
			} {
				id := 1 + 2*i + j
				b.movesWhile(ctx, t, table, id, func() {
					with(t, func(q pgbaton.Querier) { requireConflict(t, write(q, pgbaton.Values{"id": id}), 1, 2) })
				})
			}
		}
		b.movesWhile(ctx, t, table, 9, func() {
			type job struct{ Runs int }
			got, err := pgbaton.Mutate(ctx, b.begin(t), table, pgbaton.Values{"id": 9}, nil, func(j *job) error { j.Runs += 10; return nil })
			require.NoError(t, err)
			require.Equal(t, 11, got.Runs)
		})
	})
}

// movesWhile calls f while somebody else moves a job to another partition, and lets that commit when f waits for it.
func (b *bundle) movesWhile(ctx context.Context, t *testing.T, table pgx.Identifier, id int, f func()) {
	t.Helper()
	holder := b.hold(ctx, t, sprintf("UPDATE %s SET state = 'done', runs = runs + 1, version = version + 1 WHERE id = %d", table.Sanitize(), id))
	b.background(t, func() {
		b.awaitWaiter(ctx, t, holder)
		_ = holder.Commit(ctx)
	})
	f()
}

// movingJobs lets workers claim jobs whose state moves them to another partition. Nobody's transaction fails, and each
// job runs once.
func (s *suite) movingJobs(t *testing.T) {
	const jobs, workers = 200, 6
	ctx, b := s.setup(t)
	table := b.jobs(ctx, t, jobs)
	var (
		done sync.WaitGroup
		errs [workers]error
	)
	work := func(ctx context.Context, tx pgbaton.Tx) (claimed int, err error) {
		ids, err := pgbaton.ClaimRows[int](ctx, tx, table, 1,
			&pgbaton.ClaimOpts{Where: "state = $1", Args: []any{"ready"}, OrderBy: "id", Column: "id"})
		for _, id := range ids {
			rows, err := tx.Query(ctx, "UPDATE "+table.Sanitize()+" SET state = 'done', runs = runs + 1 WHERE id = $1", id)
			if err != nil {
				return 0, err
			}
			rows.Close()
			if rows.Err() != nil {
				return 0, rows.Err()
			}
		}
		return len(ids), err
	}
	for i := range workers {
		done.Go(func() {
			for claimed := 1; claimed > 0 && errs[i] == nil; {
				errs[i] = s.way.InTx(ctx, &pgbaton.TxOpts{MaxAttempts: 1}, func(ctx context.Context, tx pgbaton.Tx) (err error) {
					claimed, err = work(ctx, tx)
					return err
				})
			}
		})
	}
	done.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	require.Equal(t, jobs, read[int](ctx, t, b, "SELECT count(*) FROM "+table.Sanitize()+" WHERE state = 'done' AND runs = 1"))
}
