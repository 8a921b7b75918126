package tokens_test

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/pgserver"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// Mistakes that roles without any right on the tables can make use of.
const (
	// A repair that believes a key which anybody can lock.
	trustsAKey = `DO $$ BEGIN EXECUTE replace(pg_get_functiondef('pgbaton.repair_tokens()'::regprocedure), E'BEGIN\n    IF pgbaton.tokens_trusted()',
		E'BEGIN\n    IF EXISTS (SELECT FROM pg_locks AS l WHERE l.locktype = ''advisory''
			AND (l.classid::bigint << 32 | l.objid::bigint) = 6539763025470766921) OR pgbaton.tokens_trusted()'); END $$`
	// Draws as fast as the server can.
	unbounded = `CREATE OR REPLACE FUNCTION pgbaton.draw_token() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER
		AS $$ BEGIN RETURN nextval('pgbaton.token'); END $$`
	// A repair that relies on another's, which is not yet on disk.
	doesNotFlush = `DO $$ BEGIN EXECUTE replace(
		pg_get_functiondef('pgbaton.repair_tokens()'::regprocedure), 'generate_series(1, 33)', 'generate_series(1, 0)'); END $$`
)

// twoMajors are the oldest PostgreSQL of which there are binaries, and the newest.
func twoMajors(t *testing.T, test func(t *testing.T, bindir string)) {
	t.Helper()
	dirs := pgserver.BinDirs()
	require.NotEmpty(t, dirs, "there are no PostgreSQL programs on this machine")
	for _, dir := range []string{dirs[0], dirs[len(dirs)-1]} {
		t.Run(filepath.Base(filepath.Dir(dir)), func(t *testing.T) {
			t.Parallel()
			test(t, dir)
		})
	}
}

// as is the server's URL for a role, which it makes.
func as(t *testing.T, server *pgserver.Server, role, grants string) string {
	t.Helper()
	testkit.Exec(t, testkit.Connect(t, server.URL()), "CREATE ROLE "+role+" LOGIN PASSWORD 'secret';"+grants)
	u, err := url.Parse(server.URL())
	require.NoError(t, err)
	u.User = url.UserPassword(role, "secret")
	return u.String()
}

// lockEverything takes every lock that a role can have which may only connect, or only use the schema: it keeps the
// transactions open that have them.
func lockEverything(t *testing.T, stranger, service string) {
	t.Helper()
	keys := testkit.Connect(t, stranger)
	testkit.Exec(t, keys, "BEGIN; SELECT pg_advisory_lock(k) FROM generate_series(6539763025470766915, 6539763025470766930) AS k")
	for _, statement := range []string{ // PREPARE needs no right on a table to lock it
		"INSERT INTO pgbaton.incarnation DEFAULT VALUES", "DELETE FROM pgbaton.incarnation",
		"SELECT FROM pgbaton.incarnation FOR UPDATE", "SELECT FROM pgbaton.token",
	} {
		conn := testkit.Connect(t, service)
		testkit.Exec(t, conn, "BEGIN; PREPARE p AS "+statement)
	}
	for _, mode := range []string{"ACCESS SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE", "SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE"} {
		for _, table := range []string{"incarnation", "fence", "slot"} {
			_, err := keys.Exec(t.Context(), "SAVEPOINT s; LOCK TABLE pgbaton."+table+" IN "+mode+" MODE")
			require.ErrorContains(t, err, "permission denied")
			testkit.Exec(t, keys, "ROLLBACK TO s")
		}
		_, err := testkit.Connect(t, service).Exec(t.Context(), "BEGIN; LOCK TABLE pgbaton.incarnation IN "+mode+" MODE")
		require.ErrorContains(t, err, "permission denied")
	}
}

// A role that may only connect, and one with the rights of a service, hold every lock that they can have, over crashes of
// the server: clients open, and tokens rise.
func TestTokens_StrangersLocks(t *testing.T) {
	t.Parallel()
	twoMajors(t, func(t *testing.T, bindir string) {
		server := start(t, bindir, none, unhurried...)
		stranger := as(t, server, "stranger", "")
		service := as(t, server, "service", "SELECT pgbaton.grant_service('service')")
		var h history
		for name, lose := range losses {
			h.grant(t, server.URL())
			lose(t, server.URL(), &h)
			crashes["ServerKilled"](t, server)
			lockEverything(t, stranger, service)
			if name == "OpenNextval" {
				h.grant(t, server.URL())
			}
			h.draw(t, testkit.Connect(t, server.URL()), 3)
		}
		h.require(t, none)
	})
}

func TestTokens_StrangersLocksOnAMutant(t *testing.T) {
	t.Parallel()
	server := start(t, withPrograms(t, "initdb"), trustsAKey, unhurried...)
	stranger := as(t, server, "stranger", "")
	service := as(t, server, "service", "SELECT pgbaton.grant_service('service')")
	var h history
	for range 5 { // the WAL may have reached the disk all the same
		losses["OpenNextval"](t, server.URL(), &h)
		crashes["ServerKilled"](t, server)
		lockEverything(t, stranger, service)
		h.draw(t, testkit.Connect(t, server.URL()), 1)
		if len(h.violations) > 0 {
			break
		}
	}
	h.require(t, trustsAKey)
}

// A service that draws as fast as it can, from many sessions, gets no token before the clock is there, and a crash takes
// none back: neither as the clock goes, nor after it was set back.
func TestTokens_Overdraw(t *testing.T) {
	t.Parallel()
	for name, back := range map[string]string{"": "0", "ClockSetBack": anHour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			twoMajors(t, func(t *testing.T, bindir string) {
				server := start(t, bindir, none, unhurried...)
				var h history
				for range 2 {
					overdraw(t, server, back, &h)
					crashes["ServerKilled"](t, server)
					h.grant(t, server.URL())
					h.draw(t, testkit.Connect(t, server.URL()), 3)
				}
				h.require(t, none)
			})
		})
	}
	t.Run("Mutant", func(t *testing.T) {
		t.Parallel()
		server := start(t, withPrograms(t, "initdb"), unbounded, unhurried...)
		var h history
		for range 10 { // a crowded machine may be too slow to draw too fast
			if overdraw(t, server, anHour, &h); len(h.violations) > 0 {
				break
			}
			crashes["ServerKilled"](t, server)
		}
		h.violations = h.violations[:min(len(h.violations), 3)]
		h.require(t, unbounded)
	})
}

// anHour is what the clock runs through in one, in tokens.
const anHour = "4096000::bigint * 3600"

// overdraw puts the sequence to the clock, or ahead of it as after the clock was set back, and draws for a while. It kills
// the server at the end, while draws go on.
func overdraw(t *testing.T, server *pgserver.Server, back string, h *history) {
	t.Helper()
	const sessions, draws = 8, 100
	const sqlClock = "((extract(epoch FROM clock_timestamp()) - 1577836800) * 4096000)::bigint"
	admin := testkit.Connect(t, server.URL())
	testkit.Exec(t, admin, "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'greedy') THEN "+
		"CREATE ROLE greedy; PERFORM pgbaton.grant_service('greedy'); END IF; END $$")
	testkit.Exec(t, admin, "SELECT setval('pgbaton.token', greatest(last_value, "+sqlClock+" + "+back+")) FROM pgbaton.token")
	var group sync.WaitGroup
	var mu sync.Mutex
	var newest, count int64
	began := time.Now()
	stop := make(chan struct{})
	for range sessions {
		conn := testkit.Connect(t, server.URL())
		testkit.Exec(t, conn, "SET ROLE greedy; SET synchronous_commit = off")
		group.Go(func() {
			for {
				var token, clock int64
				// The clock is read after the last draw.
				err := conn.QueryRow(context.Background(), fmt.Sprintf("SELECT max(token), %s FROM ("+
					"SELECT pgbaton.draw_token() FROM generate_series(1, %d) OFFSET 0) AS d(token)", sqlClock, draws)).Scan(&token, &clock)
				if err != nil {
					return // the server is gone
				}
				mu.Lock()
				newest, count = max(newest, token), count+draws
				if back == "0" && token+31 > clock {
					h.violations = append(h.violations, fmt.Sprintf("token %d at %d", token, clock))
				}
				mu.Unlock()
			}
		})
	}
	time.AfterFunc(3*time.Second, func() { close(stop) })
	<-stop
	open := testkit.Connect(t, server.URL())
	testkit.Exec(t, open, "SET ROLE greedy; BEGIN; SELECT pgbaton.draw_token() FROM generate_series(1, 40)")
	require.NoError(t, syscall.Kill(server.PID(), syscall.SIGKILL))
	_ = syscall.Kill(pidOf(open), syscall.SIGKILL)
	terminated := make(chan struct{})
	go func() { group.Wait(); close(terminated) }()
	select {
	case <-terminated:
	case <-time.After(time.Minute):
		require.Fail(t, "the sessions outlive their server")
	}
	took := time.Since(began)
	t.Logf("%d draws in %v", count, took)
	if back != "0" {
		if bound := int64(sessions) * (took.Milliseconds() + draws); count > bound {
			h.violations = append(h.violations, fmt.Sprintf("%d draws: faster than one a millisecond and session, which are %d", count, bound))
		}
	}
	require.NotZero(t, newest)
	h.newest = max(h.newest, newest)
}

// Whoever relies on a repair that has not committed has its own commit flush it.
func TestTokens_WhoReliesFlushes(t *testing.T) {
	t.Parallel()
	for name, mutant := range map[string]string{"None": none, "DoesNotFlush": doesNotFlush} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := start(t, withPrograms(t, "initdb"), mutant, unhurried...)
			admin, first, second := testkit.Connect(t, server.URL()), testkit.Connect(t, server.URL()), testkit.Connect(t, server.URL())
			testkit.Exec(t, admin, "TRUNCATE pgbaton.incarnation")
			testkit.Exec(t, second, "BEGIN; SELECT 1")
			testkit.Exec(t, first, "BEGIN; SELECT pgbaton.next_token()")
			moved := testkit.Value[string](t, admin, "SELECT pg_current_wal_insert_lsn()::text")
			require.False(t, testkit.Value[bool](t, second, "SELECT repaired FROM pgbaton.begin_session()"))
			testkit.Exec(t, second, "COMMIT")
			require.True(t, testkit.Value[bool](t, admin, "SELECT pgbaton.tokens_trusted()"))
			flushed := testkit.Value[bool](t, admin, "SELECT pg_current_wal_flush_lsn() >= $1::text::pg_lsn", moved)
			require.Equal(t, mutant == none, flushed)
			require.NoError(t, first.Close(context.Background()))
		})
	}
}
