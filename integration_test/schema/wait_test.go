package schema_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

const (
	waitKey  int64 = 42
	waitGate int64 = 4242
)

// waitCall is a call of pgbaton.wait_for_turn for waitKey and waitGate.
type waitCall struct {
	pair, shared, atGate, keepGate bool
	waitMS                         int
}

func (c waitCall) run(ctx context.Context, conn *pgx.Conn) (turn int, err error) {
	err = conn.QueryRow(ctx, "SELECT pgbaton.wait_for_turn($1, $2, $3, $4, $5, $6, $7)",
		waitKey, c.pair, c.shared, waitGate, c.atGate, c.keepGate, c.waitMS).Scan(&turn)
	return turn, err
}

func TestWaitForTurn(t *testing.T) {
	t.Parallel()
	const (
		lockKey       = "SELECT pg_advisory_lock(42)"
		lockKeyShared = "SELECT pg_advisory_lock_shared(42)"
		lockPair      = "SELECT pg_advisory_lock(0, 42)"
		lockGate      = "SELECT pg_advisory_lock(4242)"
	)
	gate := []int64{waitGate}
	none := []int64{}
	for name, c := range map[string]struct {
		taken string // by another session
		call  waitCall
		turn  int
		held  []int64
	}{
		"Free":                 {"SELECT", waitCall{}, 2, gate},
		"FreeShared":           {"SELECT", waitCall{shared: true}, 2, gate},
		"FreePair":             {"SELECT", waitCall{pair: true}, 2, gate},
		"FreePairShared":       {"SELECT", waitCall{pair: true, shared: true}, 2, gate},
		"OtherSpace":           {lockPair, waitCall{}, 2, gate},
		"OtherSpacePair":       {lockKey, waitCall{pair: true}, 2, gate},
		"SharedMeetsShared":    {lockKeyShared, waitCall{shared: true}, 2, gate},
		"ExclusiveMeetsShared": {lockKeyShared, waitCall{}, 0, none},
		"Taken":                {lockKey, waitCall{}, 0, none},
		"TakenShared":          {lockKey, waitCall{shared: true}, 0, none},
		"TakenPair":            {lockPair, waitCall{pair: true}, 0, none},
		"TakenPairShared":      {lockPair, waitCall{pair: true, shared: true}, 0, none},
		"TakenKeepGate":        {lockKey, waitCall{keepGate: true}, 1, gate},
		"TakenPairKeepGate":    {lockPair, waitCall{pair: true, keepGate: true}, 1, gate},
		"GateTaken":            {lockGate, waitCall{}, 0, none},
		"GateTakenKeepGate":    {lockGate, waitCall{keepGate: true}, 0, none},
		"AtGate":               {"SELECT", waitCall{atGate: true}, 2, gate},
		"AtGateTaken":          {lockKey, waitCall{atGate: true}, 0, none},
		"AtGateTakenKeepGate":  {lockKey, waitCall{atGate: true, keepGate: true}, 1, gate},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ownerURL, appURL := newDatabase(t)
			observer, waiter := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL)
			testkit.Exec(t, testkit.Connect(t, appURL), c.taken)
			if c.call.atGate {
				testkit.Exec(t, waiter, lockGate)
			}
			c.call.waitMS = 30
			turn, err := c.call.run(t.Context(), waiter)
			require.NoError(t, err)
			require.Equal(t, c.turn, turn)
			require.Equal(t, c.held, advisoryLocks(t, observer, pidOf(waiter)))
			require.Equal(t, "0", testkit.Value[string](t, waiter, "SELECT current_setting('lock_timeout')"))
		})
	}
}

// A deadlock is raised, and leaves nothing. Here the holder of the key wants the gate; the waiter finds
// the deadlock, as its deadlock_timeout is the shorter one.
func TestWaitForTurn_DeadlockLeavesNothing(t *testing.T) {
	t.Parallel()
	ownerURL, _ := newDatabase(t)
	observer, waiter, other := testkit.Connect(t, ownerURL), testkit.Connect(t, ownerURL), testkit.Connect(t, ownerURL)
	testkit.Exec(t, waiter, "SET deadlock_timeout = '100ms'; SELECT pg_advisory_lock(4242)")
	testkit.Exec(t, other, "SET deadlock_timeout = '1min'; SELECT pg_advisory_lock(42)")
	granted := make(chan error, 1)
	go func() {
		_, err := other.Exec(t.Context(), "SELECT pg_advisory_lock(4242)")
		granted <- err
	}()
	waitsForLock(t, observer, pidOf(other))
	_, err := waitCall{atGate: true, keepGate: true, waitMS: 60_000}.run(t.Context(), waiter)
	require.ErrorContains(t, err, "deadlock detected")
	require.NoError(t, <-granted)
	require.Empty(t, advisoryLocks(t, observer, pidOf(waiter)))
}

// The session holds what the result says, after every one of many calls that race with holders that
// come and go, with its own timeouts and with cancels.
func TestWaitForTurn_HoldsWhatItSays(t *testing.T) {
	t.Parallel()
	for name, cancels := range map[string]bool{"Timeouts": false, "TimeoutsAndCancels": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ownerURL, appURL := newDatabase(t)
			observer, waiter := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL)
			stop := startTraffic(t, ownerURL, cancels, pidOf(waiter))
			defer stop()

			results := map[string]int{}
			held := []int64{}
			for again := racing(t, 3000); again(min(results["0"], results["1"], results["2"])); {
				call := waitCall{
					shared: rand.IntN(2) == 0, keepGate: rand.IntN(2) == 0, atGate: len(held) > 0, waitMS: 1 + rand.IntN(3),
				}
				turn, err := call.run(t.Context(), waiter)
				held = advisoryLocks(t, observer, pidOf(waiter))
				results[checkWait(t, call, turn, err, held, cancels)]++
				if len(held) > 0 && (err != nil || rand.IntN(2) == 0) {
					unlockAll(t, waiter)
					held = nil
				}
			}
			t.Log(results)
		})
	}
}

// checkWait compares what a call said with what the session holds, and names the case.
func checkWait(t *testing.T, call waitCall, turn int, err error, held []int64, cancels bool) string {
	t.Helper()
	var pgErr *pgconn.PgError
	if cancels && errors.As(err, &pgErr) && (pgErr.Code == "57014" || pgErr.Code == "55P03") {
		// A cancel outside of the blocks: before them (the gate is held if it was before) or after. If
		// a wait has timed out before, the server takes the cancel for another timeout.
		require.Subset(t, []int64{waitGate}, held)
		if len(held) > 0 && !call.atGate {
			return "cancelled, gate left"
		}
		return "cancelled"
	}
	require.NoError(t, err)
	if turn == 0 {
		require.Empty(t, held, "%+v", call)
		return "0"
	}
	require.Equal(t, []int64{waitGate}, held, "%+v returned %d", call, turn)
	if turn == 1 {
		require.True(t, call.keepGate)
		return "1"
	}
	require.Equal(t, 2, turn)
	return "2"
}

// unlockAll tries until no late cancel gets in the way.
func unlockAll(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	for {
		_, err := conn.Exec(t.Context(), "SELECT pg_advisory_unlock_all()")
		if err == nil {
			return
		}
		var pgErr *pgconn.PgError
		require.ErrorAs(t, err, &pgErr)
		require.Equal(t, "57014", pgErr.Code)
	}
}

// startTraffic lets other sessions take and free the key and the gate for a millisecond or two, over and
// over, and if wanted cancels what the session of pid does. stop ends it and waits.
func startTraffic(t *testing.T, dsn string, cancels bool, pid uint32) (stop func()) {
	t.Helper()
	statements := []string{
		"SELECT pg_advisory_lock(42), pg_sleep(random() * 0.003), pg_advisory_unlock(42), pg_sleep(random() * 0.001)",
		"SELECT pg_advisory_lock_shared(42), pg_sleep(random() * 0.003), pg_advisory_unlock_shared(42), pg_sleep(random() * 0.003)",
		"SELECT pg_advisory_lock(4242), pg_sleep(random() * 0.002), pg_advisory_unlock(4242), pg_sleep(random() * 0.003)",
	}
	cancel := "SELECT pg_cancel_backend($1), pg_sleep(random() * 0.004)"
	ctx, end := context.WithCancel(t.Context())
	var group sync.WaitGroup
	loop := func(sql string, args ...any) {
		conn := testkit.Connect(t, dsn)
		group.Go(func() {
			for ctx.Err() == nil {
				if _, err := conn.Exec(ctx, sql, args...); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for _, sql := range statements {
		loop(sql)
	}
	if cancels {
		loop(cancel, int32(pid))
	}
	return func() {
		end()
		group.Wait()
	}
}
