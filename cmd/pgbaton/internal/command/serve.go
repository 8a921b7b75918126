package command

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/doctor"
	"github.com/pgbaton/pgbaton/internal/cli"
	"github.com/pgbaton/pgbaton/pgbatonui"
)

const serveLong = `Serves a page that shows who holds and who waits for what in this database, live: waiters as a tree, leaders, semaphores,
runs, what was lost and freed, what doctor finds, and the last 15 minutes. All viewers share one reading a second, and there is none
when nobody watches.

It listens on loopback. From elsewhere use a tunnel: ssh -L 5480:localhost:5480 HOST. It has no login: on another address (--listen)
whoever reaches it sees everything; a service can mount the page behind its own login instead, see the package pgbatonui.

It answers only requests for localhost and, when it listens on another address, for that and for this machine's own name and
addresses, so that no web site can read it by pointing a name at it. Any other name by which it is reached is given with --host.

It changes nothing. With --allow-free a viewer who types the token can free what is shown. The token is PGBATON_FREE_TOKEN, of 16
characters or more, or a new one that is printed on standard error.`

const serveExample = `  pgbaton serve
  pgbaton serve --listen 127.0.0.1:8000 --run nightly-report
  pgbaton serve --listen 0.0.0.0:5480 --host locks.example.org
  pgbaton serve --allow-free`

const (
	headerTimeout = 5 * time.Second
	idleTimeout   = time.Minute
	serveTimeout  = 5 * time.Second // of the end
)

type serveFlags struct {
	listen    string
	allowFree bool
	names     []string
	hosts     []string
}

func (a *app) serveCommand() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use: "serve", Short: "serve a page that shows all of it, live", Long: serveLong, Example: serveExample, Args: arguments(),
	}
	flags := cmd.Flags()
	flags.StringVar(&f.listen, "listen", "127.0.0.1:5480", "where to listen: `HOST:PORT`")
	flags.BoolVar(&f.allowFree, "allow-free", false, "let a viewer who has the token free what is held")
	flags.StringArrayVar(&f.names, "run", nil, "a `NAME` of a run, which the database knows by its number only; again for more")
	flags.StringArrayVar(&f.hosts, "host", nil, "another `NAME`, without a port, that viewers reach it by; again for more")
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		for _, host := range f.hosts {
			if host == "" || strings.ContainsAny(host, "/@ ") || strings.Contains(host, ":") && net.ParseIP(host) == nil {
				return cli.Usagef("--host takes a name or an address without a port, and not %q", host)
			}
		}
		token := ""
		if f.allowFree {
			if token = a.std.Getenv("PGBATON_FREE_TOKEN"); token == "" {
				token = rand.Text()
				a.say("The token that frees: %s", token)
			}
		}
		return a.withClient(ctx, func(c *client) error { return a.serve(ctx, c, f, token) })
	})
	return cmd
}

// serve serves the page until ctx ends, which is its proper end.
func (a *app) serve(ctx context.Context, c *client, f serveFlags, token string) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", f.listen)
	if err != nil {
		return err
	}
	address := listener.Addr().(*net.TCPAddr) //nolint:forcetypeassert // it listens on tcp
	hosts := append(hostsOf(address, f.listen), f.hosts...)
	ui := &pgbatonui.Config{
		FreeToken: token, Names: f.names, Hosts: hosts, Logger: slog.New(a.logHandler()),
		Examine: func(ctx context.Context) []pgbatonui.Finding { return a.examine(ctx, c) },
	}
	if !address.IP.IsLoopback() {
		a.say("The page has no login: whoever reaches %s sees the names of all locks. It answers to %s, and to other names by --host.",
			address, strings.Join(hosts, ", "))
	}
	page, err := pgbatonui.New(c.Client, unprepared{c.pool}, ui)
	if err != nil {
		_ = listener.Close()
		return err
	}
	server := &http.Server{
		Handler: page, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, ErrorLog: slog.NewLogLogger(a.logHandler(), slog.LevelInfo),
	}
	if err = a.print("http://%s/\n", reached(address)); err != nil {
		_ = listener.Close()
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	// The streams first, since a server waits for them.
	err = cmp.Or(err, page.Close())
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), serveTimeout)
	defer cancel()
	if down := server.Shutdown(ending); down != nil && err == nil && !errors.Is(down, context.DeadlineExceeded) {
		err = down
	}
	return cmp.Or(err, server.Close())
}

// hostsOf are the names of a page: those of loopback, and of another address also what was asked for, and this machine's own name and addresses.
func hostsOf(address *net.TCPAddr, listen string) []string {
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	add := func(host string) {
		if host != "" && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	if !address.IP.IsUnspecified() {
		add(address.IP.String())
	}
	if address.IP.IsLoopback() {
		return hosts
	}
	if asked, _, err := net.SplitHostPort(listen); err == nil && net.ParseIP(asked) == nil {
		add(asked)
	}
	if name, err := os.Hostname(); err == nil {
		add(name)
		short, _, _ := strings.Cut(name, ".")
		add(short)
	}
	addresses, _ := net.InterfaceAddrs() // without them there is --host
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() {
			add(n.IP.String())
		}
	}
	return hosts
}

// reached is how a browser on this machine reaches an address.
func reached(address *net.TCPAddr) string {
	if address.IP.IsUnspecified() {
		return net.JoinHostPort("localhost", strconv.Itoa(address.Port))
	}
	return address.String()
}

// examine is what doctor finds, without what the page shows by itself.
func (a *app) examine(ctx context.Context, c *client) []pgbatonui.Finding {
	var all []pgbatonui.Finding
	for _, f := range doctor.Examine(ctx, doctor.Config{
		Connect: a.connect, Replicas: 1, MaxConns: defaultMaxConns, TTL: a.ttl,
		Open: func(context.Context) (*pgbaton.Client, func(), error) { return c.Client, func() {}, nil },
	}) {
		do := f.Do
		for _, sql := range f.SQL {
			do += " " + sql + ";"
		}
		if f.Level != doctor.OK && f.Topic != "protections" && f.Topic != "pooler" {
			all = append(all, pgbatonui.Finding{Topic: f.Topic, Level: f.Level.String(), Says: redact(f.Says), Do: do})
		}
	}
	return all
}

// unprepared is a pool whose statements poolers can take.
type unprepared struct{ pool *pgxpool.Pool }

func (u unprepared) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return u.pool.Query(ctx, sql, append([]any{pgx.QueryExecModeExec}, args...)...)
}

func (u unprepared) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return u.pool.QueryRow(ctx, sql, append([]any{pgx.QueryExecModeExec}, args...)...)
}
