package command

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/cli"
)

func (a *app) benchCommand() *cobra.Command {
	var length time.Duration
	cmd := &cobra.Command{
		Use: "bench", Short: "measure what a lock costs on your server",
		Long: `Measures, in 10 s and on your server: the floor (two SELECT 1, which is what a lock could cost at the least), a pair (acquire and
release) by one goroutine, and pairs by 10 and 100 goroutines on keys of their own, on the client's few connections. Figures of one
machine and one moment: compare the ratios. It takes locks of names that begin with pgbaton-bench/, and writes nothing
with the session engine.`,
		Example: "  pgbaton bench\n  pgbaton bench --time 30s --json", Args: arguments(),
	}
	const parts, usual = 4, 10 * time.Second
	cmd.Flags().DurationVar(&length, "time", usual, "how long to measure, all in all")
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		if length < parts*10*time.Millisecond {
			return cli.Usagef("--time is %v: give more", length)
		}
		figures, err := a.bench(ctx, length/parts)
		if err != nil {
			return err
		}
		return a.emit(figures, func() error {
			rows := make([][]string, len(figures))
			for i, f := range figures {
				rows[i] = []string{
					f.What, strconv.FormatFloat(f.PerSecond, 'f', 0, 64), micros(f.Median), micros(f.P99),
					fmt.Sprintf("%.2f", f.MedianToFloor),
				}
			}
			return table(a.std.Out, []string{"WHAT", "PER SECOND", "MEDIAN", "P99", "MEDIAN / FLOOR"}, rows)
		})
	})
	a.jsonFlag(cmd)
	return cmd
}

func micros(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(time.Microsecond).String()
}

// figure is one measurement. Times are in seconds.
type figure struct {
	What          string  `json:"what"`
	Engine        string  `json:"engine,omitempty"`
	Count         int     `json:"count"`
	PerSecond     float64 `json:"per_second"`
	Median        float64 `json:"median_seconds"`
	P99           float64 `json:"p99_seconds"`
	MedianToFloor float64 `json:"median_to_floor"`
}

// bench measures each thing for a time.
func (a *app) bench(ctx context.Context, length time.Duration) ([]figure, error) {
	var figures []figure
	err := a.withClient(ctx, func(c *client) error {
		d, err := c.Diagnose(ctx)
		if err != nil {
			return err
		}
		floor, err := a.floor(ctx, d.NoSession == nil, length)
		if err != nil {
			return err
		}
		figures = append(figures, floor)
		for _, goroutines := range []int{1, 10, 100} {
			what := fmt.Sprintf("pair, engine %s, goroutines: %d", d.Engine, goroutines)
			f, err := measure(ctx, what, goroutines, length, func(ctx context.Context, i int) error {
				lock, err := c.Acquire(ctx, pgbaton.Name(fmt.Sprintf("pgbaton-bench/%s/%d", c.name, i)))
				if err != nil {
					return err
				}
				return lock.Release(ctx)
			})
			if err != nil {
				return err
			}
			f.Engine = d.Engine
			figures = append(figures, f)
		}
		return nil
	})
	for i := range figures {
		figures[i].MedianToFloor = figures[i].Median / figures[0].Median
	}
	return figures, err
}

// floor measures two statements that do nothing, prepared ones where there is a session that keeps them.
func (a *app) floor(ctx context.Context, prepared bool, length time.Duration) (figure, error) {
	conn, err := a.connect(ctx)
	if err != nil {
		return figure{}, err
	}
	defer hangUp(ctx, conn)
	const name, sql = "pgbaton_floor", "SELECT 1"
	pg := conn.PgConn()
	if prepared {
		if _, err := pg.Prepare(ctx, name, sql, nil); err != nil {
			return figure{}, err
		}
	}
	return measure(ctx, "floor: two SELECT 1, goroutines: 1", 1, length, func(ctx context.Context, _ int) error {
		for range 2 {
			var result *pgconn.Result
			if prepared {
				result = pg.ExecPrepared(ctx, name, nil, nil, nil).Read()
			} else {
				result = pg.ExecParams(ctx, sql, nil, nil, nil, nil).Read()
			}
			if result.Err != nil {
				return result.Err
			}
		}
		return nil
	})
}

// measure has goroutines do something again and again for a time.
func measure(ctx context.Context, what string, goroutines int, length time.Duration, do func(context.Context, int) error) (figure, error) {
	var (
		wait  sync.WaitGroup
		mu    sync.Mutex
		times []time.Duration
		first error
		began = time.Now()
	)
	for i := range goroutines {
		wait.Go(func() {
			var own []time.Duration
			var err error
			for err == nil && time.Since(began) < length {
				before := time.Now()
				if err = do(ctx, i); err == nil {
					own = append(own, time.Since(before))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			times = append(times, own...)
			if first == nil {
				first = err
			}
		})
	}
	wait.Wait()
	took := time.Since(began)
	if first != nil {
		return figure{}, first
	}
	slices.Sort(times)
	const percent = 100
	return figure{
		What: what, Count: len(times), PerSecond: float64(len(times)) / took.Seconds(),
		Median: times[len(times)/2].Seconds(), P99: times[len(times)*(percent-1)/percent].Seconds(),
	}, nil
}
