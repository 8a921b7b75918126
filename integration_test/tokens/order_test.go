package tokens_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Sessions that contend for one key write their tokens down while they hold it: they rise in the order in which
// they were granted.
func TestTokens_OrderOfGrants(t *testing.T) {
	t.Parallel()
	for name, mutant := range map[string]string{"None": none, "TokenBeforeGrant": tokenFirst, "Cache20": cache20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dsn := testkit.Migrated(t)
			conn := testkit.Connect(t, dsn)
			testkit.Exec(t, conn, `SELECT pgbaton.next_token();
				CREATE TABLE grants (place bigint GENERATED ALWAYS AS IDENTITY, token bigint);`+mutant)
			oneAfterAnother(t, dsn)
			const sessions, rounds = 4, 100
			var group sync.WaitGroup
			for range sessions {
				session := testkit.Connect(t, dsn)
				group.Go(func() {
					for range rounds {
						if err := noteGrant(t, session); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			group.Wait()

			rows, err := conn.Query(t.Context(), "SELECT token FROM grants ORDER BY place")
			require.NoError(t, err)
			tokens, err := pgx.CollectRows(rows, pgx.RowTo[int64])
			require.NoError(t, err)
			require.Len(t, tokens, 3+sessions*rounds)
			var h history
			for _, token := range tokens {
				h.add("grant", token)
			}
			t.Logf("%d violations", len(h.violations))
			h.violations = h.violations[:min(len(h.violations), 3)]
			h.require(t, mutant)
		})
	}
}

// oneAfterAnother has two grants while a third session waits.
func oneAfterAnother(t *testing.T, dsn string) {
	t.Helper()
	first, waiter := testkit.Connect(t, dsn), testkit.Connect(t, dsn)
	testkit.Exec(t, first, "SELECT pg_advisory_lock(7)") // counts beside the grants
	done := make(chan error, 1)
	go func() { done <- noteGrant(t, waiter) }()
	testkit.WaitFor(t, first, "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)", pidOf(waiter))
	require.NoError(t, noteGrant(t, first))
	require.NoError(t, noteGrant(t, first))
	testkit.Exec(t, first, "SELECT pg_advisory_unlock(7)")
	require.NoError(t, <-done)
}

func noteGrant(t *testing.T, session *pgx.Conn) error {
	t.Helper()
	return pgx.BeginFunc(t.Context(), session, func(tx pgx.Tx) error {
		var token int64
		// In a statement of its own, so that the next one is after the grant.
		if err := tx.QueryRow(t.Context(), "SELECT pgbaton.lock_for_transaction(7, false, false, NULL)").Scan(&token); err != nil {
			return err
		}
		_, err := tx.Exec(t.Context(), "INSERT INTO grants (token) VALUES ($1)", token)
		return err
	})
}

// What somebody did to the schema by hand is repaired, or refused with what to do.
func TestTokens_DoneByHand(t *testing.T) {
	t.Parallel()
	for change, refusal := range map[string]string{
		"TRUNCATE pgbaton.incarnation":                                       "",
		"ALTER SEQUENCE pgbaton.token RESTART":                               "",
		"SELECT setval('pgbaton.token', 64)":                                 "",
		"TRUNCATE pgbaton.incarnation; ALTER SEQUENCE pgbaton.token RESTART": "",
		"ALTER TABLE pgbaton.incarnation SET LOGGED":                         "SET UNLOGGED",
		"ALTER SEQUENCE pgbaton.token CACHE 20":                              "CACHE 1",
		"ALTER SEQUENCE pgbaton.token INCREMENT 1":                           "INCREMENT 32",
		"ALTER SEQUENCE pgbaton.token CYCLE":                                 "NO CYCLE",
		"ALTER SEQUENCE pgbaton.token MAXVALUE 9223372036854775807":          "MAXVALUE 9007199254740960",
	} {
		t.Run(change, func(t *testing.T) {
			t.Parallel()
			dsn := testkit.Migrated(t)
			conn := testkit.Connect(t, dsn)
			var h history
			h.grant(t, dsn)
			h.draw(t, conn, 3)
			testkit.Exec(t, conn, change)
			if refusal != "" {
				_, err := pgbaton.Open(t.Context(), dsn, nil)
				require.ErrorIs(t, err, pgbaton.ErrSchema)
				require.ErrorContains(t, err, refusal)
			} else {
				h.grant(t, dsn)
			}
			if strings.HasPrefix(change, "ALTER SEQUENCE") && refusal != "" {
				return
			}
			h.draw(t, conn, 3)
			h.require(t, none)
		})
	}
}
