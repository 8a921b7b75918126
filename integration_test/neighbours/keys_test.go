package neighbours

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

// The advisory key that stands for a fence without a row is open to every role that may connect: who takes it makes others
// wait, and lets no one pass.
func TestFence_KeyTakenByAGuest(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		ctx := context.Background()
		ann, abe, guest, owner := w.connect("ann"), w.connect("abe"), w.connect("guest"), w.connect("owner")
		const key = "(hashtextextended($1, 6539763025470766922))"
		shown := func(resource string) int64 {
			return testkit.Value[int64](t, owner, "SELECT coalesce((SELECT token FROM pgbaton.fence WHERE resource = $1), 0)", resource)
		}
		testkit.Exec(t, ann, "SET lock_timeout = '100 ms'")
		testkit.Exec(t, guest, "SELECT pg_advisory_lock"+key, "exclusive")
		refused(t, ann, "55P03", "SELECT pgbaton.fence('exclusive', 5)")
		refused(t, ann, "55P03", "SELECT pgbaton.fence('exclusive', 5, shared => true)")
		testkit.Exec(t, guest, "SELECT pg_advisory_lock_shared"+key, "shared")
		refused(t, ann, "55P03", "SELECT pgbaton.fence('shared', 5)")
		testkit.Exec(t, ann, "SELECT pgbaton.fence('shared', 5, shared => true)")
		require.Zero(t, shown("exclusive")+shown("shared"))
		testkit.Exec(t, guest, "SELECT pg_advisory_unlock_all()")
		testkit.Exec(t, ann, "SELECT pgbaton.fence('exclusive', 5), pgbaton.fence('shared', 5)")
		refused(t, ann, "PB001", "SELECT pgbaton.fence('exclusive', 4)")

		// What others hold of it a guest cannot free: a newer token waits for the older one's transaction.
		testkit.Exec(t, ann, "BEGIN; SELECT pgbaton.fence('new', 5, shared => true)")
		granted := make(chan error, 1)
		go func() {
			_, err := abe.Exec(ctx, "SELECT pgbaton.fence('new', 9)")
			granted <- err
		}()
		testkit.WaitFor(t, owner, "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)", int32(abe.PgConn().PID()))
		for _, mode := range []string{"", "_shared"} {
			require.False(t, testkit.Value[bool](t, guest, "SELECT pg_advisory_unlock"+mode+key, "new"))
		}
		require.False(t, testkit.Value[bool](t, guest, "SELECT pg_try_advisory_lock"+key, "new"))
		require.Zero(t, shown("new"))
		select {
		case err := <-granted:
			require.Fail(t, "it has passed", "%v", err)
		default:
		}
		testkit.Exec(t, ann, "COMMIT")
		require.NoError(t, <-granted)
		refused(t, ann, "PB001", "SELECT pgbaton.fence('new', 5, shared => true)")
	})
}

// A row of a fence that is locked by a role that may not use it is not: the refusal frees it.
func TestFence_RefusedHoldsNothing(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		ann, bob := w.connect("ann"), w.connect("bob")
		fences(t, ann, 5)
		testkit.Exec(t, bob, "BEGIN; SAVEPOINT s")
		refused(t, bob, "42501", "SELECT pgbaton.fence('ledger', 6)")
		testkit.Exec(t, bob, "ROLLBACK TO s")
		testkit.Exec(t, ann, "SET lock_timeout = '10 s'")
		fences(t, ann, 7)
		testkit.Exec(t, bob, "COMMIT")
	})
}
