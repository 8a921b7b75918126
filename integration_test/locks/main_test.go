// Package locks tests locks between processes and under faults: clients run in processes of their own, see
// package worker, and what they did is checked afterwards, see package history.
package locks

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
