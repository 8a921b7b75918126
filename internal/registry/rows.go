package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/pgbaton/pgbaton/internal/pgtext"
	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// Session runs statements; see package sidecar.
type Session interface {
	Query(ctx context.Context, statement *pipeline.Statement, params ...[]byte) ([][][]byte, error)
	// Known is the id of the holder that the session is; 0 if there is none, and a statement needs a new connection.
	Known() int64
}

var stmtPublish = pipeline.Statement{
	Name: "pgbaton_publish_locks",
	SQL: "SELECT pgbaton.publish_locks($1, $2, $3, $4, $5, $6, $7, $8, $9, " +
		"$10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)",
}

// publish brings the table up to date, and returns the rows of what is fresh.
func (r *Registry) publish(fresh []Entry, unlisted int, now time.Time) ([]int64, error) {
	ctx, cancel := context.WithTimeout(r.ctx, r.limit())
	defer cancel()
	sweep := now.Sub(r.swept) >= sweepEvery
	rows, err := r.send(ctx, fresh, unlisted, sweep, now)
	if err == nil && sweep {
		r.swept = now
	}
	return rows, err
}

// limit is how long the next statement may take.
func (r *Registry) limit() time.Duration {
	return min(time.Duration(r.misses+1)*patience, mostPatience)
}

func (r *Registry) send(ctx context.Context, fresh []Entry, unlisted int, sweep bool, now time.Time) ([]int64, error) {
	var clients, keys, tokens, ages []int64
	var waits, pairs, shared []bool
	var kinds, names []string
	var permits []int32
	for _, e := range fresh {
		clients, waits, kinds, names = append(clients, e.Client), append(waits, e.Waits), append(kinds, string(e.Kind)), append(names, e.Name)
		keys, pairs, shared = append(keys, e.Key.ID), append(pairs, e.Key.Pair), append(shared, e.Shared)
		permits, tokens = append(permits, int32(e.Permits)), append(tokens, e.Token) //nolint:gosec // at most 10,000
		ages = append(ages, now.Sub(r.marks[e.Grant].first).Milliseconds())
	}
	ids := r.ids(fresh)
	answer, err := r.cfg.Session.Query(ctx, &stmtPublish,
		pgtext.Int(r.publisher), pgtext.Int(int64(r.walk)), pgtext.Ints(ids), []byte(r.cfg.Name), []byte(r.cfg.Host), pgtext.Int(int64(r.cfg.Process)),
		pgtext.Int(int64(unlisted)), pgtext.Bool(r.doubt), pgtext.Bool(sweep), pgtext.Ints(r.gone),
		pgtext.Ints(clients), pgtext.Bools(waits), pgtext.Texts(kinds), pgtext.Texts(names), pgtext.Ints(keys), pgtext.Bools(pairs),
		pgtext.Bools(shared), pgtext.Ints(permits), pgtext.Ints(tokens), pgtext.Ints(ages))
	if err != nil {
		return nil, fmt.Errorf("publish locks: %w", err)
	}
	if len(answer) != 1 || len(answer[0]) != 1 {
		return nil, pgtext.ErrAnswer
	}
	rows, err := pgtext.ParseInts[int64](answer[0][0])
	if err == nil && len(rows) != len(fresh) {
		err = pgtext.ErrAnswer
	}
	if err == nil {
		r.told = ids
	}
	return rows, err
}

// ids are those under which the client holds and waits for what is published, or is listed elsewhere and lasts, each once.
func (r *Registry) ids(fresh []Entry) []int64 {
	known := map[int64]bool{}
	var ids []int64
	add := func(client int64) {
		if !known[client] && len(ids) < mostIDs {
			known[client] = true
			ids = append(ids, client)
		}
	}
	for _, e := range fresh {
		add(e.Client)
	}
	for _, m := range r.marks {
		if m.row != 0 || m.listed {
			add(m.client)
		}
	}
	if session := r.cfg.Session.Known(); session != 0 && len(ids) > 0 { // none: the client has nothing left
		add(session)
	}
	return ids
}
