package engines

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/history"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// TestChange_Pooler leads the fleet from session locks to leases behind a pooler in transaction mode, and back. Clients of both need a
// session, so between the two restarts the fleet goes around the pooler. The pooler is restarted while clients behind it wait for the
// first restart: they go on.
func TestChange_Pooler(t *testing.T) {
	f := newFleet(t, 10*time.Second)
	pooler := lab.StartPgBouncer(t, f.dsn, "transaction", "default_pool_size = 20", "max_client_conn = 400")

	began := history.Now()
	require.Equal(t, "session", f.recordBoth())
	f.requireProgress("both from session")
	f.requireNotThrough(pooler)
	f.roll(f.dsn, "lease")
	f.requireNotThrough(pooler)
	accepted := f.accept("lease")
	f.requireProgress("both to lease")
	f.roll(pooler.URL, "")
	f.tell("session", "lease behind a pooler", began, accepted)

	began = history.Now()
	require.Equal(t, "lease", f.recordBoth())
	f.requireProgress("both from lease")
	pooler.Restart(t)
	f.requireProgress("the restart of the pooler")
	f.roll(f.dsn, "session")
	accepted = f.accept("session")
	f.requireProgress("both to session")
	f.roll(f.dsn, "")
	f.tell("lease behind a pooler", "session", began, accepted)

	f.end()
	require.Empty(t, f.judge().overlaps)
	f.requireNothingLeft()
}

// requireNotThrough checks that a client behind a pooler is refused, because it has leases alone.
func (f *fleet) requireNotThrough(pooler *lab.Bouncer) {
	f.t.Helper()
	for _, engine := range []pgbaton.Engine{pgbaton.EngineAuto, pgbaton.EngineLease, pgbaton.EngineSession} {
		_, err := pgbaton.Open(testkit.Context(f.t), pooler.URL, &pgbaton.Config{Engine: engine})
		if engine == pgbaton.EngineSession {
			require.ErrorIs(f.t, err, pgbaton.ErrPooler)
		} else {
			require.ErrorIs(f.t, err, pgbaton.ErrEngine)
			require.ErrorContains(f.t, err, `the engine "both"`)
		}
	}
}
