// Package poolers tests what the library gives behind real poolers: PgBouncer in transaction and statement mode, restarted,
// reconnected and full, and Pgpool-II with load balancing over a primary and a standby. docs/ground.md, "Poolers", is what these
// tests have shown.
package poolers

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
)

func TestMain(m *testing.M) {
	worker.Main()
	goleak.VerifyTestMain(lab.Run{M: m})
}
