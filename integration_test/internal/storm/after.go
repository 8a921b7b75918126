package storm

import (
	"context"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
)

// rows checks what the transactions left: no counter lost a change, and fenced rows are in the order of their tokens.
func (f *fight) rows(ctx context.Context, reports []*worker.Report) {
	var mutated [3]int // calls of Mutate that said that they wrote, of these those that a failover may have lost, and others that may have written
	for _, report := range reports {
		for _, m := range report.Mutated {
			mutated[0]++
			if forgotten(f.outcome.Failovers, commit, m[0], m[1], math.MaxInt64) {
				mutated[1]++
			}
		}
		mutated[2] += report.MayMutate
	}
	c := &control{field: f.home}
	defer c.close()
	type counter struct {
		Key         string
		Value, Done int
	}
	var counters []counter
	err := c.do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `SELECT key, value, (SELECT count(*) FROM storm_done AS d WHERE d.key = c.key) AS done
			FROM storm_counter AS c ORDER BY key`)
		if err == nil {
			counters, err = pgx.CollectRows(rows, pgx.RowToStructByName[counter])
		}
		return err
	})
	if err != nil {
		f.violate("the counters cannot be read: %v", err)
	}
	for _, n := range counters {
		switch {
		case n.Key == "Mutate" && len(f.killed) > 0: // nobody knows what the calls of those were told
		case n.Key == "Mutate" && (n.Value < mutated[0]-mutated[1] || n.Value > mutated[0]+mutated[2]):
			f.violate("Mutate changed a counter %d times, and at most %d more; it is at %d", mutated[0]-mutated[1], mutated[1]+mutated[2], n.Value)
		case n.Key != "Mutate" && n.Value != n.Done:
			f.violate("%s: %d of %d changes of a counter were lost", n.Key, n.Done-n.Value, n.Done)
		}
	}
	stale, err := c.count(ctx, `SELECT count(*) FROM (
		SELECT token < max(token) OVER (PARTITION BY resource ORDER BY seq) AS stale FROM storm_written) AS w WHERE stale`)
	switch {
	case err != nil:
		f.violate("the fenced rows cannot be read: %v", err)
	case stale > 0:
		f.violate("%d rows were written with a token older than one that a fence had seen", stale)
	}
}

// leftovers checks that the clients, which are closed by now, have left nothing on the servers, and that everything can be
// had again.
func (f *fight) leftovers(ctx context.Context) {
	fields := []*field{f.home}
	if f.away != nil {
		fields = append(fields, f.away)
	}
	patience := 2*f.opts.TTL + 20*time.Second
	for _, field := range fields {
		c := &control{field: field}
		f.gone(ctx, c, patience, "sessions", "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'storm-client-%'")
		f.gone(ctx, c, patience, "advisory locks", `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
		f.gone(ctx, c, patience, "leases", "SELECT count(*) FROM pgbaton.lease WHERE holder IS NOT NULL AND expires_at > clock_timestamp()")
		f.again(ctx, field, patience)
		f.gone(ctx, c, patience, "permits", "SELECT count(*) FROM pgbaton.slot WHERE holder IS NOT NULL AND expires_at > clock_timestamp()")
		f.gone(ctx, c, patience, "rows of waits", "SELECT count(*) FROM pgbaton.registry WHERE kind = 'watched'")
		f.count(ctx, c)
		c.close()
	}
}

// gone waits until there is none of something.
func (f *fight) gone(ctx context.Context, c *control, within time.Duration, what, sql string) {
	for end := time.Now().Add(within); ; {
		n, err := c.count(ctx, sql)
		if err == nil && n == 0 {
			return
		}
		if time.Now().After(end) || !rest(ctx, oftenEnough) {
			f.violate("%d %s were left behind on %s after %v (%v)", n, what, c.field.server.Origin(), within, err)
			return
		}
	}
}

// again takes every key and every permit with a new client.
func (f *fight) again(ctx context.Context, field *field, within time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	client, err := pgbaton.Open(ctx, field.url("")+"&application_name=storm-again", nil)
	if err != nil {
		f.violate("a new client cannot be opened afterwards: %v", err)
		return
	}
	var keys []pgbaton.Key
	for _, name := range worker.StormNames() {
		keys = append(keys, pgbaton.Name(name))
	}
	if set, err := client.AcquireAll(ctx, keys...); err != nil {
		f.violate("not all keys can be had afterwards: %v", err)
	} else if err = set.Release(ctx); err != nil {
		f.violate("the keys, afterwards: %v", err)
	}
	for _, name := range slices.Sorted(maps.Keys(capacities)) {
		semaphore, err := client.Semaphore(ctx, name, 0)
		if err != nil {
			f.violate("a semaphore cannot be opened afterwards: %v", err)
			continue
		}
		permit, err := semaphore.Acquire(ctx, capacities[name])
		if err != nil {
			f.violate("not all permits can be had afterwards: %v", err)
			continue
		}
		if err = permit.Release(ctx); err != nil {
			f.violate("the permits, afterwards: %v", err)
		}
	}
	if err := client.Close(ctx); err != nil {
		f.violate("close the client, afterwards: %v", err)
	}
}

// count reports how many rows each table of the schema has at the end.
func (f *fight) count(ctx context.Context, c *control) {
	for _, table := range []string{"holder", "leader", "wait", "fence", "last_run", "slot", "lease"} {
		n, err := c.count(ctx, "SELECT count(*) FROM "+pgx.Identifier{"pgbaton", table}.Sanitize())
		if err != nil {
			f.tb.Logf("count the rows of %s: %v", table, err)
			continue
		}
		f.outcome.Left[table] += n
	}
}
