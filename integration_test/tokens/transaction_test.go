package tokens_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// A standby draws no tokens and would lock nothing that its primary knows of. It says so, and the transaction goes on.
func TestStandby_RefusesTransactionLocks(t *testing.T) {
	t.Parallel()
	everyMajor(t, func(t *testing.T, bindir string) {
		server := start(t, bindir, none)
		conn := testkit.Connect(t, server.URL())
		r := lab.StandbyOf(t, server, conn)
		standby := testkit.Connect(t, r.Start(t))
		tx, err := standby.Begin(t.Context())
		require.NoError(t, err)
		for _, acquire := range []func() (pgbaton.Token, error){
			func() (pgbaton.Token, error) { return pgbaton.AcquireTx(t.Context(), tx, pgbaton.ID(1)) },
			func() (pgbaton.Token, error) {
				return pgbaton.AcquireTx(t.Context(), tx, pgbaton.ID(1), &pgbaton.LockOpts{Wait: pgbaton.NoWait, Shared: true})
			},
		} {
			_, err = acquire()
			require.ErrorIs(t, err, pgbaton.ErrStandby)
		}
		require.ErrorContains(t, pgbaton.Fence(t.Context(), tx, "a", 1), "on a standby")
		require.NoError(t, tx.Rollback(t.Context()))
	})
}
