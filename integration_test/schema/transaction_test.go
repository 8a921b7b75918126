package schema_test

import (
	"math/rand/v2"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

func lockForTransaction(t *testing.T, conn *pgx.Conn, pair, shared bool, waitMS any) *int64 {
	t.Helper()
	return testkit.Value[*int64](t, conn, "SELECT pgbaton.lock_for_transaction($1, $2, $3, $4::integer)",
		waitKey, pair, shared, waitMS)
}

func TestLockForTransaction(t *testing.T) {
	t.Parallel()
	const (
		lockKey       = "SELECT pg_advisory_lock(42)"
		lockKeyShared = "SELECT pg_advisory_lock_shared(42)"
		lockPair      = "SELECT pg_advisory_lock(0, 42)"
	)
	for name, c := range map[string]struct {
		taken        string // by another session
		pair, shared bool
		waitMS       any
		granted      bool
	}{
		"Free":                 {"SELECT", false, false, 0, true},
		"FreeWait":             {"SELECT", false, false, 30, true},
		"FreeWaitForever":      {"SELECT", false, false, nil, true},
		"FreePair":             {"SELECT", true, false, 0, true},
		"FreePairSharedWait":   {"SELECT", true, true, 30, true},
		"OtherSpace":           {lockPair, false, false, 0, true},
		"SharedMeetsShared":    {lockKeyShared, false, true, 0, true},
		"ExclusiveMeetsShared": {lockKeyShared, false, false, 0, false},
		"Taken":                {lockKey, false, false, 0, false},
		"TakenWait":            {lockKey, false, false, 30, false},
		"TakenSharedWait":      {lockKey, false, true, 30, false},
		"TakenPair":            {lockPair, true, false, 0, false},
		"TakenPairSharedWait":  {lockPair, true, true, 30, false},
		"TakenSessionsTimeout": {lockKey, false, false, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ownerURL, appURL := newDatabase(t)
			observer, conn := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL)
			testkit.Exec(t, testkit.Connect(t, appURL), c.taken)
			before := nextToken(t, conn) // repairs, which takes locks of the transaction's
			testkit.Exec(t, conn, "SET lock_timeout = '70ms'; BEGIN")

			token := lockForTransaction(t, conn, c.pair, c.shared, c.waitMS)
			require.Equal(t, c.granted, token != nil)
			require.Equal(t, "70ms", testkit.Value[string](t, conn, "SELECT current_setting('lock_timeout')"))
			if c.granted {
				require.Greater(t, *token, before)
				require.Equal(t, []int64{waitKey}, advisoryLocks(t, observer, pidOf(conn)))
			} else {
				require.Empty(t, advisoryLocks(t, observer, pidOf(conn)))
			}
			testkit.Exec(t, conn, "COMMIT")
			require.Empty(t, advisoryLocks(t, observer, pidOf(conn)))
			require.Equal(t, "70ms", testkit.Value[string](t, conn, "SELECT current_setting('lock_timeout')"))
		})
	}
}

func TestLockForTransaction_Savepoints(t *testing.T) {
	t.Parallel()
	ownerURL, appURL := newDatabase(t)
	observer, conn := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL)
	nextToken(t, conn) // repairs, which takes locks of the transaction's
	for _, waitMS := range []any{0, 30, nil} {
		testkit.Exec(t, conn, "BEGIN; SET LOCAL lock_timeout = '5s'; SAVEPOINT a")
		first := lockForTransaction(t, conn, false, false, waitMS)
		require.NotNil(t, first)
		testkit.Exec(t, conn, "ROLLBACK TO a")
		require.Empty(t, advisoryLocks(t, observer, pidOf(conn)))
		require.Equal(t, "5s", testkit.Value[string](t, conn, "SELECT current_setting('lock_timeout')"))

		second := lockForTransaction(t, conn, false, false, waitMS)
		require.NotNil(t, second)
		require.Greater(t, *second, *first)
		testkit.Exec(t, conn, "RELEASE a")
		require.Equal(t, []int64{waitKey}, advisoryLocks(t, observer, pidOf(conn)))
		testkit.Exec(t, conn, "COMMIT")
		require.Empty(t, advisoryLocks(t, observer, pidOf(conn)))
	}
}

// After each of many calls that race with holders that come and go, the transaction goes on and holds
// the key just when there is a token.
func TestLockForTransaction_HoldsWhatItSays(t *testing.T) {
	t.Parallel()
	ownerURL, appURL := newDatabase(t)
	observer, conn := testkit.Connect(t, ownerURL), testkit.Connect(t, appURL)
	defer startTraffic(t, ownerURL, false, 0)()
	var granted, refused int
	last := nextToken(t, conn) // repairs, which takes locks of the transaction's
	for again := racing(t, 3000); again(min(granted, refused)); {
		testkit.Exec(t, conn, "BEGIN; SAVEPOINT a")
		token := lockForTransaction(t, conn, false, rand.IntN(2) == 0, rand.IntN(3))
		held := advisoryLocks(t, observer, pidOf(conn))
		require.Equal(t, "0", testkit.Value[string](t, conn, "SELECT current_setting('lock_timeout')"))
		if token != nil {
			granted++
			require.Greater(t, *token, last)
			require.Equal(t, []int64{waitKey}, held)
			last = *token
		} else {
			refused++
			require.Empty(t, held)
		}
		testkit.Exec(t, conn, "RELEASE a; COMMIT")
	}
	t.Logf("granted %d, refused %d", granted, refused)
}
