package waitgraph

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// Session runs statements in the name of a holder; see package sidecar.
type Session interface {
	Holder(ctx context.Context) (int64, error)
	Query(ctx context.Context, statement *pipeline.Statement, params ...[]byte) ([][][]byte, error)
}

// Table is the [Board] that is the table pgbaton.registry: its rows of the kind watched.
type Table struct{ Session }

var _ Board = Table{}

var (
	stmtPublish = pipeline.Statement{
		Name: "pgbaton_publish_waits",
		SQL:  "SELECT unnest(pgbaton.publish_waits($1, $2, $3, $4, $5, $6, $7, $8, $9))",
	}
	stmtWithdraw = pipeline.Statement{Name: "pgbaton_withdraw_waits", SQL: "SELECT pgbaton.withdraw_waits($1, $2)"}
	stmtWaits    = pipeline.Statement{
		Name: "pgbaton_waits",
		SQL: "SELECT id, holder, looks, name, key, pair, shared, held_keys, held_pairs, held_shared " +
			"FROM pgbaton.waits($1, $2)",
	}
)

// Publish implements [Board].
func (t Table) Publish(ctx context.Context, holder int64, waits []Wait) ([]int64, error) {
	var names []string
	var held []int64
	var wanted, holds locks
	for _, w := range waits {
		names = append(names, w.Name)
		wanted.add(w.Wants)
		held = append(held, int64(len(w.Holds)))
		for _, l := range w.Holds {
			holds.add(l)
		}
	}
	rows, err := t.Query(ctx, &stmtPublish, pgtext.Int(holder), pgtext.Texts(names), pgtext.Ints(wanted.keys),
		pgtext.Bools(wanted.pairs), pgtext.Bools(wanted.shared), pgtext.Ints(held), pgtext.Ints(holds.keys),
		pgtext.Bools(holds.pairs), pgtext.Bools(holds.shared))
	if err != nil {
		return nil, fmt.Errorf("publish waits: %w", err)
	}
	ids := make([]int64, len(rows))
	for i, row := range rows {
		if ids[i], err = strconv.ParseInt(string(row[0]), 10, 64); err != nil {
			return nil, fmt.Errorf("publish waits: %w", err)
		}
	}
	return ids, nil
}

// Withdraw implements [Board].
func (t Table) Withdraw(ctx context.Context, holder int64, ids []int64) error {
	var which []byte
	if ids != nil {
		which = pgtext.Ints(ids)
	}
	if _, err := t.Query(ctx, &stmtWithdraw, pgtext.Int(holder), which); err != nil {
		return fmt.Errorf("withdraw waits: %w", err)
	}
	return nil
}

// Waits implements [Board].
func (t Table) Waits(ctx context.Context, holder, look int64) ([]Wait, error) {
	rows, err := t.Query(ctx, &stmtWaits, pgtext.Int(holder), pgtext.Int(look))
	if err != nil {
		return nil, fmt.Errorf("read waits: %w", err)
	}
	all := make([]Wait, len(rows))
	for i, row := range rows {
		if all[i], err = parse(row); err != nil {
			return nil, fmt.Errorf("read waits: %w", err)
		}
	}
	return all, nil
}

// parse reads a row of stmtWaits.
func parse(row [][]byte) (Wait, error) {
	const columns = 10
	if len(row) != columns {
		return Wait{}, pgtext.ErrAnswer
	}
	w := Wait{Name: string(row[3])}
	var errs [7]error
	var key int64
	var keys []int64
	var pairs, shared []bool
	w.ID, errs[0] = strconv.ParseInt(string(row[0]), 10, 64)
	w.Holder, errs[1] = strconv.ParseInt(string(row[1]), 10, 64)
	w.Looks, errs[2] = strconv.ParseInt(string(row[2]), 10, 64)
	key, errs[3] = strconv.ParseInt(string(row[4]), 10, 64)
	keys, errs[4] = pgtext.ParseInts[int64](row[7])
	pairs, errs[5] = pgtext.ParseBools(row[8])
	shared, errs[6] = pgtext.ParseBools(row[9])
	if err := errors.Join(errs[:]...); err != nil {
		return Wait{}, err
	}
	if len(keys) != len(pairs) || len(keys) != len(shared) {
		return Wait{}, pgtext.ErrAnswer
	}
	w.Wants = lockOf(key, string(row[5]) == "t", string(row[6]) == "t")
	for i := range keys {
		w.Holds = append(w.Holds, lockOf(keys[i], pairs[i], shared[i]))
	}
	return w, nil
}

// locks are arrays that together say which locks.
type locks struct {
	keys          []int64
	pairs, shared []bool
}

func (l *locks) add(lock Lock) {
	l.keys = append(l.keys, lock.Key.ID)
	l.pairs = append(l.pairs, lock.Key.Pair)
	l.shared = append(l.shared, lock.Mode == advisory.Shared)
}

// lockOf is one of the locks that arrays say.
func lockOf(key int64, pair, shared bool) Lock {
	l := Lock{Key: advisory.Key{ID: key, Pair: pair}}
	if shared {
		l.Mode = advisory.Shared
	}
	return l
}
