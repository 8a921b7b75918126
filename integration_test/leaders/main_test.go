// Package leaders tests the election of leaders between processes that resign, die and stand still, see package
// worker, and jobs that are to run once.
package leaders

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
