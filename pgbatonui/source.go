package pgbatonui

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// reading is what the database and the client said at one time.
type reading struct {
	at       time.Time // when it was made, by this process's clock
	now      time.Time // by the database's clock
	took     time.Duration
	database string
	err      error // why there is nothing else

	locks      []pgbaton.LockInfo
	semaphores []semaphore
	runs       []run

	moreSemaphores, moreRuns int // than are read

	freeings  []freeing
	losses    []loss // the newest first, of this and earlier readings
	findings  []Finding
	diagnosis pgbaton.Diagnosis

	// What the role may not see, each with what would let it.
	operator bool
	missing  map[string]string // by table: the statement
}

// semaphore is how full one is.
type semaphore struct {
	name                string
	capacity, available int
}

// run is the last run of a name.
type run struct {
	name         string // or its number
	began, ended time.Time
	window       time.Duration
	failed       bool
	err          string
}

// freeing is an operator's request to a holder, and what came of it.
type freeing struct {
	at                                        time.Time
	by, reason, client, kind, name, key, said string
}

const (
	readTimeout    = 10 * time.Second
	examineTimeout = 10 * time.Second
	examineEvery   = 5 * time.Minute
	mostSemaphores = 200
	mostRuns       = 100
	mostFreeings   = 20
	mostFindings   = 50
)

// source reads a database. It is used by one goroutine.
type source struct {
	client *pgbaton.Client
	db     pgbaton.Querier
	cfg    Config

	names  map[int64]string // of runs, by their numbers
	losses losses

	examined time.Time
	found    []Finding
}

func newSource(client *pgbaton.Client, db pgbaton.Querier, cfg Config) *source {
	s := &source{client: client, db: db, cfg: cfg, names: map[int64]string{}, losses: newLosses()}
	for _, name := range cfg.Names {
		_, id, _ := pgbaton.Name(name).Parts()
		s.names[id] = name
	}
	return s
}

// read makes a reading. One that fails has an error, and what does not depend on the database.
func (s *source) read(parent context.Context) *reading {
	ctx, cancel := context.WithTimeout(parent, readTimeout)
	defer cancel()
	r := &reading{at: time.Now(), missing: map[string]string{}}
	r.err = s.fill(ctx, r)
	r.took = time.Since(r.at)
	r.losses = s.losses.all()
	if d, err := s.client.Diagnose(ctx); err == nil {
		r.diagnosis = d
		r.findings = diagnosed(d)
	}
	if s.cfg.Examine != nil && r.err == nil && time.Since(s.examined) >= examineEvery {
		examine, end := context.WithTimeout(parent, examineTimeout)
		s.found = s.cfg.Examine(examine)
		s.found = s.found[:min(len(s.found), mostFindings)]
		end()
		s.examined = time.Now()
	}
	r.findings = append(r.findings, s.found...)
	return r
}

// fill asks the database.
func (s *source) fill(ctx context.Context, r *reading) error {
	ground, err := s.ground(ctx)
	if err != nil {
		return err
	}
	r.now, r.database = ground.now, ground.database
	if ground.tables["registry"] && ground.tables["sessions"] { // before the listing, which removes what the dead have left
		if err = s.lost(ctx); err != nil {
			return err
		}
	} else if ground.functions["freeings"] {
		r.missing["registry"] = "GRANT SELECT ON pgbaton.registry, pgbaton.sessions TO " + ground.role
	}
	if r.locks, err = s.client.Locks(ctx, nil); err != nil {
		return err
	}
	s.learn(r.locks)
	r.operator = !ground.functions["freeings"] // in the portable schema there are no roles
	if ground.functions["freeings"] {
		if r.operator, r.freeings, err = s.freeings(ctx); err != nil {
			return err
		}
		if !r.operator {
			r.missing["freeing"] = "SELECT pgbaton.grant_operator(" + literal(ground.role) + ")"
		}
	}
	all := ground.tables["semaphore"] && r.operator
	if !all {
		r.missing["semaphore"] = "GRANT SELECT ON pgbaton.semaphore TO " + ground.role
	}
	if r.semaphores, r.moreSemaphores, err = s.semaphores(ctx, all, r.locks); err != nil {
		return err
	}
	if !ground.tables["last_run"] {
		r.missing["last_run"] = "GRANT SELECT ON pgbaton.last_run TO " + ground.role
		return nil
	}
	r.runs, r.moreRuns, err = s.runs(ctx)
	return err
}

// literal is a text as SQL shows it to people.
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// ground is what the role may read. What it may not is not tried: each refusal would be a line in the server's log.
type ground struct {
	now               time.Time
	database, role    string
	tables, functions map[string]bool
}

const sqlGround = `
SELECT clock_timestamp(), current_database(), quote_ident(current_user),
       coalesce((SELECT string_agg(c.relname, ' ') FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
                  WHERE n.nspname = 'pgbaton' AND c.relname IN ('registry', 'sessions', 'semaphore', 'last_run')
                    AND has_table_privilege(c.oid, 'SELECT')), ''),
       coalesce((SELECT string_agg(p.proname, ' ') FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
                  WHERE n.nspname = 'pgbaton' AND p.proname = 'freeings'), '')`

func (s *source) ground(ctx context.Context) (ground, error) {
	var g ground
	var tables, functions string
	if err := s.db.QueryRow(ctx, sqlGround).Scan(&g.now, &g.database, &g.role, &tables, &functions); err != nil {
		return g, pgbaton.Translate(err)
	}
	g.tables, g.functions = set(tables), set(functions)
	return g, nil
}

func set(words string) map[string]bool {
	s := map[string]bool{}
	for word := range strings.FieldsSeq(words) {
		s[word] = true
	}
	return s
}

// each runs a query and scans its rows.
func each(ctx context.Context, db pgbaton.Querier, scan func(pgx.Rows) error, sql string, args ...any) error {
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return pgerr.Schema(pgbaton.Translate(err))
	}
	defer rows.Close()
	for rows.Next() {
		if err = scan(rows); err != nil {
			return err
		}
	}
	return pgerr.Schema(pgbaton.Translate(rows.Err()))
}

const sqlFreeings = `
SELECT pgbaton.operates(), f.asked_at, coalesce(f.asked_by, ''), coalesce(f.reason, ''), coalesce(f.client, ''), coalesce(f.kind, ''),
       coalesce(f.name, ''), coalesce(f.key, 0), coalesce(f.pair, false), coalesce(f.outcome, 'being asked')
  FROM (SELECT 1) AS one LEFT JOIN pgbaton.freeings($1::int) AS f ON true`

func (s *source) freeings(ctx context.Context) (operator bool, all []freeing, err error) {
	err = each(ctx, s.db, func(rows pgx.Rows) error {
		var (
			f    freeing
			at   *time.Time
			key  int64
			pair bool
		)
		if err := rows.Scan(&operator, &at, &f.by, &f.reason, &f.client, &f.kind, &f.name, &key, &pair, &f.said); err != nil {
			return err
		}
		if at != nil {
			f.at, f.key = *at, number(key, pair)
			all = append(all, f)
		}
		return nil
	}, sqlFreeings, mostFreeings)
	return operator, all, err
}

// number is a key without a name, as the command writes it.
func number(id int64, pair bool) string {
	if pair {
		return fmt.Sprintf("pair:%d,%d", int32(id>>32), int32(id)) //nolint:gosec,mnd // the halves
	}
	return fmt.Sprintf("id:%d", id)
}

const (
	sqlSemaphores = `
SELECT m.name, s.capacity, s.available, m.there
  FROM (SELECT n.id, n.name, count(*) OVER () AS there FROM pgbaton.semaphore AS n ORDER BY n.name LIMIT $1::int) AS m
 CROSS JOIN LATERAL pgbaton.semaphore_state(m.id) AS s`
	sqlSemaphoresNamed = `
SELECT n.name, s.capacity, s.available, 0
  FROM json_array_elements_text($1::text::json) AS n (name)
 CROSS JOIN LATERAL pgbaton.open_semaphore(n.name, NULL) AS o
 CROSS JOIN LATERAL pgbaton.semaphore_state(o.id) AS s`
)

// semaphores returns how full all are, or those of which permits are held or waited for, and how many more there are.
func (s *source) semaphores(ctx context.Context, all bool, locks []pgbaton.LockInfo) (found []semaphore, more int, err error) {
	there := 0
	scan := func(rows pgx.Rows) error {
		var m semaphore
		err := rows.Scan(&m.name, &m.capacity, &m.available, &there)
		found = append(found, m)
		return err
	}
	if all {
		err = each(ctx, s.db, scan, sqlSemaphores, mostSemaphores)
		return found, there - len(found), err
	}
	var names []string
	seen := map[string]bool{"": true}
	for _, l := range locks {
		if l.Kind != kindPermit || seen[l.Name] {
			continue
		}
		seen[l.Name] = true
		if len(names) == mostSemaphores {
			more++
			continue
		}
		names = append(names, l.Name)
	}
	if len(names) == 0 {
		return nil, 0, nil
	}
	list, err := json.Marshal(names)
	if err != nil {
		return nil, 0, err
	}
	err = each(ctx, s.db, scan, sqlSemaphoresNamed, string(list))
	return found, more, err
}

const sqlRuns = `
SELECT r.resource, r.ran_at, r.ended_at, coalesce(extract(epoch FROM r.at_least), 0)::float8, coalesce(r.failed, false) AND r.ended_at IS NOT NULL,
       coalesce(r.error, ''), count(*) OVER ()
  FROM pgbaton.last_run AS r ORDER BY r.ran_at DESC LIMIT $1::int`

// runs returns the last runs, the newest first, and how many more there are.
func (s *source) runs(ctx context.Context) (all []run, more int, err error) {
	there := 0
	err = each(ctx, s.db, func(rows pgx.Rows) error {
		var (
			r        run
			resource string
			ended    *time.Time
			window   float64
		)
		if err := rows.Scan(&resource, &r.began, &ended, &window, &r.failed, &r.err, &there); err != nil {
			return err
		}
		if ended != nil {
			r.ended = *ended
		}
		r.window = time.Duration(window * float64(time.Second))
		r.name = s.nameOf(resource)
		all = append(all, r)
		return nil
	}, sqlRuns, mostRuns)
	return all, there - len(all), err
}
