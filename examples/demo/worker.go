package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/cli"
)

// WorkerCommand is the hidden subcommand that a worker process runs.
const WorkerCommand = "demo-worker"

const (
	reportEvery = 100 * time.Millisecond
	errorPause  = 50 * time.Millisecond
	poolSize    = 3
)

// kit is what a worker process has to work with.
type kit struct {
	job    job
	pool   *pgxpool.Pool
	client *pgbaton.Client

	input  *bufio.Reader
	told   chan struct{} // a "go" of the parent after the first
	output *json.Encoder
	counts counts // not yet reported
}

// jobKinds reports what the workers of each kind do.
var jobKinds = map[string]func(*kit, context.Context) error{
	jobRaiseUnlocked:  mutating((*kit).raiseUnlocked),
	jobRaiseAdvisory:  mutating((*kit).raiseAdvisory),
	jobRaiseRowLocked: mutating((*kit).raiseRowLocked),
	jobRaiseVersion:   mutating((*kit).raiseVersion),
	jobRaiseMutate:    mutating((*kit).raiseMutate),
	jobTransfer:       mutating((*kit).transfer),
	jobAudit:          (*kit).audit,
	jobInherit:        (*kit).inherit,
	jobOutlive:        (*kit).outlive,
	jobVisit:          (*kit).visitHall,
	jobLead:           (*kit).lead,
}

// RunWorker is a worker process: it reads its job from std.In and writes messages to std.Out.
func RunWorker(ctx context.Context, _ []string, std cli.Streams) error {
	// Ctrl-C reaches every process of the terminal; the parent decides what it means.
	signal.Ignore(os.Interrupt)
	b := &kit{input: bufio.NewReader(std.In), told: make(chan struct{}, 1), output: json.NewEncoder(std.Out)}
	line, err := b.input.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &b.job)
	}
	if err != nil {
		return cli.Usagef("is started by \"pgbaton demo\", not by hand")
	}
	if err := b.run(ctx, std); err != nil {
		return errors.Join(cli.ErrReported, b.say(message{Event: eventFailed, Error: cli.Explain(err).Error()}))
	}
	return nil
}

func (b *kit) run(ctx context.Context, std cli.Streams) error {
	work, ok := jobKinds[b.job.Kind]
	if !ok {
		return fmt.Errorf("there is no job %q", b.job.Kind)
	}
	config, err := cli.Database("", std.Getenv)
	if err != nil {
		return err
	}
	config.MaxConns = poolSize
	if b.pool, err = cli.Connect(ctx, config); err != nil {
		return err
	}
	defer b.pool.Close()
	if b.client, err = pgbaton.New(ctx, b.pool, &pgbaton.Config{TTL: b.job.TTL}); err != nil {
		return err
	}
	defer func() { _ = b.client.Close(ctx) }()

	// Begin together with the others; stop when the parent closes the input, or is gone.
	if err := b.say(message{Event: eventReady}); err != nil {
		return err
	}
	if _, err := b.input.ReadString('\n'); err != nil {
		return nil //nolint:nilerr // dismissed before the work began
	}
	ctx, dismissed := context.WithCancel(ctx)
	defer dismissed()
	go func() {
		defer dismissed()
		b.listen()
	}()
	return work(b, ctx)
}

// listen passes on what the parent says, until it closes the input.
func (b *kit) listen() {
	for {
		if _, err := b.input.ReadString('\n'); err != nil {
			return
		}
		select {
		case b.told <- struct{}{}:
		default:
		}
	}
}

func (b *kit) say(m message) error {
	if err := b.output.Encode(m); err != nil {
		return fmt.Errorf("write to parent: %w", err)
	}
	return nil
}

// mutating is the job of doing one mutation after the other, each with its time.
func mutating(mutation func(*kit, context.Context) error) func(*kit, context.Context) error {
	return func(b *kit, ctx context.Context) error {
		return b.repeat(ctx, func(ctx context.Context) error {
			start := time.Now()
			err := mutation(b, ctx)
			if err == nil {
				b.counts.Mutations = append(b.counts.Mutations, time.Since(start))
			}
			return err
		})
	}
}

// errRefused means that a mutation ended with a conflict, as it may.
var errRefused = errors.New("refused because of a conflict")

// repeat does op until the time is over, and reports the counts now and then. op counts what it did,
// repeat counts the errors.
func (b *kit) repeat(ctx context.Context, op func(ctx context.Context) error) error {
	var (
		now      = time.Now()
		end      = now.Add(b.job.Duration)
		reported = now
	)
	for ; now.Before(end) && ctx.Err() == nil; now = time.Now() {
		if now.Sub(reported) >= reportEvery {
			if err := b.report(eventProgress); err != nil {
				return err
			}
			reported = now
		}
		err := op(ctx)
		switch {
		case err == nil, ctx.Err() != nil:
		case errors.Is(err, errRefused):
			b.counts.Refused++
		default:
			b.counts.add(counts{Errors: 1, Problem: cli.Explain(err).Error()})
			pause(ctx, errorPause)
		}
	}
	return b.report(eventDone)
}

func (b *kit) report(what string) error {
	m := message{Event: what, counts: b.counts}
	b.counts = counts{}
	return b.say(m)
}

// think is the work between reading and writing.
func (b *kit) think(ctx context.Context) { pause(ctx, b.job.Work) }

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
