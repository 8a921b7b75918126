package pgbatonui

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton"
)

// loss is something that was on record as held when the session of its holder had ended.
type loss struct {
	row
	seen       time.Time // by the database's clock
	what, whom string
}

// row is that of a loss. After a crash of the server the numbers may begin again.
type row struct {
	id    int64
	since int64 // when it was acquired, in microseconds
}

// losses are the last that were seen.
type losses struct {
	ring  []loss
	known map[row]bool // theirs
}

func newLosses() losses { return losses{known: map[row]bool{}} }

const mostLosses = 50

// add keeps a loss that was not seen before.
func (l *losses) add(one loss) {
	if l.known[one.row] {
		return
	}
	if len(l.ring) == mostLosses {
		delete(l.known, l.ring[0].row)
		l.ring = slices.Delete(l.ring, 0, 1)
	}
	l.ring = append(l.ring, one)
	l.known[one.row] = true
}

// all returns the losses, the newest first.
func (l *losses) all() []loss {
	all := slices.Clone(l.ring)
	slices.Reverse(all)
	return all
}

// The sessions are looked at once, and not for each row.
const sqlLost = `
  WITH alive AS MATERIALIZED (SELECT s.id FROM pgbaton.sessions AS s),
       dead AS MATERIALIZED (
       SELECT r.* FROM pgbaton.registry AS r WHERE r.kind = 'held' AND r.holder NOT IN (SELECT a.id FROM alive AS a) ORDER BY r.id DESC LIMIT $1::int)
SELECT r.id, (extract(epoch FROM r.since) * 1000000)::bigint, clock_timestamp(), r.what, coalesce(r.name, ''), r.key, r.pair, r.permits,
       coalesce(c.name, ''), coalesce(c.host, ''), coalesce(c.process, 0)
  FROM dead AS r LEFT JOIN pgbaton.registry AS c ON c.kind = 'client' AND c.publisher = r.publisher
 ORDER BY r.id`

// lost looks for what the dead have held.
func (s *source) lost(ctx context.Context) error {
	return each(ctx, s.db, func(rows pgx.Rows) error {
		var (
			one       loss
			l         pgbaton.LockInfo
			key       int64
			pair      bool
			kind, of  string
			processes int
		)
		if err := rows.Scan(&one.id, &one.since, &one.seen, &kind, &of, &key, &pair, &l.Permits, &l.Client, &l.Host, &processes); err != nil {
			return err
		}
		l.Kind, l.Name, l.Process = kind, of, processes
		if of == "" {
			l.Name = number(key, pair)
		}
		one.what, one.whom = what(termed(l)), who(l)
		s.losses.add(one)
		return nil
	}, sqlLost, mostLosses)
}

const maxLearned = 2 * maxNames

// learn keeps the names of runs that are seen, since the database has only their numbers.
func (s *source) learn(locks []pgbaton.LockInfo) {
	for _, l := range locks {
		if l.Kind == kindOnce && l.Name != "" && len(s.names) < maxLearned {
			_, id, _ := l.Key.Parts()
			s.names[id] = l.Name
		}
	}
}

// nameOf is the name of a run by the resource of its lock.
func (s *source) nameOf(resource string) string {
	var id int64
	if n, err := fmt.Sscanf(resource, "pgbaton:key:%d", &id); n != 1 || err != nil {
		return resource
	}
	if name, ok := s.names[id]; ok {
		return name
	}
	return number(id, false)
}

// diagnosed are the findings about the client's links.
func diagnosed(d pgbaton.Diagnosis) []Finding {
	var all []Finding
	if d.NoSession != nil {
		all = append(all, Finding{
			Topic: "sessions", Level: levelWarning, Says: fmt.Sprintf("The client has no session of its own: %v.", d.NoSession),
			Do: fmt.Sprintf("What a dead process held is free after %v, and not at once. To change that, connect to the server itself.", d.TTL),
		})
	}
	for _, setting := range slices.Sorted(maps.Keys(d.Refused)) {
		do := "Locks behind a dead network are free later. Have the server's operator allow it."
		if setting == "idle_session_timeout" {
			do = "Locks of a frozen process are not freed. Have the server's operator allow it."
		}
		all = append(all, Finding{
			Topic: "protections", Level: levelWarning, Says: fmt.Sprintf("The server refuses to set %s = %s: %s.", setting, d.Protections[setting], d.Refused[setting]), Do: do,
		})
	}
	if d.MaxConns > 0 && d.Conns >= d.MaxConns {
		all = append(all, Finding{
			Topic: "connections", Level: levelWarning, Says: fmt.Sprintf("All %d connections of the client are in use.", d.MaxConns),
			Do: "Names may not be published, and waits take turns. Raise Config.MaxConns.",
		})
	}
	return all
}
