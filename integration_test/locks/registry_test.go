package locks

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// What publishing costs short locks of a client that also has long ones: beside them, of a client that does not publish since it has
// no connection for that.
func TestRegistry_Cost(t *testing.T) {
	t.Parallel()
	dsn := lab.Database(t)
	ctx := testkit.Context(t)
	long, rounds := 50, 1
	if lab.Figures() {
		long, rounds = 300, 20
	}
	mute := testclient.New(t, dsn, &pgbaton.Config{Name: "mute", MaxConns: 2})
	loud := testclient.New(t, dsn, &pgbaton.Config{Name: "loud"})
	pairs := map[*pgbaton.Client][]int{}
	for _, c := range []*pgbaton.Client{mute, loud} {
		for n := range long {
			_, err := c.Acquire(ctx, pgbaton.Name(fmt.Sprintf("%p/%d", c, n)))
			require.NoError(t, err)
		}
	}
	for round := range rounds {
		changing, err := loud.Acquire(ctx, pgbaton.Name(fmt.Sprint("changing/", round)))
		require.NoError(t, err)
		for _, c := range []*pgbaton.Client{mute, loud} {
			n := 0
			for began := time.Now(); time.Since(began) < 1200*time.Millisecond; n++ {
				lock, err := c.Acquire(ctx, pgbaton.Name(fmt.Sprintf("%p", c)))
				require.NoError(t, err)
				require.NoError(t, lock.Release(ctx))
			}
			pairs[c] = append(pairs[c], n)
		}
		require.NoError(t, changing.Release(ctx))
	}
	for _, of := range pairs {
		slices.Sort(of)
	}
	without, with := pairs[mute][rounds/2], pairs[loud][rounds/2]
	testkit.Figure(t, "publishing: %d pairs in 1.2 s without, %d with: %.1f %% fewer (target 2 %%)", without, with,
		100*float64(without-with)/float64(max(without, 1)))
}
