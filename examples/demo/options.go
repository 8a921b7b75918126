package demo

import (
	"flag"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton/internal/cli"
)

// About tells what the demo does.
const About = `Runs worker processes against one row of a real database, without a lock, with each kind of lock and
with versions, counts the updates that were lost, and kills and freezes holders and leaders. Takes
about half a minute. It applies pgbaton's migrations, which stay, and makes a schema pgbaton_demo,
which it drops at the end.
The exit status is 0 only if everything was as expected.
`

const workersVariable = "DEMO_WORKERS"

const (
	maxWorkers  = 64
	maxRounds   = 1000
	minDuration = 100 * time.Millisecond
)

type options struct {
	database *pgxpool.Config
	workers  int           // processes in a section
	duration time.Duration // of a timed section
	rounds   int           // holders to kill
	work     time.Duration // between reading and writing
}

func parseOptions(args []string, std cli.Streams) (*options, error) {
	opts := &options{workers: 4}
	if text := std.Getenv(workersVariable); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, cli.Usagef("%s is %q, not a number", workersVariable, text)
		}
		opts.workers = n
	}
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	database := flags.String("database-url", "", cli.DatabaseFlagUsage)
	flags.IntVar(&opts.workers, "workers", opts.workers,
		"worker `processes`; the environment variable "+workersVariable+" sets the default")
	flags.DurationVar(&opts.duration, "duration", 3500*time.Millisecond, "`time` that each timed section takes")
	flags.IntVar(&opts.rounds, "rounds", 10, "holders to kill")
	flags.DurationVar(&opts.work, "work", time.Millisecond, "`time` that a worker thinks between reading and writing")
	if err := cli.ParseFlags(flags, args, std, About); err != nil {
		return nil, err
	}
	if err := opts.validate(); err != nil {
		return nil, err
	}
	var err error
	opts.database, err = cli.Database(*database, std.Getenv)
	return opts, err
}

func (o *options) validate() error {
	switch {
	case o.workers < 1 || o.workers > maxWorkers:
		return cli.Usagef("workers must be 1 to %d, not %d", maxWorkers, o.workers)
	case o.duration < minDuration:
		return cli.Usagef("duration must be at least %v, not %v", minDuration, o.duration)
	case o.rounds < 1 || o.rounds > maxRounds:
		return cli.Usagef("rounds must be 1 to %d, not %d", maxRounds, o.rounds)
	case o.work < 0:
		return cli.Usagef("work must not be negative")
	}
	return nil
}
