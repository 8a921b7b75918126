package pgbatonui

import (
	"context"
	"errors"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

// onDatabase is a page of a database, of a client of its own.
func onDatabase(t *testing.T, dsn string, cfg *Config) *Handler {
	t.Helper()
	h, err := New(testclient.New(t, dsn, &pgbaton.Config{Name: "page"}), testkit.Pool(t, dsn), cfg)
	require.NoError(t, err)
	h.readings.every = 20 * time.Millisecond
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	return h
}

// until looks at the page until it has all texts.
func until(t *testing.T, h *Handler, texts ...string) (page string) {
	t.Helper()
	testkit.Eventually(t, "the page has "+strings.Join(texts, ", "), func() bool {
		page = ask(h, "GET", "/", nil, nil).Body.String()
		for _, text := range texts {
			if !strings.Contains(page, text) {
				return false
			}
		}
		return true
	})
	return page
}

// TestDatabase: what is in a database is on its page, and can be freed from there.
func TestDatabase(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	anna := testclient.New(t, dsn, &pgbaton.Config{Name: "anna"})
	bert := testclient.New(t, dsn, &pgbaton.Config{Name: "bert"})
	lock, err := anna.Acquire(ctx, pgbaton.Name("invoice/42"))
	require.NoError(t, err)
	_, err = anna.AcquireShared(ctx, pgbaton.Name("tenant/acme"))
	require.NoError(t, err)
	sem, err := anna.Semaphore(ctx, "render", 8)
	require.NoError(t, err)
	_, err = sem.Acquire(ctx, 5)
	require.NoError(t, err)
	_, err = anna.Semaphore(ctx, "idle", 3)
	require.NoError(t, err)
	require.NoError(t, anna.Once(ctx, "nightly", time.Hour, func(context.Context, *pgbaton.Lock) error { return nil }))
	require.Error(t, anna.Once(ctx, "hourly", time.Hour, func(context.Context, *pgbaton.Lock) error { return errors.New("no paper") }))
	testkit.Exec(t, testkit.Connect(t, dsn), "SELECT pg_advisory_lock(42)")
	leading, stop := context.WithCancel(ctx)
	led := make(chan error, 1)
	go func() {
		led <- anna.Lead(leading, "scheduler", func(ctx context.Context, _ *pgbaton.Lock) error { <-ctx.Done(); return nil })
	}()
	got := make(chan error, 1)
	go func() {
		_, err := bert.Acquire(ctx, pgbaton.Name("invoice/42"))
		got <- err
	}()

	h := onDatabase(t, dsn, &Config{
		FreeToken: token, Names: []string{"nightly"},
		Examine: func(context.Context) []Finding {
			return []Finding{{"paper", levelWarning, "It is running out.", "Buy some."}}
		},
	})
	page := until(t, h, "lock invoice/42", "bert", "shared lock tenant/acme", "5 of 8", "0 of 3", "nightly", "no paper", "lock id:42", "another program",
		"scheduler", "It is running out.", "PostgreSQL ", `data-what="lock invoice/42"`)
	require.NotContains(t, page, "GRANT", "a superuser needs none")
	ref := regexp.MustCompile(`data-held="([^"]+)" data-what="lock invoice/42"`).FindStringSubmatch(page)
	require.Len(t, ref, 2)
	form := url.Values{"token": {token}, "held": {ref[1]}, "reason": {"it hangs"}}
	freeAnyhow(t, h, form)
	<-lock.Done()
	require.ErrorContains(t, lock.Err(), "it hangs")
	require.NoError(t, <-got)
	until(t, h, "it hangs", "freed</span>")
	stop()
	require.ErrorIs(t, <-led, context.Canceled)
}

// freeAnyhow frees, and again as long as a busy machine does not answer in time.
func freeAnyhow(t *testing.T, h *Handler, form url.Values) {
	t.Helper()
	testkit.Eventually(t, "it is freed", func() bool {
		w := ask(h, "POST", "/free", form, nil)
		if w.Code == 409 {
			return false
		}
		require.Equal(t, 200, w.Code, w.Body)
		require.Contains(t, w.Body.String(), "Freed: lock invoice/42.")
		return true
	})
}

// TestDatabase_Role: a role that may see less is told which statements let it see more, and those do.
func TestDatabase_Role(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	role := testkit.Role(t)
	dsn := testkit.Migrated(t)
	testkit.Run(t, dsn, "SELECT pgbaton.grant_service('"+role+"')")
	own := testclient.New(t, dsn, &pgbaton.Config{Name: "anna"})
	_, err := own.Acquire(ctx, pgbaton.Name("invoice/42"))
	require.NoError(t, err)
	require.NoError(t, own.Once(ctx, "nightly", time.Hour, func(context.Context, *pgbaton.Lock) error { return nil }))
	h := onDatabase(t, testkit.As(t, dsn, role), &Config{Names: []string{"nightly"}})
	page := until(t, h, "lock id:-2627838530059473662", "grant_operator(&#39;"+role+"&#39;)", "GRANT SELECT ON pgbaton.last_run TO "+role)
	require.NotContains(t, page, "invoice/42")
	for _, sql := range []string{
		"SELECT pgbaton.grant_operator('" + role + "')",
		"GRANT SELECT ON pgbaton.semaphore, pgbaton.last_run, pgbaton.registry, pgbaton.sessions TO " + role,
	} {
		testkit.Run(t, dsn, sql)
	}
	require.NotContains(t, until(t, h, "lock invoice/42", "nightly"), "GRANT")
}

// TestDatabase_Lost: what is on record of a session that has ended is among the losses, once.
func TestDatabase_Lost(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	testkit.Run(t, dsn, `
INSERT INTO pgbaton.registry (kind, holder, publisher, since, name, host, process, ids)
VALUES ('client', 77, 77, clock_timestamp(), 'anna', 'web-1', 8, '{123}');
INSERT INTO pgbaton.registry (kind, holder, publisher, since, name, token) VALUES ('held', 123, 77, clock_timestamp(), 'invoice/17', 5);
INSERT INTO pgbaton.registry (kind, holder, publisher, since, what, name, permits, token)
VALUES ('held', 123, 77, clock_timestamp(), 'permit', 'render', 2, 6)`)
	h := onDatabase(t, dsn, nil)
	page := until(t, h, "lock invoice/17", "2 permits of render", "anna")
	require.Equal(t, 2, strings.Count(page, "its session has ended"))
	conn := testkit.Connect(t, dsn)
	require.Zero(t, testkit.Value[int](t, conn, "SELECT count(*)::int FROM pgbaton.registry WHERE holder = 123"), "the listing has removed them")
	require.Equal(t, 2, strings.Count(ask(h, "GET", "/", nil, nil).Body.String(), "its session has ended"), "the page keeps them")
}

// TestDatabase_Closed: a client that is closed has lost nothing of what it held, however long that was.
func TestDatabase_Closed(t *testing.T) {
	t.Parallel()
	ctx := testkit.Context(t)
	dsn := testkit.Migrated(t)
	conn := testkit.Connect(t, dsn)
	anna := testclient.Open(t, dsn, &pgbaton.Config{Name: "anna", TTL: testkit.Patience})
	_, err := anna.Acquire(ctx, pgbaton.Name("invoice/42"))
	require.NoError(t, err)
	testkit.WaitFor(t, conn, "SELECT EXISTS (SELECT FROM pgbaton.registry WHERE kind = 'held')")
	testkit.WaitFor(t, conn, `SELECT count(*) = 1 FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'`) // that for rows is closed for want of use
	require.NoError(t, anna.Close(ctx))
	require.NotContains(t, until(t, onDatabase(t, dsn, nil), "Nobody waits."), "its session has ended")
}

// TestDatabase_Away: a database that cannot be read is said.
func TestDatabase_Away(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	h := onDatabase(t, dsn, nil)
	until(t, h, "Nobody waits.")
	testkit.Run(t, dsn, "ALTER SCHEMA pgbaton RENAME TO elsewhere")
	require.Contains(t, until(t, h, "The database cannot be read."), "Nobody waits.", "what was known stays")
}
