package migrate_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/pgserver"
)

func TestMain(m *testing.M) {
	code := lab.Run{M: m}.Run()
	if err := dropTemplate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// oldestAndNewest runs a test on the oldest and on the newest PostgreSQL at hand.
func oldestAndNewest(t *testing.T, test func(t *testing.T, server *pgserver.Server)) {
	t.Helper()
	servers := lab.Servers(t)
	for _, server := range slices.Compact([]*pgserver.Server{servers[0], servers[len(servers)-1]}) {
		t.Run("PostgreSQL"+strconv.Itoa(server.Major()), func(t *testing.T) {
			t.Parallel()
			test(t, server)
		})
	}
}
