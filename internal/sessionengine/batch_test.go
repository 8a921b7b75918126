package sessionengine

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/pipeline"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

func TestAnchor_Batches(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute)
	// Every seventh key is taken by another session, and every eleventh gate.
	const taken = `SELECT pg_advisory_lock(k) FROM generate_series(0, 3000, 7) AS k`
	const gates = `SELECT pg_advisory_lock(pgbaton.gate(k)) FROM generate_series(0, 3000, 11) AS k`
	_, err := f.admin.Exec(context.Background(), taken)
	require.NoError(t, err)
	_, err = f.admin.Exec(context.Background(), gates)
	require.NoError(t, err)
	last := int64(0)
	for round, size := range []int{1, 2, 3, 31, 32, 33, 1023, 1024, 1025, 3000} {
		random := rand.New(rand.NewPCG(uint64(size), 7)) //nolint:gosec // reproducible on purpose
		ops := make([]*engine.Request, size)
		want, locked := 0, map[advisory.Hold]bool{}
		for i := range ops {
			op := &engine.Request{Verb: engine.Acquire, Key: advisory.Key{ID: int64(i), Pair: i%3 == 1}, Mode: advisory.Mode(random.IntN(2))} //nolint:gosec // 0 or 1
			ops[i] = op
			free := i%7 != 0 || op.Key.Pair
			switch random.IntN(4) {
			case 0:
				op.Manners = engine.Behind
				gate := op.Key.Gate() ^ advisory.Key{}.Gate() // a pair may share a gate with a bigint key
				free = free && (gate%11 != 0 || gate > 3000)
			case 1:
				op.Verb, op.Want, free = engine.Draw, 1+random.IntN(40), false
				want += op.Want
			case 2:
				op.Want = 1 + random.IntN(3)
			}
			if free {
				locked[advisory.Hold{Key: op.Key, Mode: op.Mode}] = true
				want++
			}
		}
		f.do(ops...)
		require.Empty(t, difference(locked, f.holdings()), "round %d", round)
		dealt := 0
		for _, op := range ops {
			for token, ok := op.Tokens.Next(); ok; token, ok = op.Tokens.Next() {
				require.Greater(t, token, last)
				last = token
				dealt++
			}
		}
		require.GreaterOrEqual(t, dealt, want)
		var unlocks []*engine.Request
		for _, op := range ops {
			if op.Verb != engine.Draw {
				require.Equal(t, locked[advisory.Hold{Key: op.Key, Mode: op.Mode}], op.OK, "%+v", op)
				unlocks = append(unlocks, &engine.Request{Verb: engine.Release, Key: op.Key, Mode: op.Mode})
			}
		}
		if len(unlocks) > 0 {
			f.do(unlocks...)
		}
		for _, op := range unlocks {
			require.Equal(t, locked[advisory.Hold{Key: op.Key, Mode: op.Mode}], op.OK, "%+v", op)
		}
		require.Empty(t, f.holdings())
	}
}

// A token that cannot be drawn ends the statement after its locks were taken.
func TestAnchor_MendsAFailedRoundTrip(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute)
	kept := &engine.Request{Verb: engine.Acquire, Key: advisory.Key{ID: 7, Pair: true}, Mode: advisory.Shared}
	freed := &engine.Request{Verb: engine.Acquire, Key: advisory.Key{ID: -8}}
	f.do(kept)
	f.do(freed)
	testkit.Run(t, f.dsn, `DO $$ BEGIN EXECUTE format('ALTER SEQUENCE pgbaton.token MAXVALUE %s',
		(SELECT last_value FROM pgbaton.token)); END $$`)
	for _, size := range []int{1, 2, 500, 2500} {
		ops := []*engine.Request{}
		for i := range size {
			ops = append(ops, &engine.Request{Verb: engine.Acquire, Key: advisory.Key{ID: int64(1000 + i), Pair: i%2 == 1}, Mode: advisory.Mode(i % 3 / 2)}) //nolint:gosec // 0 or 1
		}
		unlock := &engine.Request{Verb: engine.Release, Key: freed.Key}
		if size > 1 {
			ops = append(ops, unlock)
		}
		f.do(ops...)
		for _, op := range ops {
			require.Equal(t, op == unlock, op.OK)
			require.Equal(t, op != unlock, op.Err != nil)
		}
		want := map[advisory.Hold]bool{{Key: kept.Key, Mode: kept.Mode}: true}
		if size == 1 {
			want[advisory.Hold{Key: freed.Key, Mode: freed.Mode}] = true
		}
		require.Empty(t, difference(want, f.holdings()))
		if size > 1 {
			freed = &engine.Request{Verb: engine.Acquire, Key: freed.Key}
			testkit.Run(t, f.dsn, "ALTER SEQUENCE pgbaton.token MAXVALUE 9007199254740960")
			f.do(freed)
			require.True(t, freed.OK)
			testkit.Run(t, f.dsn, `DO $$ BEGIN EXECUTE format('ALTER SEQUENCE pgbaton.token MAXVALUE %s',
				(SELECT last_value FROM pgbaton.token)); END $$`)
		}
	}
	select {
	case <-f.gone:
		require.NoError(t, f.cause)
	default:
	}
}

// An operator who cancels the anchor's statements at any moment, also while it repairs what an earlier cancel did,
// breaks nothing.
func TestAnchor_CancelledAllTheTime(t *testing.T) {
	t.Parallel()
	f := open(t, time.Minute)
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Length(3*time.Second))
	defer cancel()
	stopped := make(chan struct{})
	canceller := testkit.Connect(t, f.dsn)
	t.Cleanup(func() { cancel(); <-stopped })
	go func() {
		defer close(stopped)
		for ctx.Err() == nil {
			_, _ = canceller.Exec(context.Background(), "SELECT pg_cancel_backend($1), pg_sleep(random() / 200)", int32(f.pid)) //nolint:gosec,contextcheck // a pid; cut off in the middle it would close the connection
		}
	}()
	cancelled := 0
	for round := 0; ctx.Err() == nil; round++ {
		var tries, unlocks []*engine.Request
		want := map[advisory.Hold]bool{}
		for i := range 300 {
			tries = append(tries, &engine.Request{Verb: engine.Acquire, Key: advisory.Key{ID: int64(i), Pair: i%2 == 0}, Mode: advisory.Mode(round % 2)}) //nolint:gosec // 0 or 1
		}
		f.do(tries...)
		for _, op := range tries {
			if op.Err != nil {
				require.ErrorIs(t, op.Err, pipeline.ErrRetry)
				require.False(t, op.OK)
				cancelled++
				continue
			}
			require.True(t, op.OK, "%+v %v", op, f.cause)
			want[advisory.Hold{Key: op.Key, Mode: op.Mode}] = true
			unlocks = append(unlocks, &engine.Request{Verb: engine.Release, Key: op.Key, Mode: op.Mode})
		}
		require.Empty(t, difference(want, f.holdings()), "round %d", round)
		if len(unlocks) > 0 {
			f.do(unlocks...)
		}
		for _, op := range unlocks {
			require.NoError(t, op.Err)
			require.True(t, op.OK)
		}
		require.Empty(t, f.holdings(), "round %d", round)
	}
	<-stopped
	t.Logf("%d operations cancelled", cancelled)
}
