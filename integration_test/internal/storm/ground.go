package storm

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
)

// account is the role and the database of every storm, alike on all servers so that clients can be led from one to another.
const account = "storm"

// capacities are the storm's semaphores.
var capacities = map[string]int{"storm/one": 1, "storm/three": 3}

// Server is a PostgreSQL, or several of which one leads.
type Server interface {
	URL() string // the superuser's
	Origin() string
	Major() int
}

// field is a database that a storm is fought in.
type field struct {
	tb     worker.TB
	server Server
	addr   string
}

// url returns the database's address, by another way if one is given: an address, or a list of addresses with commas, of
// which one leads to a primary.
func (f *field) url(addr string) string {
	if addr == "" {
		addr = f.addr
	}
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(account, account), Host: addr, Path: "/" + account,
		RawQuery: "sslmode=disable",
	}
	if strings.Contains(addr, ",") {
		var hosts, ports []string
		for one := range strings.SplitSeq(addr, ",") {
			host, port, err := net.SplitHostPort(one)
			require.NoError(f.tb, err)
			hosts, ports = append(hosts, host), append(ports, port)
		}
		u.Host = ""
		u.RawQuery = url.Values{
			"sslmode": {"disable"}, "target_session_attrs": {"read-write"},
			"host": {strings.Join(hosts, ",")}, "port": {strings.Join(ports, ",")},
		}.Encode()
	}
	return u.String()
}

// prepare makes role, database, schema, tables and semaphores. The database of an earlier storm is dropped.
func prepare(tb worker.TB, server Server) *field {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*lab.Hang) // each of many commits may wait for another server
	defer cancel()
	admin, err := pgx.Connect(ctx, server.URL())
	require.NoError(tb, err)
	defer admin.Close(ctx)
	f := &field{tb: tb, server: server, addr: net.JoinHostPort(admin.Config().Host, fmt.Sprint(admin.Config().Port))}
	for _, sql := range []string{
		"DROP DATABASE IF EXISTS storm WITH (FORCE)", "DROP ROLE IF EXISTS storm",
		"CREATE ROLE storm LOGIN SUPERUSER PASSWORD 'storm'", "CREATE DATABASE storm OWNER storm TEMPLATE template0",
	} {
		_, err = admin.Exec(ctx, sql)
		require.NoError(tb, err, sql)
	}
	pool, err := pgxpool.New(ctx, f.url(""))
	require.NoError(tb, err)
	defer pool.Close()
	require.NoError(tb, pgbaton.Migrate(ctx, pool))
	for sql := range strings.SplitSeq(worker.StormTables, ";") {
		if strings.TrimSpace(sql) != "" {
			_, err = pool.Exec(ctx, sql)
			require.NoError(tb, err, sql)
		}
	}
	client, err := pgbaton.New(ctx, pool, nil)
	require.NoError(tb, err)
	for name, capacity := range capacities {
		_, err = client.Semaphore(ctx, name, capacity)
		require.NoError(tb, err)
	}
	require.NoError(tb, client.Close(ctx))
	return f
}

// control is a connection for looking and for faults. It is opened anew when it was lost.
type control struct {
	field *field
	conn  *pgx.Conn
}

// do runs a function with the connection. A failure costs the connection, and is returned.
func (c *control) do(ctx context.Context, f func(context.Context, *pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if c.conn == nil {
		conn, err := pgx.Connect(ctx, c.field.url("")+"&application_name=storm-control")
		if err != nil {
			return err
		}
		c.conn = conn
	}
	err := f(ctx, c.conn)
	if err != nil {
		c.close()
	}
	return err
}

func (c *control) close() {
	if c.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = c.conn.Close(ctx)
	c.conn = nil
}

// count returns the number that a query gives.
func (c *control) count(ctx context.Context, sql string, args ...any) (n int, err error) {
	err = c.do(ctx, func(ctx context.Context, conn *pgx.Conn) error { return conn.QueryRow(ctx, sql, args...).Scan(&n) })
	return n, err
}
