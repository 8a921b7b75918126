// Command compare measures pgbaton against locks and semaphores on Redis, in one run on one machine, and prints
// the results as Markdown: see RESULTS.md, and "make bench/compare".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/benchmarks/internal/handover"
	"github.com/pgbaton/pgbaton/benchmarks/internal/peer"
	"github.com/pgbaton/pgbaton/benchmarks/internal/redisserver"
)

type options struct {
	at     peer.Servers
	length time.Duration // of one measurement
	rounds int
}

func main() {
	handover.Main()
	var o options
	flag.StringVar(&o.at.Postgres, "database", os.Getenv("DATABASE_URL"), "PostgreSQL's `URL`; pgbaton's migrations are applied")
	flag.StringVar(&o.at.Redis, "redis", "", "Redis's `host:port`; without it one is started")
	flag.DurationVar(&o.length, "length", 2*time.Second, "`time` of one measurement of throughput; a hand-over takes ten times as long")
	flag.IntVar(&o.rounds, "rounds", 5, "measurements of throughput, of which the median counts")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := o.run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

func (o *options) run(ctx context.Context) (err error) {
	if o.at.Redis == "" {
		server, err := redisserver.Start(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, server.Stop()) }()
		o.at.Redis = server.Address
	}
	redis, err := redisserver.Version(ctx, o.at.Redis)
	if err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, o.at.Postgres)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := pgbaton.Migrate(ctx, pool); err != nil {
		return err
	}
	var postgres string
	if err := pool.QueryRow(ctx, "SHOW server_version").Scan(&postgres); err != nil {
		return err
	}
	fmt.Printf("%d processors, %s/%s, %s, PostgreSQL %s, Redis %s without persistence; both on loopback TCP.\n\n",
		runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(), postgres, redis)
	if err := o.handOvers(ctx); err != nil {
		return err
	}
	return o.throughput(ctx)
}
