package ground

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// Behind a pooler nothing can be set for a session, so locks and permits exclude at whatever isolation the database has as its default.
func TestPooler_Isolation(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			dsn := testkit.Migrated(t)
			conn := testkit.Connect(t, dsn)
			testkit.Exec(t, conn, fmt.Sprintf("ALTER DATABASE %s SET default_transaction_isolation = '%s'",
				pgx.Identifier{testkit.Value[string](t, conn, "SELECT current_database()")}.Sanitize(), level))
			through := lab.PgBouncer(t, dsn, "transaction")
			ctx := testkit.Context(t)
			var locked, permitted atomic.Int32
			var group sync.WaitGroup
			for range 3 {
				client := testclient.New(t, through, nil)
				semaphore, err := client.Semaphore(ctx, "one", 1)
				require.NoError(t, err)
				once := func(inside *atomic.Int32) {
					if inside.Add(1) != 1 {
						t.Error("two are inside")
					}
					inside.Add(-1)
				}
				for range 3 {
					group.Go(func() {
						for range 5 {
							err := client.Do(ctx, pgbaton.Name("one"), func(context.Context, *pgbaton.Lock) error {
								once(&locked)
								return nil
							})
							if err != nil {
								t.Error(err)
								return
							}
							err = semaphore.Do(ctx, 1, nil, func(context.Context, *pgbaton.Permit) error {
								once(&permitted)
								return nil
							})
							if err != nil {
								t.Error(err)
								return
							}
						}
					})
				}
			}
			group.Wait()
		})
	}
}
