package dsn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
)

// secret is the password of every string here. None of its words occurs in a sentence of the package.
const secret = "geheim"

// refused has malformed and refused connection strings, and a word of the sentence for each.
var refused = []struct{ name, dsn, says string }{
	{"spaces round the sign", "password = geheim host=h port=x", "port"},
	{"spaces, then garbage", "host = h password = geheim garbage", "neither a URL"},
	{"tabs round the sign", "password\t=\tgeheim port=x", "port"},
	{"a password of two words", "password=my geheim host=h", "neither a URL"},
	{"an unterminated quote", "password='geheim host=h", "single quotes"},
	{"a quote within", "password='geheim''more' port=x", "neither a URL"},
	{"an escaped quote", `password='a\'geheim' port=x`, "port"},
	{"an escaped space", `password=a\ geheim port=x`, "port"},
	{"capitals", "PASSWORD=geheim port=x", "port"},
	{"the password alone", "geheim", "neither a URL"},
	{"a NUL", "password=geheim\x00 host=h", "neither a URL"},
	{"the password as an option's value", "password=x target_session_attrs=geheim", "target_session_attrs"},
	{"the password as a port", "host=h port=geheim", "port"},
	{"the password as a limit", "password=x connect_timeout=geheim", "connect_timeout"},
	{"another password", "sslpassword=geheim port=x", "port"},
	{"a password in a file's name", "host=h sslrootcert=/geheim sslmode=verify-full", "no such file"},
	{"a service", "service=geheim servicefile=/geheim", "service"},
	{"more ports than hosts", "password=geheim host=a port=1,2,3", "ports"},
	{"channel binding", "password=x channel_binding=geheim", "channel_binding"},
	{"protocol", "password=x max_protocol_version=geheim", "max_protocol_version"},
	{"authentication", "password=x require_auth=geheim", "require_auth"},

	{"a bad port", "postgres://u:geheim@h:port/db", "port"},
	{"a slash", "postgres://u:gehe/geheim@h/db", "@ behind the host"},
	{"a slash behind digits", "postgres://u:12/geheim@h/db", "@ behind the host"},
	{"a slash and a question mark", "postgres://u:12/a?geheim@h/db", "@ behind the host"},
	{"an @", "postgres://u:a@geheim@h/db", "@"},
	{"an @ and a slash", "postgres://u:a@b/geheim@h/db", "@ behind the host"},
	{"a bad escape", "postgres://u:geheim%zz@h/db", "%25"},
	{"an unclosed bracket", "postgres://u:geheim@[::1/db", "not a URL"},
	{"a NUL in a URL", "postgres://u:geheim@h/db%00", "not a URL"},
	{"the password as a parameter", "postgres://h/db?password=geheim&port=x", "port"},
	{"an encoded parameter's name", "postgres://h/db?pass%77ord=geheim&port=x", "port"},
	{"another scheme", "mysql://u:geheim@h/db", "neither a URL"},
	{"a capital scheme", "Postgres://u:geheim@h/db", "neither a URL"},
	{"a space before the URL", " postgres://u:geheim@h/db?sslmode=disable", "first character"},
	{"quotes round the URL", `"postgres://u:geheim@h/db"`, "neither a URL"},
	{"JDBC", "jdbc:postgresql://h/db?user=u&password=geheim", "first character"},
	{"a URL as a database", "dbname=postgres://u:geheim@h/db", "URL alone"},
	{"a URL as a host", "host=postgres://u:geheim@h/db", "@ in the host"},
	{"a URL as a second host", "host=h,u:geheim@h port=1,2", "@ in the host"},
	{"a mode", "postgres://u:geheim@h/db?sslmode=geheim", "sslmode"},

	{"pool_max_conns", "postgres://u:geheim@h/db?pool_max_conns=geheim", "pool_max_conns that is not a number"},
	{"pool_max_conns, too small", "postgres://u:geheim@h/db?pool_max_conns=0", "pool_max_conns below 1"},
	{"pool_min_conns", "password = geheim pool_min_conns = geheim", "pool_min_conns that"},
	{"pool_min_idle_conns", "password = geheim pool_min_idle_conns = geheim", "pool_min_idle_conns that"},
	{"pool_max_conn_lifetime", "password = geheim pool_max_conn_lifetime = geheim", "pool_max_conn_lifetime that"},
	{"its jitter", "password = geheim pool_max_conn_lifetime_jitter = geheim", "lifetime_jitter that"},
	{"pool_max_conn_idle_time", "password = geheim pool_max_conn_idle_time = geheim", "pool_max_conn_idle_time that"},
	{"pool_health_check_period", "password = geheim pool_health_check_period = geheim", "pool_health_check_period that"},
	{"pool_ping_timeout", "password = geheim pool_ping_timeout = geheim", "pool_ping_timeout that"},
	{"a cache", "password = geheim statement_cache_capacity = geheim", "statement_cache_capacity that"},
	{"another cache", "password = geheim description_cache_capacity = geheim", "description_cache_capacity that"},
	{"an exec mode", "password = geheim default_query_exec_mode = geheim", "default_query_exec_mode other"},
}

func TestParse_NoPassword(t *testing.T) {
	t.Parallel()
	require.Greater(t, len(refused), 30)
	for _, c := range refused {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := Parse(c.dsn)
			require.Error(t, err)
			requireNoSecret(t, fmt.Errorf("pgbaton: Open: %w", err))
			require.ErrorContains(t, err, c.says)
		})
	}
}

// A string that parses may be refused when it is used.
func TestConnect_NoPassword(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := listener.Addr().String()
	require.NoError(t, listener.Close()) // nobody listens there now
	for _, dsn := range []string{
		"postgres://me:geheim@" + addr + "/app?sslmode=disable",
		"postgres://me:geheim@" + addr + "/app?sslmode=prefer",
		"postgres://me:geheim@" + addr + "," + addr + "/app?sslmode=prefer",
	} {
		config, err := Parse(dsn)
		require.NoError(t, err)
		_, err = pgx.ConnectConfig(t.Context(), config.ConnConfig)
		require.Error(t, err)
		err = Connect(fmt.Errorf("first: %w", err))
		requireNoSecret(t, fmt.Errorf("pgbaton: Open: %w", err))
		require.ErrorContains(t, err, "first: failed to connect to `user=me database=app`: "+addr)
		require.NotContains(t, err.Error(), "\n")
		var refused *net.OpError
		require.ErrorAs(t, err, &refused)

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = pgx.ConnectConfig(ctx, config.ConnConfig)
		require.ErrorIs(t, Connect(err), context.Canceled)
	}
	other := errors.New("another")
	require.Equal(t, other, Connect(other))
	require.NoError(t, Connect(nil))
}

// requireNoSecret prints err, and everything that it wraps, in every way.
func requireNoSecret(t *testing.T, err error) {
	t.Helper()
	var parse *pgconn.ParseConfigError
	require.NotErrorAs(t, err, &parse)
	var connect *pgconn.ConnectError
	require.NotErrorAs(t, err, &connect)
	for _, e := range chain(err) {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
			require.NotContains(t, fmt.Sprintf(verb, e), secret)
		}
		require.NotContains(t, fmt.Sprintf("%x", e), fmt.Sprintf("%x", secret))
		text, failed := json.Marshal(e)
		require.NoError(t, failed)
		require.NotContains(t, string(text), secret)
		if value := reflect.ValueOf(e); value.Kind() == reflect.Pointer {
			require.NotContains(t, fmt.Sprintf("%#v", value.Elem()), secret)
		}
	}
}

func chain(err error) []error {
	if err == nil {
		return nil
	}
	all := []error{err}
	switch e := err.(type) { //nolint:errorlint // each link is looked at
	case interface{ Unwrap() error }:
		all = append(all, chain(e.Unwrap())...)
	case interface{ Unwrap() []error }:
		for _, one := range e.Unwrap() {
			all = append(all, chain(one)...)
		}
	}
	return all
}

// What is right is not refused.
func TestParse(t *testing.T) {
	t.Parallel()
	for dsn, database := range map[string]string{
		"postgres://u:a%40b%2Fc@h:5433/app?pool_max_conns=7&sslmode=disable":          "app",
		"postgresql://u@h:5433/app%40home?pool_max_conns=7&sslmode=disable":           "app@home",
		"postgres://h:5433/app?user=u&password=a@b&pool_max_conns=7&sslmode=disable":  "app",
		"postgres:///app?host=h&port=5433&pool_max_conns=7&user=u@h&sslmode=disable":  "app",
		"host = h port=5433 user='u' password = 'a b' dbname=app pool_max_conns = 7":  "app",
		"host=h port=5433 user=u password=a@b dbname=app@home pool_max_conns=7":       "app@home",
		"postgres://u:x@h:5433/app?pool_max_conns=7&options=-c%20search_path%3Da%40b": "app",
	} {
		config, err := Parse(dsn)
		require.NoError(t, err, dsn)
		require.Equal(t, "h", config.ConnConfig.Host)
		require.Equal(t, uint16(5433), config.ConnConfig.Port)
		require.Equal(t, database, config.ConnConfig.Database)
		require.Equal(t, int32(7), config.MaxConns)
		require.NotContains(t, config.ConnConfig.RuntimeParams, "pool_max_conns")
	}
}

// Each reason of pgx has a sentence: the pgx that is built with gives no other.
func TestExplain_EveryReason(t *testing.T) {
	t.Parallel()
	for _, c := range refused {
		_, err := Parse(c.dsn)
		require.Error(t, err)
		require.NotContains(t, err.Error(), "is refused: compare", c.dsn)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(file, []byte(secret), 0o600))
	_, err := Parse("host=h sslmode=verify-full sslrootcert=" + file)
	require.ErrorContains(t, err, "TLS parameters")
	require.NotContains(t, err.Error(), secret)
}
