package command

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/cmd/pgbaton/internal/doctor"
	"github.com/pgbaton/pgbaton/pgbatonui"
)

const serveLong = `Serves a page that shows who holds and who waits for what in this database, live: waiters as a tree, leaders, semaphores,
runs, what was lost and freed, what doctor finds, and the last 15 minutes. All viewers share one reading a second, and there is none
when nobody watches.

It listens on loopback, and answers only requests for localhost, so that no web site can read it. From elsewhere use a tunnel:
ssh -L 5480:localhost:5480 HOST. It has no login: on another address (--listen) whoever reaches it sees everything; a service can
mount the page behind its own login instead, see the package pgbatonui.

It changes nothing. With --allow-free a viewer who types the token can free what is shown. The token is PGBATON_FREE_TOKEN, of 16
characters or more, or a new one that is printed on standard error.`

const serveExample = `  pgbaton serve
  pgbaton serve --listen 127.0.0.1:8000 --run nightly-report
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
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
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
	ui := &pgbatonui.Config{
		FreeToken: token, Names: f.names, Logger: slog.New(a.logHandler()),
		Examine: func(ctx context.Context) []pgbatonui.Finding { return a.examine(ctx, c) },
	}
	if address.IP.IsLoopback() {
		ui.Hosts = []string{"localhost", "127.0.0.1", "::1", address.IP.String()}
	} else {
		a.say("The page has no login: whoever reaches %s sees the names of all locks.", address)
	}
	page, err := pgbatonui.New(c.Client, unprepared{c.pool}, ui)
	if err != nil {
		_ = listener.Close()
		return err
	}
	server := &http.Server{
		Handler: page, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, ErrorLog: slog.NewLogLogger(a.logHandler(), slog.LevelInfo),
	}
	if err = a.print("http://%s/\n", listener.Addr()); err != nil {
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
