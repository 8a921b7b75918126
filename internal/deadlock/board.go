package deadlock

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/link"
)

// Session runs statements in the name of a holder; see package ledger.
type Session interface {
	Holder(ctx context.Context) (int64, error)
	Query(ctx context.Context, statement *link.Statement, params ...[]byte) ([][][]byte, error)
}

// Table is the [Board] that is the table pgbaton.wait.
type Table struct{ Session }

var _ Board = Table{}

var (
	stmtPublish = link.Statement{
		Name: "pgbaton_publish_wait",
		SQL:  "SELECT pgbaton.publish_wait($1, $2, $3, $4, $5, $6, $7, $8)",
	}
	stmtWithdraw = link.Statement{Name: "pgbaton_withdraw_waits", SQL: "SELECT pgbaton.withdraw_waits($1, $2)"}
	stmtWaits    = link.Statement{
		Name: "pgbaton_waits",
		SQL: "SELECT id, holder, seconds, name, key, pair, shared, held_keys, held_pairs, held_shared " +
			"FROM pgbaton.waits()",
	}
)

// Publish implements [Board].
func (t Table) Publish(ctx context.Context, holder int64, w Wait) (int64, error) {
	var keys, pairs, shared []string
	for _, l := range w.Holds {
		keys = append(keys, strconv.FormatInt(l.Key.ID, 10))
		pairs = append(pairs, strconv.FormatBool(l.Key.Pair))
		shared = append(shared, strconv.FormatBool(l.Mode == advisory.Shared))
	}
	rows, err := t.Query(ctx, &stmtPublish, number(holder), []byte(w.Name), number(w.Wants.Key.ID),
		boolean(w.Wants.Key.Pair), boolean(w.Wants.Mode == advisory.Shared), array(keys), array(pairs), array(shared))
	if err != nil {
		return 0, fmt.Errorf("publish a wait: %w", err)
	}
	if len(rows) != 1 || len(rows[0]) != 1 {
		return 0, errAnswer
	}
	return strconv.ParseInt(string(rows[0][0]), 10, 64)
}

// Withdraw implements [Board].
func (t Table) Withdraw(ctx context.Context, holder int64, ids []int64) error {
	var which []byte
	if ids != nil {
		var words []string
		for _, id := range ids {
			words = append(words, strconv.FormatInt(id, 10))
		}
		which = array(words)
	}
	if _, err := t.Query(ctx, &stmtWithdraw, number(holder), which); err != nil {
		return fmt.Errorf("withdraw waits: %w", err)
	}
	return nil
}

// Waits implements [Board].
func (t Table) Waits(ctx context.Context) ([]Published, error) {
	rows, err := t.Query(ctx, &stmtWaits)
	if err != nil {
		return nil, fmt.Errorf("read waits: %w", err)
	}
	all := make([]Published, len(rows))
	for i, row := range rows {
		if all[i], err = parse(row); err != nil {
			return nil, fmt.Errorf("read waits: %w", err)
		}
	}
	return all, nil
}

var errAnswer = errors.New("the server's answer does not fit the statement sent")

// parse reads a row of stmtWaits.
func parse(row [][]byte) (Published, error) {
	const columns = 10
	if len(row) != columns {
		return Published{}, errAnswer
	}
	p := Published{Wait: Wait{Name: string(row[3])}}
	var errs [4]error
	var seconds float64
	p.ID, errs[0] = strconv.ParseInt(string(row[0]), 10, 64)
	p.Holder, errs[1] = strconv.ParseInt(string(row[1]), 10, 64)
	seconds, errs[2] = strconv.ParseFloat(string(row[2]), 64)
	p.Long = seconds >= LongAfter.Seconds()
	p.Wants, errs[3] = parseLock(string(row[4]), string(row[5]), string(row[6]))
	if err := errors.Join(errs[:]...); err != nil {
		return Published{}, err
	}
	keys, pairs, shared := parseArray(row[7]), parseArray(row[8]), parseArray(row[9])
	if len(keys) != len(pairs) || len(keys) != len(shared) {
		return Published{}, errAnswer
	}
	for i := range keys {
		l, err := parseLock(keys[i], pairs[i], shared[i])
		if err != nil {
			return Published{}, err
		}
		p.Holds = append(p.Holds, l)
	}
	return p, nil
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

func boolean(b bool) []byte { return strconv.AppendBool(nil, b) }

// array writes words that need no quotes as an array of the server's.
func array(words []string) []byte { return []byte("{" + strings.Join(words, ",") + "}") }

func parseArray(text []byte) []string {
	inside := strings.Trim(string(text), "{}")
	if inside == "" {
		return nil
	}
	return strings.Split(inside, ",")
}
