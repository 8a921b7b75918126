package schema_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Two keys with their gates, in the order in which they are taken: 4242, 42, 4343, 43.
func waitSeveral(ctx context.Context, conn *pgx.Conn, gates, keys, waitMS int) (gatesHeld, keysHeld int, err error) {
	err = conn.QueryRow(ctx, "SELECT gates_held, keys_held FROM pgbaton.wait_for_turns('{4242,4343}', '{42,43}', '{f,f}', $1, $2, $3)",
		gates, keys, waitMS).Scan(&gatesHeld, &keysHeld)
	return gatesHeld, keysHeld, err
}

// several is what a session holds that has so many gates and keys, in order.
func several(gates, keys int) []int64 {
	held := append(slices.Clone([]int64{4242, 4343}[:gates]), []int64{42, 43}[:keys]...)
	slices.Sort(held)
	return held
}

func TestWaitForTurns(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		taken       string // by another session
		gates, keys int    // held before
		waitMS      int
		turn        bool
		nowGates    int
		nowKeys     int
	}{
		"Free":               {taken: "SELECT", waitMS: 30, turn: true, nowGates: 2, nowKeys: 2},
		"FreeByTries":        {taken: "SELECT", turn: true, nowGates: 2, nowKeys: 2},
		"FirstKeyTaken":      {taken: "SELECT pg_advisory_lock(42)", waitMS: 30, nowGates: 1},
		"SharedIsTaken":      {taken: "SELECT pg_advisory_lock_shared(42)", waitMS: 30, nowGates: 1},
		"SecondGateTaken":    {taken: "SELECT pg_advisory_lock(4343)", waitMS: 30, nowGates: 1, nowKeys: 1},
		"SecondKeyTaken":     {taken: "SELECT pg_advisory_lock(43)", waitMS: 30, nowGates: 2, nowKeys: 1},
		"FirstGateTaken":     {taken: "SELECT pg_advisory_lock(4242)", waitMS: 30},
		"FirstGateTakenTry":  {taken: "SELECT pg_advisory_lock(4242)"},
		"SecondKeyTakenTry":  {taken: "SELECT pg_advisory_lock(43)", nowGates: 2, nowKeys: 1},
		"AnotherSpace":       {taken: "SELECT pg_advisory_lock(0, 42)", turn: true, nowGates: 2, nowKeys: 2},
		"GoesOn":             {taken: "SELECT", gates: 2, keys: 1, waitMS: 30, turn: true, nowGates: 2, nowKeys: 2},
		"AgainAtTheGates":    {taken: "SELECT pg_advisory_lock(42)", gates: 2, waitMS: 30, nowGates: 2},
		"AgainAtTheGatesTry": {taken: "SELECT", gates: 2, turn: true, nowGates: 2, nowKeys: 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ownerURL, appURL := newDatabase(t)
			observer, waiter := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL)
			for _, key := range several(c.gates, c.keys) {
				testkit.Exec(t, waiter, "SELECT pg_advisory_lock($1)", key)
			}
			testkit.Exec(t, testkit.Connect(t, appURL), c.taken)
			gates, keys, err := waitSeveral(t.Context(), waiter, c.gates, c.keys, c.waitMS)
			require.NoError(t, err)
			require.Equal(t, []int{c.nowGates, c.nowKeys}, []int{gates, keys})
			if c.turn {
				keys = 0 // they were given back
			}
			require.Equal(t, several(gates, keys), advisoryLocks(t, observer, pidOf(waiter)))
			require.Equal(t, "0", testkit.Value[string](t, waiter, "SELECT current_setting('lock_timeout')"))
			unlockAll(t, waiter)
			require.Empty(t, advisoryLocks(t, observer, pidOf(waiter)), "none is held twice")
		})
	}
}

// After each of many calls that race with others and with cancels the session holds what the answer says, each once.
// After an error it may hold some of it, and nothing when all is unlocked.
func TestWaitForTurns_HoldsWhatItSays(t *testing.T) {
	t.Parallel()
	for name, cancels := range map[string]bool{"Timeouts": false, "TimeoutsAndCancels": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ownerURL, appURL := newDatabase(t)
			observer, waiter := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL)
			stop := startTraffic(t, ownerURL, cancels, pidOf(waiter))
			defer stop()
			gates, keys, turns, partial := 0, 0, 0, 0
			for again := racing(t, 3000); again(min(turns, partial)); {
				nowGates, nowKeys, err := waitSeveral(t.Context(), waiter, gates, keys, rand.IntN(4))
				held := advisoryLocks(t, observer, pidOf(waiter))
				var pgErr *pgconn.PgError
				switch {
				case cancels && errors.As(err, &pgErr) && (pgErr.Code == "57014" || pgErr.Code == "55P03"):
					unlockAll(t, waiter)
					require.Empty(t, advisoryLocks(t, observer, pidOf(waiter)))
					gates, keys = 0, 0
					continue
				case nowKeys == 2:
					turns++
					nowKeys = 0
				case nowGates > 0:
					partial++
				}
				require.NoError(t, err)
				gates, keys = nowGates, nowKeys
				require.Equal(t, several(gates, keys), held)
				if rand.IntN(3) == 0 {
					unlockAll(t, waiter)
					gates, keys = 0, 0
				}
			}
			t.Log(turns, partial)
		})
	}
}
