package storm

import (
	"cmp"
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
)

// place is what one client has on one server.
type place struct {
	pid   int // of the session that is there for longest
	locks int // advisory locks of sessions
}

// look returns the sessions and locks on a server of the clients whose address changes.
func look(ctx context.Context, c *control) (map[string]place, error) {
	places := map[string]place{}
	err := c.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `SELECT application_name, (array_agg(pid ORDER BY backend_start))[1],
				(SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS h USING (pid)
				  WHERE l.locktype = 'advisory' AND l.granted AND h.application_name = a.application_name)
			FROM pg_stat_activity AS a WHERE application_name LIKE $1
			GROUP BY application_name`, worker.StormClient+"0-%")
		if err != nil {
			return err
		}
		var name string
		var p place
		_, err = pgx.ForEachRow(rows, []any{&name, &p.pid, &p.locks}, func() error { places[name] = p; return nil })
		return err
	})
	return places, err
}

// split is a client that was seen on both servers.
type split struct {
	home, away int // the sessions
	since      time.Time
	told       bool
}

// watchBoth looks all the time whether a client has sessions on both servers for longer than a move takes.
func (f *fight) watchBoth(ctx context.Context) {
	home, away := &control{field: f.home}, &control{field: f.away}
	defer home.close()
	defer away.close()
	tooLong := cmp.Or(f.opts.Both, time.Second)
	splits := map[string]*split{}
	for rest(ctx, 50*time.Millisecond) {
		here, err := look(ctx, home)
		there, err2 := look(ctx, away)
		if err != nil || err2 != nil {
			continue
		}
		for name := range splits {
			if _, ok := here[name]; !ok {
				delete(splits, name)
			}
		}
		for name, h := range here {
			a, ok := there[name]
			s := splits[name]
			switch {
			case !ok:
				delete(splits, name)
			case s == nil || s.home != h.pid || s.away != a.pid:
				splits[name] = &split{home: h.pid, away: a.pid, since: time.Now()}
			case !s.told && time.Since(s.since) > tooLong:
				s.told = true
				f.violate("%s has been on two servers for %v: %d advisory locks on one, %d on the other",
					strings.TrimPrefix(name, worker.StormClient), tooLong, h.locks, a.locks)
			}
		}
	}
}
