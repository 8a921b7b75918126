package doctor

import (
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/pgerr"
)

// sqlStale counts what the dead have left: of each kind, how many rows there are, from when the oldest is, and whether a sweep is overdue. Every
// client that runs sweeps within a minute what has no session; so that is overdue only when none runs. A lease of a dead holder is kept for an hour.
const sqlStale = `
WITH alive AS MATERIALIZED (SELECT s.id FROM pgbaton.sessions AS s),
dead AS (
    SELECT 'registry' AS what, r.since
      FROM pgbaton.registry AS r
     WHERE CASE WHEN r.kind = 'client' THEN NOT EXISTS (SELECT FROM unnest(r.ids) AS i (id) JOIN alive AS a ON a.id = i.id)
                ELSE r.holder NOT IN (SELECT a.id FROM alive AS a) END
    UNION ALL
    SELECT 'connections', c.joined_at FROM pgbaton.lock_client AS c WHERE c.id NOT IN (SELECT a.id FROM alive AS a)
    UNION ALL
    SELECT 'holders', h.since FROM pgbaton.holder AS h
     WHERE h.id NOT IN (SELECT a.id FROM alive AS a) AND (h.id > 0 OR h.since < clock_timestamp() - interval '7 days')
       AND NOT EXISTS (SELECT FROM pgbaton.slot AS s WHERE s.holder = h.id)
    UNION ALL
    SELECT 'leases', l.expires_at
      FROM (SELECT e.holder, e.expires_at FROM pgbaton.lease AS e WHERE e.holder IS NOT NULL
            UNION ALL SELECT e.holder, e.expires_at FROM pgbaton.lease_share AS e) AS l
     WHERE l.expires_at < clock_timestamp() AND (l.holder < 0 OR l.holder NOT IN (SELECT a.id FROM alive AS a))
    UNION ALL
    SELECT 'permits', s.expires_at FROM pgbaton.slot AS s
     WHERE s.holder IS NOT NULL AND s.expires_at < clock_timestamp() AND (s.holder < 0 OR s.holder NOT IN (SELECT a.id FROM alive AS a)))
SELECT d.what, count(*), min(d.since),
       min(d.since) < clock_timestamp() - interval '2 hours'
           AND CASE WHEN d.what = 'leases' THEN true ELSE d.what <> 'permits' AND NOT EXISTS (SELECT FROM alive) END
  FROM dead AS d GROUP BY d.what ORDER BY d.what DESC`

// sqlStalePortable is the same of the portable schema, which knows no sessions and publishes nothing.
const sqlStalePortable = `
WITH dead AS (
    SELECT 'holders' AS what, h.since FROM pgbaton.holder AS h
     WHERE h.since < clock_timestamp() - interval '7 days' AND coalesce(h.attends_until < clock_timestamp(), true)
       AND NOT EXISTS (SELECT 1 FROM pgbaton.slot AS s WHERE s.holder = h.id)
       AND NOT EXISTS (SELECT 1 FROM pgbaton.lease AS l WHERE l.holder = h.id)
    UNION ALL
    SELECT 'leases', e.expires_at FROM pgbaton.lease AS e WHERE e.holder IS NOT NULL AND e.expires_at < clock_timestamp()
    UNION ALL
    SELECT 'leases', e.expires_at FROM pgbaton.lease_share AS e WHERE e.expires_at < clock_timestamp()
    UNION ALL
    SELECT 'permits', s.expires_at FROM pgbaton.slot AS s WHERE s.holder IS NOT NULL AND s.expires_at < clock_timestamp())
SELECT d.what, count(*), min(d.since),
       CASE WHEN d.what = 'leases' THEN min(d.since) < clock_timestamp() - interval '2 hours'
            ELSE d.what = 'holders' AND min(d.since) < clock_timestamp() - interval '8 days' END
  FROM dead AS d GROUP BY d.what ORDER BY d.what DESC`

// sweeps are the statements that remove what is stale, which every service may call. A permit needs none.
var sweeps = map[string]string{
	"registry":    "SELECT count(*) FROM pgbaton.list_locks()",
	"connections": "SELECT pgbaton.tend_leases()",
	"leases":      "SELECT pgbaton.tend_leases()",
	"holders":     "SELECT count(*) FROM pgbaton.tend()",
}

// staleRows are those of one kind.
type staleRows struct {
	What    string
	Count   int64
	Oldest  time.Time
	Overdue bool
}

// stale looks for rows whose owners are dead and that nobody has swept. A service reads the tables by functions alone, which leave out what is stale, or sweep it.
func (e *examination) stale() error {
	sql := sqlStale
	if e.portable {
		sql = sqlStalePortable
	}
	rows, err := e.conn.Query(e.ctx, sql)
	var found []staleRows
	if err == nil {
		found, err = pgx.CollectRows(rows, pgx.RowToStructByPos[staleRows])
	}
	switch code := pgerr.Code(err); {
	case code == pgerr.UndefinedSchema || code == pgerr.UndefinedTable:
		return nil // an older schema, which was said
	case code == pgerr.InsufficientPrivilege:
		e.add(Finding{
			Topic: "stale rows", Says: "This role may not read the schema's tables, so what the dead have left there cannot be counted.",
			Do: "It excludes nobody, and clients that run sweep it. To see it, run this as the owner of the schema.",
		})
		return nil
	case err != nil:
		return err
	}
	e.add(staleFinding(found))
	return nil
}

func staleFinding(found []staleRows) Finding {
	f := Finding{Topic: "stale rows", Says: "There are none: nothing is left of the dead."}
	if len(found) == 0 {
		return f
	}
	counts := make([]string, len(found))
	for i, s := range found {
		counts[i] = fmt.Sprintf("%d of %s, the oldest from %s", s.Count, s.What, s.Oldest.UTC().Format(time.RFC3339))
		if sweep := sweeps[s.What]; s.Overdue && (len(f.SQL) == 0 || f.SQL[len(f.SQL)-1] != sweep) {
			f.SQL = append(f.SQL, sweep)
		}
	}
	f.Says = "Left by the dead: " + strings.Join(counts, "; ") + "."
	f.Do = "They exclude nobody: the next client that runs sweeps them, and permits go to the next that asks."
	if len(f.SQL) > 0 {
		f.Level = Warning
		f.Do = "They exclude nobody, but a sweep is overdue: no client runs here, or none that sweeps these. As a service, each call up to some thousand rows:"
	}
	return f
}
