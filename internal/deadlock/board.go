package deadlock

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// Session runs statements in the name of a holder; see package ledger.
type Session interface {
	Holder(ctx context.Context) (int64, error)
	Query(ctx context.Context, statement *pipeline.Statement, params ...[]byte) ([][][]byte, error)
}

// Table is the [Board] that is the table pgbaton.wait.
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
	var names, held array
	var wanted, holds locks
	for _, w := range waits {
		names.text(w.Name)
		wanted.add(w.Wants)
		held.number(int64(len(w.Holds)))
		for _, l := range w.Holds {
			holds.add(l)
		}
	}
	rows, err := t.Query(ctx, &stmtPublish, number(holder), names.end(), wanted.keys.end(), wanted.pairs.end(),
		wanted.shared.end(), held.end(), holds.keys.end(), holds.pairs.end(), holds.shared.end())
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
		var list array
		for _, id := range ids {
			list.number(id)
		}
		which = list.end()
	}
	if _, err := t.Query(ctx, &stmtWithdraw, number(holder), which); err != nil {
		return fmt.Errorf("withdraw waits: %w", err)
	}
	return nil
}

// Waits implements [Board].
func (t Table) Waits(ctx context.Context, holder, look int64) ([]Wait, error) {
	rows, err := t.Query(ctx, &stmtWaits, number(holder), number(look))
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

var errAnswer = errors.New("the server's answer does not fit the statement sent")

// parse reads a row of stmtWaits.
func parse(row [][]byte) (Wait, error) {
	const columns = 10
	if len(row) != columns {
		return Wait{}, errAnswer
	}
	w := Wait{Name: string(row[3])}
	var errs [4]error
	w.ID, errs[0] = strconv.ParseInt(string(row[0]), 10, 64)
	w.Holder, errs[1] = strconv.ParseInt(string(row[1]), 10, 64)
	w.Looks, errs[2] = strconv.ParseInt(string(row[2]), 10, 64)
	w.Wants, errs[3] = parseLock(string(row[4]), string(row[5]), string(row[6]))
	if err := errors.Join(errs[:]...); err != nil {
		return Wait{}, err
	}
	keys, pairs, shared := parseArray(row[7]), parseArray(row[8]), parseArray(row[9])
	if len(keys) != len(pairs) || len(keys) != len(shared) {
		return Wait{}, errAnswer
	}
	for i := range keys {
		l, err := parseLock(keys[i], pairs[i], shared[i])
		if err != nil {
			return Wait{}, err
		}
		w.Holds = append(w.Holds, l)
	}
	return w, nil
}

func parseLock(key, pair, shared string) (Lock, error) {
	id, err := strconv.ParseInt(key, 10, 64)
	l := Lock{Key: advisory.Key{ID: id, Pair: pair == "t"}}
	if shared == "t" {
		l.Mode = advisory.Shared
	}
	return l, err
}

func number(n int64) []byte { return strconv.AppendInt(nil, n, 10) }

// array is the text of an array of the server's.
type array []byte

func (a *array) begin() {
	if len(*a) == 0 {
		*a = append(*a, '{')
	} else {
		*a = append(*a, ',')
	}
}

func (a *array) number(n int64) {
	a.begin()
	*a = strconv.AppendInt(*a, n, 10)
}

func (a *array) boolean(b bool) {
	a.begin()
	*a = strconv.AppendBool(*a, b)
}

var quoting = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func (a *array) text(s string) {
	a.begin()
	*a = append(append(append(*a, '"'), quoting.Replace(s)...), '"')
}

// end completes the array; nothing may be added any more.
func (a *array) end() []byte {
	if len(*a) == 0 {
		return []byte("{}")
	}
	return append(*a, '}')
}

// locks are arrays that together say which locks.
type locks struct{ keys, pairs, shared array }

func (l *locks) add(lock Lock) {
	l.keys.number(lock.Key.ID)
	l.pairs.boolean(lock.Key.Pair)
	l.shared.boolean(lock.Mode == advisory.Shared)
}

func parseArray(text []byte) []string {
	inside := strings.Trim(string(text), "{}")
	if inside == "" {
		return nil
	}
	return strings.Split(inside, ",")
}
