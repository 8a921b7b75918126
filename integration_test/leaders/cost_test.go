package leaders

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/internal/dbtest"
)

// A hundred campaigns cost their client two connections and two statements a second, and leading costs less. (A
// client also shows three signs of life a TTL on each connection: with 15 s, 0.4 statements a second.)
func TestCost(t *testing.T) {
	const (
		watched = 8 * time.Second
		pings   = 0.5
	)
	dsn := lab.Database(t)
	control := dbtest.Connect(t, dsn)
	f := newFleet(t, dsn, 0, 1, worker.Command{Key: "cost", Count: 100})
	for _, name := range f.names() {
		f.after(name, 0)
	}
	f.join()
	time.Sleep(2 * time.Second) // both have found their pace
	for i, what := range []string{"leading", "campaigning"} {
		statements, most := lab.Statements(t, control, []string{"fleet-0", "fleet-1"}[i], watched)
		perSecond := float64(statements) / watched.Seconds()
		lab.Note(t, "%s in 100 names: %.2f statements a second, %d connections", what, perSecond, most)
		require.LessOrEqual(t, perSecond, 2+pings)
		require.LessOrEqual(t, most, 3)
	}
}
