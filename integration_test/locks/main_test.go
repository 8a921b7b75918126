// Package locks tests locks between processes and under faults: clients run in processes of their own, see
// package worker, and what they did is checked afterwards, see package history.
package locks

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
