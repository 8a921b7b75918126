// Package portable tests the portable schema where the full one cannot be: on databases without plpgsql and without advisory locks.
package portable

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
