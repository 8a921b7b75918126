package benchmarks

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// What a semaphore in a table cannot do without: one statement that claims a slot, with a token and an expiry by the
// database's clock, and one that gives it back if it is still the claimer's.
const (
	sqlBareSlots = `CREATE TABLE bare_slot (
		semaphore bigint, slot integer, holder uuid, token bigint, expires_at timestamptz, PRIMARY KEY (semaphore, slot)
	) WITH (fillfactor = 50)`

	sqlBareFill = `INSERT INTO bare_slot (semaphore, slot) SELECT 1, i FROM generate_series(1, 8) AS i`

	sqlBareClaim = `UPDATE bare_slot
SET holder = $2, token = nextval('pgbaton.token'), expires_at = clock_timestamp() + interval '15 s'
WHERE semaphore = 1 AND slot = $1 AND (holder IS NULL OR expires_at < clock_timestamp())
RETURNING token`

	sqlBareRelease = `UPDATE bare_slot
SET holder = NULL
WHERE semaphore = 1 AND slot = $1 AND holder = $2 AND token = $3`
)

// bareSlot claims and releases a slot on one connection, as pgbaton's sessions without waiting for the disk.
func bareSlot(b *testing.B, dsn string) func(int) {
	b.Helper()
	ctx := context.Background()
	config, err := pgx.ParseConfig(dsn)
	require.NoError(b, err)
	config.RuntimeParams["synchronous_commit"] = "off"
	conn, err := pgx.ConnectConfig(ctx, config)
	require.NoError(b, err)
	b.Cleanup(func() { conn.Close(ctx) })
	for _, sql := range []string{sqlBareSlots, sqlBareFill} {
		_, err = conn.Exec(ctx, sql)
		require.NoError(b, err)
	}
	holder := [16]byte{1}
	return func(i int) {
		var token int64
		require.NoError(b, conn.QueryRow(ctx, sqlBareClaim, i%8+1, holder).Scan(&token))
		_, err := conn.Exec(ctx, sqlBareRelease, i%8+1, holder, token)
		require.NoError(b, err)
	}
}

// permitPair acquires and releases a permit of a semaphore with a capacity.
func permitPair(b *testing.B, dsn string, capacity int) func(int) {
	b.Helper()
	ctx := context.Background()
	semaphore, err := testclient.New(b, dsn, nil).Semaphore(ctx, fmt.Sprint("bench/", capacity), capacity)
	require.NoError(b, err)
	return func(int) {
		permit, err := semaphore.Acquire(ctx, 1)
		if err == nil {
			err = permit.Release(ctx)
		}
		if err != nil {
			b.Error(err)
		}
	}
}

// BenchmarkSemaphore is figure P8 for one goroutine.
func BenchmarkSemaphore(b *testing.B) {
	dsn := testkit.Migrated(b)
	compare(b, []string{"two-UPDATEs", "AcquireRelease"}, bareSlot(b, dsn), permitPair(b, dsn, 8))
}

// BenchmarkSemaphore_Crowd is figure P8 for 100 goroutines: pairs a second, over those of one goroutine with the
// bare statements. The two take turns.
func BenchmarkSemaphore_Crowd(b *testing.B) {
	const goroutines, each, bareRounds = 100, 20, 200
	for _, capacity := range []int{goroutines, 8} {
		b.Run(fmt.Sprintf("Capacity%d", capacity), func(b *testing.B) {
			dsn := testkit.Migrated(b)
			bare, pair := bareSlot(b, dsn), permitPair(b, dsn, capacity)
			crowd := func() {
				var group sync.WaitGroup
				for range goroutines {
					group.Go(func() {
						for i := range each {
							pair(i)
						}
					})
				}
				group.Wait()
			}
			crowd() // opens connections, prepares statements
			var bareTime, crowdTime time.Duration
			turns := 0
			for ; b.Loop(); turns++ {
				start := time.Now()
				for i := range bareRounds {
					bare(i)
				}
				bareTime += time.Since(start)
				start = time.Now()
				crowd()
				crowdTime += time.Since(start)
			}
			perSecond := func(pairs int, elapsed time.Duration) float64 { return float64(pairs*turns) / elapsed.Seconds() }
			b.ReportMetric(perSecond(goroutines*each, crowdTime), "pairs/s")
			b.ReportMetric(perSecond(bareRounds, bareTime), "bare-pairs/s")
			b.ReportMetric(perSecond(goroutines*each, crowdTime)/perSecond(bareRounds, bareTime), "ratio")
		})
	}
}
