package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// ownTables are the tables of the library that a call may meet.
const ownTables = "pgbaton.slot, pgbaton.semaphore, pgbaton.holder, pgbaton.leader, pgbaton.last_run, pgbaton.registry, " +
	"pgbaton.fence"

// blockages are what others may do to the tables of the library. Each is begun by statements in a transaction that
// stays open; then, if there is one, a statement waits for that transaction and everybody who comes later behind it.
var blockages = []struct {
	name, hold, behind string
	table              bool // the slots' table is blocked as a whole
}{
	{"all tables locked", "LOCK TABLE " + ownTables + " IN ACCESS EXCLUSIVE MODE", "", true},
	{"slots locked", "LOCK TABLE pgbaton.slot IN ACCESS EXCLUSIVE MODE", "", true},
	{"semaphores locked", "LOCK TABLE pgbaton.semaphore IN ACCESS EXCLUSIVE MODE", "", false},
	{"holders locked", "LOCK TABLE pgbaton.holder IN ACCESS EXCLUSIVE MODE", "", false},
	{"jobs and leaders locked", "LOCK TABLE pgbaton.last_run, pgbaton.leader, pgbaton.registry IN ACCESS EXCLUSIVE MODE", "", false},
	{"slots altered", "ALTER TABLE pgbaton.slot ADD COLUMN note text", "", true},
	{"slots about to be vacuumed", "SELECT count(*) FROM pgbaton.slot", "VACUUM FULL pgbaton.slot", true},
	{"all rows locked", "SELECT FROM pgbaton.slot FOR UPDATE; SELECT FROM pgbaton.semaphore FOR UPDATE; " +
		"SELECT FROM pgbaton.last_run FOR UPDATE; SELECT FROM pgbaton.leader FOR UPDATE; SELECT FROM pgbaton.holder FOR UPDATE", "", false},
	{"rows of slots locked", "SELECT FROM pgbaton.slot WHERE slot <= 2 FOR UPDATE", "", false},
}

// blockedTTL is the TTL of the clients of TestBlocked.
const blockedTTL = 4 * time.Second

// blocked is what the calls of TestBlocked need.
type blocked struct {
	client    *pgbaton.Client
	semaphore *pgbaton.Semaphore
	held      *pgbaton.Permit
	tx        pgx.Tx
}

func ignoring[T any](_ T, err error) error { return err }

// blockedCalls are the calls that may meet a table of the library, with a context that ends soon.
var blockedCalls = map[string]func(ctx context.Context, b *blocked) error{
	"Semaphore": func(ctx context.Context, b *blocked) error {
		return ignoring(b.client.Semaphore(ctx, "new", 3))
	},
	"OpenSemaphore": func(ctx context.Context, b *blocked) error { return ignoring(b.client.Semaphore(ctx, "s", 0)) },
	"Acquire": func(ctx context.Context, b *blocked) error {
		p, err := b.semaphore.Acquire(ctx, 1)
		if err == nil {
			err = p.Release(ctx)
		}
		return err
	},
	"TryAcquire": func(ctx context.Context, b *blocked) error {
		p, err := b.semaphore.TryAcquire(ctx, 1)
		if err == nil {
			err = p.Release(ctx)
		}
		return err
	},
	"Resize":       func(ctx context.Context, b *blocked) error { return b.semaphore.Resize(ctx, 9) },
	"Available":    func(ctx context.Context, b *blocked) error { return ignoring(testclient.Available(ctx, b.semaphore)) },
	"Capacity":     func(ctx context.Context, b *blocked) error { return ignoring(testclient.Capacity(ctx, b.semaphore)) },
	"Holders":      func(ctx context.Context, b *blocked) error { return ignoring(testclient.Holders(ctx, b.semaphore)) },
	"AssertPermit": func(ctx context.Context, b *blocked) error { return b.held.Assert(ctx, b.tx) },
	"Once": func(ctx context.Context, b *blocked) error {
		return b.client.Once(ctx, "job", time.Hour, func(context.Context, *pgbaton.Lock) error { return nil })
	},
	"Leader":        func(ctx context.Context, b *blocked) error { return ignoring(b.client.Leader(ctx, "boss")) },
	"RequestResign": func(ctx context.Context, b *blocked) error { return b.client.RequestResign(ctx, "elsewhere") },
	"Lead": func(ctx context.Context, b *blocked) error {
		return b.client.Lead(ctx, "mine", func(ctx context.Context, _ *pgbaton.Lock) error {
			<-ctx.Done()
			return context.Cause(ctx)
		})
	},
}

// timed runs a call and takes its time.
func timed(call func() error) (time.Duration, error) {
	start := time.Now()
	err := call()
	return time.Since(start), err
}

// While others have the tables of the library, or rows of them, every call returns when its context ends, Release and
// Close within TTL, and what is held is lost only where it could not be renewed, and then the holder is told. When the
// tables are free again, nothing is left behind.
func TestBlocked(t *testing.T) {
	t.Parallel()
	for _, blockage := range blockages {
		t.Run(blockage.name, func(t *testing.T) {
			t.Parallel()
			dsn := testkit.Migrated(t)
			ctx := testkit.Context(t)
			open := func() (*pgbaton.Client, *pgbaton.Semaphore) {
				client := testclient.Open(t, dsn, &pgbaton.Config{TTL: blockedTTL})
				s, err := client.Semaphore(ctx, "s", 8)
				require.NoError(t, err)
				return client, s
			}
			client, s := open()
			closing, other := open()
			acquire := func(s *pgbaton.Semaphore) *pgbaton.Permit {
				p, err := s.Acquire(ctx, 1)
				require.NoError(t, err)
				return p
			}
			alone, err := client.Semaphore(ctx, "alone", 1) // nobody waits for it
			require.NoError(t, err)
			released, kept, closed := acquire(alone), acquire(s), acquire(other)
			require.NoError(t, client.Once(ctx, "job", time.Hour, func(context.Context, *pgbaton.Lock) error { return nil }))
			caller := testkit.Connect(t, dsn)
			tx, err := caller.Begin(ctx)
			require.NoError(t, err)
			b := &blocked{client: client, semaphore: s, held: kept, tx: tx}

			holding, waiting := testkit.Connect(t, dsn), testkit.Connect(t, dsn)
			testkit.Exec(t, holding, "BEGIN; "+blockage.hold)
			var group sync.WaitGroup
			if blockage.behind != "" {
				group.Go(func() { _, _ = waiting.PgConn().Exec(ctx, blockage.behind).ReadAll() })
				testkit.WaitFor(t, holding, "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)", int32(waiting.PgConn().PID()))
			}

			var mu sync.Mutex
			var report []string
			note := func(name string, took, limit time.Duration, err error) {
				mu.Lock()
				defer mu.Unlock()
				report = append(report, fmt.Sprintf("%-14s %8v  %v", name, took.Round(time.Millisecond), err))
				if took > limit+hung {
					t.Errorf("%s hung: %v (%v)", name, took, err)
				}
			}
			const patience = 400 * time.Millisecond
			var calls sync.WaitGroup
			for name, call := range blockedCalls {
				calls.Go(func() {
					short, cancel := context.WithTimeout(ctx, patience)
					defer cancel()
					took, err := timed(func() error { return call(short, b) })
					note(name, took, patience, err)
					lost := blockage.table && errors.Is(err, pgbaton.ErrLost) && b.held.Err() != nil // the machine is so slow that TTL has passed
					if err != nil && short.Err() == nil && !lost && !errors.Is(err, pgbaton.ErrNotFound) && !errors.Is(err, pgbaton.ErrNotAcquired) {
						t.Errorf("%s failed before its context ended: %v", name, err)
					}
				})
			}
			calls.Go(func() {
				took, err := timed(func() error { return released.Release(ctx) })
				note("Release", took, blockedTTL, err)
				if blockage.table && !errors.Is(err, pgbaton.ErrLost) {
					t.Errorf("nobody can have confirmed it: %v", err)
				}
			})
			calls.Wait()
			took, err := timed(func() error { return closing.Close(ctx) })
			note("Close", took, blockedTTL, err)
			require.ErrorIs(t, closed.Err(), pgbaton.ErrLost)
			if blockage.table {
				<-kept.Done()
				require.Equal(t, "lease expired", pgbaton.LossReasonOf(kept.Err()))
			} else if blockage.name != "all rows locked" && blockage.name != "rows of slots locked" {
				time.Sleep(2 * blockedTTL) // long enough for all renewals but one to be missed
				require.NoError(t, kept.Err(), "its slot can be renewed")
			}
			slices.Sort(report)
			for _, line := range report {
				t.Log(line)
			}

			testkit.Exec(t, holding, "ROLLBACK")
			_ = tx.Rollback(ctx)
			group.Wait()
			_ = kept.Release(ctx)
			within, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			capacity, err := testclient.Capacity(within, s)
			require.NoError(t, err)
			all, err := s.Acquire(within, capacity)
			require.NoError(t, err, "all permits")
			require.NoError(t, all.Release(ctx))
			require.NoError(t, client.Close(ctx))
		})
	}
}

// hung is how much longer than it may a call takes that hangs: the tables are not free before all calls have returned.
const hung = testkit.Patience
