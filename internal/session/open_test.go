package session_test

import (
	"context"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/session"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/emulation"
)

// turns counts the round trips of the connections that are dialled through it: how often each has turned from listening
// to speaking.
type turns struct {
	mu    sync.Mutex
	conns []int
}

func (c *turns) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = append(c.conns, 0)
	return &turning{Conn: conn, turns: c, index: len(c.conns) - 1}, err
}

// most is the greatest number of round trips of a connection.
func (c *turns) most() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	most := 0
	for _, n := range c.conns {
		most = max(most, n)
	}
	c.conns = nil
	return most
}

type turning struct {
	net.Conn

	turns    *turns
	index    int
	speaking bool
}

func (c *turning) Write(b []byte) (int, error) {
	c.turns.mu.Lock()
	if !c.speaking && c.index < len(c.turns.conns) {
		c.turns.conns[c.index]++
	}
	c.speaking = true
	c.turns.mu.Unlock()
	return c.Conn.Write(b)
}

func (c *turning) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.turns.mu.Lock()
	c.speaking = false
	c.turns.mu.Unlock()
	return n, err
}

// TestDial_RoundTrips holds the price of a session: two round trips after the login, whatever it is for, five where a
// pooler in session mode may stand in between.
func TestDial_RoundTrips(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	var counted turns
	d := dialer(t, dsn)
	d.Config.DialFunc = counted.dial
	d.Home = session.NewHome()
	plain, err := pgx.ConnectConfig(t.Context(), d.Config.Copy())
	require.NoError(t, err)
	login := counted.most()
	require.NoError(t, plain.Close(t.Context()))

	for name, dial := range map[string]func() (*session.Session, error){
		"holding": func() (*session.Session, error) { return d.Dial(t.Context(), session.Holding) },
		"probed":  func() (*session.Session, error) { return d.DialProbed(t.Context(), session.Holding) },
		"waiting": func() (*session.Session, error) { return d.Dial(t.Context(), session.Waiting) },
		"pooled":  func() (*session.Session, error) { return d.DialPooled(t.Context()) },
		"with commands": func() (*session.Session, error) {
			return d.Dial(t.Context(), session.Sidecar, session.Command{What: "count", SQL: "SELECT 1"}, session.Command{What: "listen", SQL: "LISTEN x"})
		},
	} {
		counted.most()
		s, err := dial()
		require.NoError(t, err, name)
		require.LessOrEqual(t, counted.most(), login+2, name)
		s.HangUp()
	}
	d.SessionPooler = true
	s, err := d.DialProbed(t.Context(), session.Holding)
	require.NoError(t, err)
	require.LessOrEqual(t, counted.most(), login+5)
	s.HangUp()
}

// TestDial_AgainstTheRolesSettings opens sessions, and uses one, in spite of what a role, a database or a hook has set.
func TestDial_AgainstTheRolesSettings(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	var holders atomic.Int64
	for _, setting := range []string{
		"statement_timeout = 1", "lock_timeout = 1", "client_encoding = 'LATIN1'", "search_path = ''",
		"standard_conforming_strings = off", "DateStyle = 'SQL, DMY'", "IntervalStyle = 'sql_standard'", "TimeZone = 'Pacific/Chatham'",
		"bytea_output = 'escape'", "array_nulls = off", "transform_null_equals = on", "extra_float_digits = -15",
		"default_transaction_isolation = 'serializable'", "default_transaction_read_only = on", "default_transaction_deferrable = on",
		"idle_in_transaction_session_timeout = 1", "synchronous_commit = remote_apply", "exit_on_error = on",
		"client_min_messages = debug5", "plan_cache_mode = force_custom_plan", "session_replication_role = replica",
		"plpgsql.variable_conflict = use_variable", "plpgsql.extra_errors = 'all'", "plpgsql.check_asserts = off",
		"backslash_quote = off", "quote_all_identifiers = on", "row_security = off", "xmloption = document",
		"enable_seqscan = off", "enable_indexscan = off", "default_table_access_method = heap", "lc_messages = 'C'",
		"temp_tablespaces = ''", "jit_above_cost = 0", "max_parallel_workers_per_gather = 4", "idle_session_timeout = 10000",
		"application_name = 'mine'", "work_mem = 64", "constraint_exclusion = on", "geqo_threshold = 2", "from_collapse_limit = 1",
	} {
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			for by, d := range map[string]*session.Dialer{"hook": dialer(t, dsn), "url": dialer(t, dsn)} {
				if by == "hook" {
					d.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
						_, err := conn.PgConn().Exec(ctx, "SET "+setting).ReadAll()
						return err
					}
				} else {
					d.Config.RuntimeParams["options"] = options(setting)
				}
				d.TTL = time.Minute
				for _, role := range []session.Role{session.Holding, session.Waiting, session.Sidecar} {
					dial := d.DialProbed
					if role == session.Waiting { // the server ends it after a second of silence: too short for a trial beside it
						dial = d.Dial
					}
					id := strconv.FormatInt(holders.Add(1), 10)
					s, err := dial(t.Context(), role, session.Command{
						What: "hold rows", SQL: "SELECT pgbaton.enlist($1, 'größe')", Params: [][]byte{[]byte(id)},
					})
					require.NoError(t, err, by)
					require.Equal(t, "UTF8", testkit.Value[string](t, s.Conn, "SHOW client_encoding"), by)
					require.Equal(t, "größe", testkit.Value[string](t, s.Conn, "SELECT name FROM pgbaton.holder WHERE id = "+id), by)
					require.Equal(t, int32(2), testkit.Value[int32](t, s.Conn, "SELECT pgbaton.wait_for_turn("+id+", false, false, -"+id+", false, false, 5000)"), by)
					s.HangUp()
				}
			}
		})
	}
}

// options is a setting as a server takes it at login, which is how those of a role and a database come too: before
// anything else.
func options(setting string) string {
	escaped := ""
	for _, r := range setting {
		switch r {
		case '\'', ' ':
			if r == ' ' && len(escaped) > 0 && escaped[len(escaped)-1] == ',' {
				escaped += `\ `
			}
		default:
			escaped += string(r)
		}
	}
	return "-c " + escaped
}

// TestDial_NamesWhatWasRevoked takes from PUBLIC what PostgreSQL grants to it.
func TestDial_NamesWhatWasRevoked(t *testing.T) {
	t.Parallel()
	role := testkit.Role(t)
	dsn := testkit.Migrated(t)
	testkit.Run(t, dsn, "GRANT USAGE ON SCHEMA pgbaton TO "+role+"; GRANT USAGE ON SEQUENCE pgbaton.token TO "+role+
		"; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgbaton TO "+role)
	d := dialer(t, testkit.As(t, dsn, role))
	dial(t, d, session.Holding)
	for _, revoked := range []string{
		"FUNCTION pg_control_system()", "TABLE pg_settings", "FUNCTION set_config(text, text, boolean)",
		"FUNCTION pg_try_advisory_lock(bigint)", "FUNCTION pg_is_in_recovery()",
	} {
		testkit.Run(t, dsn, "REVOKE ALL ON "+revoked+" FROM PUBLIC")
		s, err := d.Dial(t.Context(), session.Holding)
		if err != nil {
			require.ErrorIs(t, err, lockerr.Schema, revoked)
			require.ErrorContains(t, err, "PUBLIC", revoked)
		} else {
			s.HangUp() // it does without
		}
		privilege := "EXECUTE"
		if revoked == "TABLE pg_settings" {
			privilege = "SELECT"
		}
		testkit.Run(t, dsn, "GRANT "+privilege+" ON "+revoked+" TO PUBLIC")
	}
}

// TestDial_GoesByTheLastLook opens sessions of one home: what the first has found is looked at again for another role, and on another run
// of the server or in another database.
func TestDial_GoesByTheLastLook(t *testing.T) {
	t.Parallel()
	service, colleague, stranger := testkit.Role(t), testkit.Role(t), testkit.Role(t)
	dsn, other := testkit.Migrated(t), testkit.Migrated(t)
	owner := testkit.Connect(t, dsn)
	testkit.Exec(t, owner, "SELECT pgbaton.grant_service('"+service+"')")
	d := dialer(t, testkit.As(t, dsn, service))
	home := session.NewHome()
	d.Home = home
	first, err := d.Dial(t.Context(), session.Holding)
	require.NoError(t, err)
	defer first.HangUp()
	pooled := dialer(t, testkit.As(t, dsn, service))
	pooled.Home = session.NewHome()
	dialPooled := func() *session.Session {
		s, err := pooled.DialPooled(t.Context())
		require.NoError(t, err, "the catalogs were read again")
		t.Cleanup(s.HangUp)
		return s
	}
	before := dialPooled().Server
	testkit.Exec(t, owner, "ALTER SEQUENCE pgbaton.token CACHE 2")
	require.Equal(t, before, dialPooled().Server)
	second, err := d.Dial(t.Context(), session.Waiting)
	require.NoError(t, err, "the catalogs were read again")
	defer second.HangUp()
	require.Equal(t, first.Server, second.Server)
	testkit.Exec(t, owner, "ALTER ROLE "+service+" SET deadlock_timeout = '3s'")
	third, err := d.Dial(t.Context(), session.Waiting)
	require.NoError(t, err)
	defer third.HangUp()
	require.Equal(t, 3*time.Second, third.Server.DeadlockTimeout, "what a role sets is asked for each time")

	for name, dsn := range map[string]string{"another role": testkit.As(t, dsn, stranger), "another database": testkit.As(t, other, stranger)} {
		strange := dialer(t, dsn)
		strange.Home = home
		_, err = strange.Dial(t.Context(), session.Waiting)
		require.ErrorIs(t, err, lockerr.Schema, name)
		require.ErrorContains(t, err, "grant_service", name)
	}
	// Only a look finds the sequence wrong; these have all privileges.
	alone := dialer(t, testkit.As(t, dsn, service))
	_, err = alone.Dial(t.Context(), session.Waiting)
	require.ErrorContains(t, err, "was altered")
	testkit.Exec(t, owner, "SELECT pgbaton.grant_service('"+colleague+"')")
	testkit.Run(t, other, "SELECT pgbaton.grant_service('"+service+"'); ALTER SEQUENCE pgbaton.token CACHE 2")
	for name, dsn := range map[string]string{"another role": testkit.As(t, dsn, colleague), "another database": testkit.As(t, other, service)} {
		d := dialer(t, dsn)
		d.Home = home
		_, err = d.Dial(t.Context(), session.Waiting)
		require.ErrorContains(t, err, "was altered", name)
	}
}

// A network with a round trip of a good part of the TTL opens a session all the same.
func TestDial_OnASlowNetwork(t *testing.T) {
	t.Parallel()
	d := dialer(t, testkit.Migrated(t))
	d.TTL = 3 * time.Second
	d.Config.DialFunc = testkit.Slow(600 * time.Millisecond)
	s, err := d.DialProbed(t.Context(), session.Holding)
	require.NoError(t, err)
	s.HangUp()
}

// A server that has every third statement, or commit, give way to other transactions opens a session all the same.
func TestDial_InSpiteOfConflicts(t *testing.T) {
	t.Parallel()
	for name, habits := range map[string]emulation.Habits{
		"OfStatements": {Seed: 1, FailStatements: 0.3}, "OfCommits": {Seed: 1, FailCommits: 0.3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			engine, err := emulation.Start(testkit.Migrated(t), habits)
			require.NoError(t, err)
			t.Cleanup(engine.Close)
			d := dialer(t, engine.URL())
			for i := range 10 {
				hold := session.Command{What: "hold rows", SQL: "SELECT pgbaton.enlist($1, 'x')", Params: [][]byte{strconv.AppendInt(nil, int64(i+1), 10)}}
				for _, dial := range []func() (*session.Session, error){
					func() (*session.Session, error) { return d.DialProbed(t.Context(), session.Holding) },
					func() (*session.Session, error) { return d.Dial(t.Context(), session.Sidecar, hold) },
					func() (*session.Session, error) { return d.DialPooled(t.Context()) },
				} {
					s, err := dial()
					require.NoError(t, err)
					s.HangUp()
				}
			}
			require.Positive(t, engine.Counts().Faults())
		})
	}
}
