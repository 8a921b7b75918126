package session_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/lockerr"
	"github.com/pgbaton/pgbaton/internal/session"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

func dialer(t *testing.T, dsn string) *session.Dialer {
	t.Helper()
	cfg, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	return &session.Dialer{Config: cfg, TTL: 4 * time.Second}
}

func dial(t *testing.T, d *session.Dialer, role session.Role) *session.Session {
	t.Helper()
	s, err := d.Dial(context.Background(), role)
	require.NoError(t, err)
	t.Cleanup(func() { session.Close(s.Conn) })
	return s
}

func TestDial_Gate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, sql string
		says      string
	}{
		{"NoSchema", "DROP SCHEMA pgbaton CASCADE", "run its migrations"},
		{"NoSequence", "DROP SEQUENCE pgbaton.token CASCADE", "pgbaton.token does not exist"},
		{"Cache", "ALTER SEQUENCE pgbaton.token CACHE 2", "altered"},
		{"Increment", "ALTER SEQUENCE pgbaton.token INCREMENT 1", "altered"},
		{"Cycle", "ALTER SEQUENCE pgbaton.token CYCLE", "altered"},
		{"Maximum", "ALTER SEQUENCE pgbaton.token MAXVALUE 1000000", "altered"},
		{"LoggedIncarnation", "ALTER TABLE pgbaton.incarnation SET LOGGED", "SET UNLOGGED"},
		{"NoIncarnation", "DROP TABLE pgbaton.incarnation CASCADE", "incarnation"},
		{"NoVersion", "DROP FUNCTION pgbaton.schema_version", "schema_version"},
		{"TooOld", version("0, 0"), "run the migrations"},
		{"TooNew", version("99, 99"), "upgrade the library"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dsn := testkit.Migrated(t)
			testkit.Run(t, dsn, test.sql)
			_, err := dialer(t, dsn).Dial(context.Background(), session.Holding)
			require.ErrorIs(t, err, lockerr.Schema)
			require.ErrorContains(t, err, test.says)
		})
	}
}

func version(numbers string) string {
	return `CREATE OR REPLACE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer)
		LANGUAGE sql IMMUTABLE BEGIN ATOMIC SELECT ` + numbers + `; END`
}

func TestDial_NewerSchemaThatServesThisClient(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	testkit.Run(t, dsn, version("99, 1"))
	dial(t, dialer(t, dsn), session.Holding)
}

func TestDial_NamesTheMissingGrant(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	name := "r " + time.Now().Format("150405.000000")
	role := pgx.Identifier{name}.Sanitize()
	testkit.Run(t, dsn, "CREATE ROLE "+role+" LOGIN PASSWORD 'service'")
	t.Cleanup(func() { testkit.Run(t, dsn, "DROP OWNED BY "+role+"; DROP ROLE "+role) })
	d := dialer(t, dsn)
	d.Config.User, d.Config.Password = name, "service"
	for _, also := range []string{"", "GRANT USAGE ON SCHEMA pgbaton TO " + role} {
		testkit.Run(t, dsn, also)
		_, err := d.Dial(context.Background(), session.Holding)
		require.ErrorIs(t, err, lockerr.Schema)
		require.ErrorContains(t, err, "SELECT pgbaton.grant_service('"+role+"')")
	}
	testkit.Run(t, dsn, "SELECT pgbaton.grant_service('"+role+"')")
	// A role that may only read by default can still repair the tokens.
	testkit.Run(t, dsn, "ALTER ROLE "+role+" SET default_transaction_read_only = on")
	require.False(t, dial(t, d, session.Holding).Repaired, "a new sequence is not in doubt")
	testkit.Run(t, dsn, "DELETE FROM pgbaton.incarnation") // as a crash does
	require.True(t, dial(t, d, session.Holding).Repaired)
	require.False(t, dial(t, d, session.Holding).Repaired)
}

func TestDial_Pooler(t *testing.T) {
	t.Parallel()
	proxy, cfg := testkit.Through(t, testkit.Migrated(t))
	proxy.Rewrite(func(b []byte) { // BackendKeyData: 'K', length 12, process id, secret
		if i := bytes.Index(b, []byte{'K', 0, 0, 0, 12}); i >= 0 && i+9 <= len(b) {
			binary.BigEndian.PutUint32(b[i+5:], 77)
		}
	})
	d := &session.Dialer{Config: cfg, TTL: time.Second}
	_, err := d.Dial(context.Background(), session.Holding)
	require.ErrorIs(t, err, lockerr.Pooler)
	require.ErrorContains(t, err, "SessionPooler")
	d.SessionPooler = true
	dial(t, d, session.Holding)
}

func TestDial_PinsWhatHooksHaveSet(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	testkit.Run(t, dsn, `CREATE SCHEMA hostile; CREATE FUNCTION hostile.nextval(regclass) RETURNS bigint LANGUAGE sql AS 'SELECT 1';
		CREATE FUNCTION hostile.pg_backend_pid() RETURNS integer LANGUAGE sql AS 'SELECT 1'`)
	d := dialer(t, dsn)
	before, after := 0, 0
	d.BeforeConnect = func(_ context.Context, cfg *pgx.ConnConfig) error {
		before++
		cfg.RuntimeParams["application_name"] = "hooked"
		return nil
	}
	d.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		after++
		_, err := conn.Exec(ctx, `SET search_path = hostile, pg_catalog; SET statement_timeout = '1000 s'; SET lock_timeout = 1;
			SET default_transaction_read_only = on; SET default_transaction_isolation = serializable; SET synchronous_commit = remote_apply`,
			pgx.QueryExecModeSimpleProtocol)
		return err
	}
	for i, role := range []session.Role{session.Holding, session.Waiting} {
		s := dial(t, d, role)
		require.Equal(t, i+1, before)
		require.Equal(t, i+1, after)
		require.NotEmpty(t, s.Protections)
		for _, p := range s.Protections {
			require.Empty(t, p.Refused, p.Setting)
		}
		require.NotContains(t, d.Config.RuntimeParams, "application_name", "the caller's config is altered")
		for name, want := range map[string]string{
			"search_path": "pg_catalog, pg_temp", "statement_timeout": "0", "lock_timeout": "0",
			"default_transaction_read_only": "off", "default_transaction_isolation": "read committed",
			"synchronous_commit": "off", "application_name": "hooked", "tcp_user_timeout": []string{"4000", "1000"}[i],
			"idle_session_timeout": []string{"4s", "1s"}[i],
		} {
			require.Equal(t, want, testkit.Value[string](t, s.Conn, "SELECT current_setting($1)", name), name)
		}
	}
}

func TestDial_HooksThatFail(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	proxy, cfg := testkit.Through(t, dsn)
	no := errors.New("no")
	d := &session.Dialer{Config: cfg, TTL: time.Second}
	d.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { return no }
	_, err := d.Dial(context.Background(), session.Holding)
	require.ErrorIs(t, err, no)
	d.BeforeConnect = nil
	for says, hook := range map[string]func(context.Context, *pgx.Conn) error{
		"no": func(context.Context, *pgx.Conn) error { return no },
		"left a transaction open": func(ctx context.Context, conn *pgx.Conn) error {
			_, failed := conn.Exec(ctx, "BEGIN")
			return failed
		},
	} {
		d.AfterConnect = hook
		_, err = d.Dial(context.Background(), session.Holding)
		require.ErrorContains(t, err, says)
	}
	require.Eventually(t, func() bool { return proxy.Open() == 0 }, testkit.Patience, time.Millisecond, "nothing is left open")
}

func TestDial_NoPasswordInErrors(t *testing.T) {
	t.Parallel()
	for _, dsn := range []string{
		"postgres://somebody:hunter2@127.0.0.1:1/db",
		"host=127.0.0.1 port=1 user=somebody password=hunter2",
	} {
		_, err := dialer(t, dsn).Dial(context.Background(), session.Holding)
		require.ErrorContains(t, err, "127.0.0.1:1")
		require.NotContains(t, err.Error(), "hunter2")
	}
}

// On a network that swallows everything a session that was given up is gone soon, with its socket.
func TestClose_OnADeadNetwork(t *testing.T) {
	t.Parallel()
	proxy, cfg := testkit.Through(t, testkit.Migrated(t))
	s, err := (&session.Dialer{Config: cfg, TTL: time.Second}).Dial(context.Background(), session.Waiting)
	require.NoError(t, err)
	proxy.Stall(true)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err = s.PgConn().Exec(ctx, "SELECT 1").ReadAll()
	require.Error(t, err)
	started := time.Now()
	session.Close(s.Conn)
	testkit.Figure(t, "a session on a network that swallows everything was closed in %v", time.Since(started))
	select {
	case <-s.PgConn().CleanupDone():
	default:
		require.Fail(t, "it is still being closed")
	}
}

// A connection through a pooler that is given up sends no cancel request, unlike one of the server's own.
func TestPooled_SendsNoCancel(t *testing.T) {
	t.Parallel()
	dsn := testkit.Migrated(t)
	for name, dial := range map[string]func(d *session.Dialer) (*session.Session, error){
		"pooled": func(d *session.Dialer) (*session.Session, error) { return d.DialPooled(t.Context()) },
		"direct": func(d *session.Dialer) (*session.Session, error) { return d.Dial(t.Context(), session.Holding) },
	} {
		proxy, cfg := testkit.Through(t, dsn)
		s, err := dial(&session.Dialer{Config: cfg, TTL: testkit.Patience})
		require.NoError(t, err)
		before := proxy.Dialled()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		_, err = s.PgConn().Exec(ctx, "SELECT pg_sleep(0.2)").ReadAll()
		require.Error(t, err)
		<-s.PgConn().CleanupDone()
		require.Equal(t, name == "direct", proxy.Dialled() > before, name)
		session.Close(s.Conn)
	}
}
