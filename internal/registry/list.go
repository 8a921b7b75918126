package registry

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// Row is a holder or a waiter of the listing.
type Row struct {
	State, Kind, Name string
	Key               advisory.Key
	Shared            bool
	Permits           int
	Token             int64
	Since             time.Time
	Holder            int64
	Client, Host      string
	Process           int
	Application       string
	Session           int
	Unlisted          int
	Holds             []advisory.Key
	Blockers          []int32
}

var stmtList = pipeline.Statement{
	Name: "pgbaton_list_locks",
	SQL: "SELECT state, kind, name, key, pair, shared, permits, token, (extract(epoch FROM since) * 1000000)::bigint, holder, " +
		"client, host, process, application, pid, unlisted, held_keys, held_pairs, blockers FROM pgbaton.list_locks($1)",
}

// List returns what is held and waited for in the database; with database, also what waits there for rows, transactions and tables.
func List(ctx context.Context, session Session, database bool) ([]Row, error) {
	answer, err := session.Query(ctx, &stmtList, pgtext.Bool(database))
	if err != nil {
		return nil, err
	}
	rows := make([]Row, len(answer))
	for i, columns := range answer {
		if rows[i], err = parse(columns); err != nil {
			return nil, fmt.Errorf("list locks: %w", err)
		}
	}
	return rows, nil
}

// parse reads a row of stmtList. NULL is zero.
func parse(columns [][]byte) (Row, error) {
	const many = 19
	if len(columns) != many {
		return Row{}, pgtext.ErrAnswer
	}
	var failed error
	number := func(i int) int64 {
		if columns[i] == nil {
			return 0
		}
		n, err := strconv.ParseInt(string(columns[i]), 10, 64)
		if err != nil {
			failed = fmt.Errorf("%w: %w", pgtext.ErrAnswer, err)
		}
		return n
	}
	yes := func(i int) bool { return string(columns[i]) == "t" }
	text := func(i int) string { return string(columns[i]) }
	r := Row{
		State: text(0), Kind: text(1), Name: text(2), Key: advisory.Key{ID: number(3), Pair: yes(4)}, Shared: yes(5),
		Permits: int(number(6)), Token: number(7), Holder: number(9), Client: text(10), Host: text(11), Process: int(number(12)),
		Application: text(13), Session: int(number(14)), Unlisted: int(number(15)),
	}
	if since := number(8); since != 0 {
		r.Since = time.UnixMicro(since)
	}
	keys, err := pgtext.ParseInts[int64](columns[16])
	if err != nil {
		return Row{}, err
	}
	pairs, err := pgtext.ParseBools(columns[17])
	if err != nil || len(pairs) != len(keys) {
		return Row{}, pgtext.ErrAnswer
	}
	for i, key := range keys {
		r.Holds = append(r.Holds, advisory.Key{ID: key, Pair: pairs[i]})
	}
	if r.Blockers, err = pgtext.ParseInts[int32](columns[18]); err != nil {
		return Row{}, err
	}
	return r, failed
}
