// Package leaders tests the election of leaders between processes that resign, die and stand still, see package
// worker, and jobs that are to run once.
package leaders

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
)

func TestMain(m *testing.M) {
	worker.Main()
	goleak.VerifyTestMain(run{m})
}

type run struct{ *testing.M }

func (r run) Run() int {
	code := r.M.Run()
	if err := lab.StopServers(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}
