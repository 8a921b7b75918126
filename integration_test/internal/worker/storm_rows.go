package worker

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/history"
)

// StormTables are the tables in which a storm's transactions leave what they did. A counter is read and written in two
// statements, so only exclusion keeps it right; each change of a counter leaves a row of done in the same transaction.
const StormTables = `
CREATE TABLE storm_counter (key text PRIMARY KEY, value int8 NOT NULL DEFAULT 0, version int8 NOT NULL DEFAULT 0);
INSERT INTO storm_counter (key) VALUES ('DoTx'), ('DoTx, fenced'), ('AcquireTx'), ('InTx'), ('Mutate');
CREATE TABLE storm_done (run text PRIMARY KEY, key text NOT NULL);
CREATE TABLE storm_written (seq bigserial PRIMARY KEY, resource text NOT NULL, token int8 NOT NULL);`

// transactions are the lanes that write rows with the service's own pool.
func (s *storm) transactions(client *pgbaton.Client) []round {
	return []round{
		func(ctx context.Context, r *rand.Rand) { s.doTx(ctx, client, "DoTx", r) },
		func(ctx context.Context, r *rand.Rand) { s.doTx(ctx, client, "DoTx, fenced", r) },
		func(ctx context.Context, r *rand.Rand) {
			switch r.IntN(4) {
			case 0:
				s.acquireTx(ctx, r)
			case 1:
				s.inTx(ctx, r)
			case 2:
				s.mutate(ctx, r)
			case 3:
				s.fence(ctx, client, r)
			}
		},
	}
}

// increment is a read-modify-write in two statements.
func increment(ctx context.Context, tx pgx.Tx, key, run, suffix string) error {
	var value int64
	if err := tx.QueryRow(ctx, "SELECT value FROM storm_counter WHERE key = $1"+suffix, key).Scan(&value); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "UPDATE storm_counter SET value = $2 WHERE key = $1", key, value+1); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, "INSERT INTO storm_done (run, key) VALUES ($1, $2)", run, key)
	return err
}

func (s *storm) run() string { return fmt.Sprintf("%d/%d", os.Getpid(), s.runs.Add(1)) }

// told keeps what the caller was told of its transaction.
func (s *storm) told(op, run string, called int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outcomes[run] = outcome{
		op: op, called: called, at: history.Now(), committed: err == nil, lost: errors.Is(err, pgbaton.ErrLost), unknown: errors.Is(err, pgbaton.ErrCommitUnknown),
	}
}

func (s *storm) doTx(ctx context.Context, client *pgbaton.Client, op string, r *rand.Rand) {
	within, cancel := briefly(ctx, r)
	defer cancel()
	called, run := history.Now(), s.run()
	var hold int64
	err := client.DoTx(within, s.pool, pgbaton.Name("storm/"+op), nil, func(ctx context.Context, tx pgx.Tx, lock *pgbaton.Lock) error {
		if hold == 0 {
			hold = s.log.Op()
			s.log.Append(history.Event{At: called, Kind: history.Call, Op: hold, Key: op, Mode: history.Exclusive})
			s.log.Append(history.Event{At: history.Now(), Kind: history.Granted, Op: hold, Token: int64(lock.Token())})
			defer s.dwell(ctx, hold, span(r)/4)
		}
		if op == "DoTx, fenced" {
			if err := lock.Assert(ctx, tx); err != nil {
				return err
			}
		}
		return increment(ctx, tx, op, run, "")
	})
	s.settle(hold, err)
	s.told(op, run, called, err)
	s.stats.note(op, within, result(op, called, err))
}

// acquireTx takes one of the storm's keys in a transaction of its own. The history has it if it was committed: nobody
// tells a transaction that it lost its lock before it asks.
func (s *storm) acquireTx(ctx context.Context, r *rand.Rand) {
	const op = "AcquireTx"
	within, cancel := briefly(ctx, r)
	defer cancel()
	called, run := history.Now(), s.run()
	var token pgbaton.Token
	var got, release int64
	err := pgbaton.InTx(within, s.pool, nil, func(ctx context.Context, tx pgx.Tx) error {
		var err error
		if token, err = pgbaton.AcquireTx(ctx, tx, pgbaton.Name("storm/"+op)); err != nil {
			return err
		}
		got = history.Now()
		err = increment(ctx, tx, op, run, "")
		release = history.Now()
		return err
	})
	if err == nil {
		hold := s.log.Op()
		s.log.Append(history.Event{At: called, Kind: history.Call, Op: hold, Key: op, Mode: history.Exclusive})
		s.log.Append(history.Event{At: got, Kind: history.Granted, Op: hold, Token: int64(token)})
		s.log.Append(history.Event{At: release, Kind: history.Release, Op: hold})
		s.log.Append(history.Event{At: history.Now(), Kind: history.Released, Op: hold})
	}
	s.told(op, run, called, err)
	s.stats.note(op, within, result(op, called, err))
}

func (s *storm) inTx(ctx context.Context, r *rand.Rand) {
	const op = "InTx"
	within, cancel := briefly(ctx, r)
	defer cancel()
	called, run := history.Now(), s.run()
	err := pgbaton.InTx(within, s.pool, nil, func(ctx context.Context, tx pgx.Tx) error {
		return increment(ctx, tx, op, run, " FOR UPDATE")
	})
	s.told(op, run, called, err)
	s.stats.note(op, within, result(op, called, err))
}

func (s *storm) mutate(ctx context.Context, r *rand.Rand) {
	const op = "Mutate"
	type counter struct{ Value int64 }
	within, cancel := briefly(ctx, r)
	defer cancel()
	called := history.Now()
	_, err := pgbaton.Mutate(within, s.pool, pgx.Identifier{"storm_counter"}, pgbaton.Values{"key": op}, nil,
		func(row *counter) error { row.Value++; return nil })
	got := result(op, called, err)
	s.stats.mutation(got)
	s.stats.note(op, within, got)
}

// fence writes a row under a lock, fenced by the lock's token: the rows of a resource must be in the tokens' order.
func (s *storm) fence(ctx context.Context, client *pgbaton.Client, r *rand.Rand) {
	const op = "Fence"
	within, cancel := briefly(ctx, r)
	defer cancel()
	h := s.take(within, op, history.Event{Key: "storm/fence", Mode: history.Exclusive}, func() (holding, error) {
		return client.Acquire(within, pgbaton.Name("storm/fence"))
	})
	if h == nil {
		return
	}
	err := pgbaton.InTx(within, s.pool, nil, func(ctx context.Context, tx pgx.Tx) error {
		if err := pgbaton.Fence(ctx, tx, "storm", h.lock.Token()); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO storm_written (resource, token) VALUES ('storm', $1)", int64(h.lock.Token()))
		return err
	})
	if err != nil {
		s.stats.note(op, within, result(op, history.Now(), err))
	}
	s.spend(ctx, h, op, 0)
}

// compare checks what the callers were told of their transactions with the rows that these left. A failover may have lost
// those that are missing.
func (s *storm) compare(ctx context.Context) (violations []string, missing []Missing) {
	rows, err := s.pool.Query(ctx, "SELECT run, key FROM storm_done WHERE run LIKE $1", fmt.Sprintf("%d/%%", os.Getpid()))
	if err != nil {
		return []string{"the rows of the transactions cannot be read: " + err.Error()}, nil
	}
	done := map[string]string{}
	var run, key string
	if _, err = pgx.ForEachRow(rows, []any{&run, &key}, func() error { done[run] = key; return nil }); err != nil {
		return []string{"the rows of the transactions cannot be read: " + err.Error()}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for run, o := range s.outcomes {
		_, there := done[run]
		switch {
		case o.committed && !there:
			missing = append(missing, Missing{Op: o.op, Called: o.called, At: o.at})
		case o.lost && there: // as it was with Do: the func had done its work when the lock was found to be lost
			s.stats.remark(o.op, "ErrLost, and the transaction was committed")
		case !o.committed && !o.unknown && there:
			violations = append(violations, o.op+" said that it failed, and the transaction was committed")
		}
	}
	return violations, missing
}
