package sidecar

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/session"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// While a session lives, the holders that are gone are forgotten, and claims from the future are cut short, which is
// told.
func TestSidecar_Tends(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	admin := testkit.Connect(t, dsn)
	_, cfg := testkit.Through(t, dsn)
	dialer := &session.Dialer{Config: cfg, TTL: 5 * time.Second}
	var mu sync.Mutex
	var reports []string
	l := New(Config{
		TTL: dialer.TTL, Name: "me", Tend: 20 * time.Millisecond, Hung: func() {},
		Report: func(event string, err error) {
			mu.Lock()
			defer mu.Unlock()
			reports = append(reports, event+": "+err.Error())
		},
		Dial: func(ctx context.Context, commands ...session.Command) (*session.Session, error) {
			return dialer.Dial(ctx, session.Sidecar, commands...)
		},
	})
	defer func() { require.NoError(t, l.Close(context.Background())) }()
	holder, err := l.Holder(t.Context())
	require.NoError(t, err)
	testkit.Exec(t, admin, "INSERT INTO pgbaton.holder (id, name, since) SELECT 1000 + n, 'gone', now() FROM generate_series(1, 300) AS n")
	testkit.Exec(t, admin, `SELECT pgbaton.open_semaphore('s', 1);
UPDATE pgbaton.slot SET holder = -1, token = 32, lease = 5000, expires_at = clock_timestamp() + interval '2 years'`)
	testkit.WaitFor(t, admin, "SELECT count(*) = 1 AND min(id) = $1 FROM pgbaton.holder", holder)
	testkit.WaitFor(t, admin, "SELECT expires_at < clock_timestamp() + interval '1 hour' FROM pgbaton.slot")
	require.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(reports) == 1
	}, testkit.Patience, 5*time.Millisecond)
	require.Contains(t, reports[0], `semaphore "s": 1`)
}
