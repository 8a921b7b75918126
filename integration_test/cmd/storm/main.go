// Command storm lets every kind of fault happen to clients that use the whole library, one kind after the other, on
// PostgreSQL servers of its own, and judges what they saw; see package storm of the internal ones.
//
//	storm         prints a table, and writes results/storm.json
//	storm frozen  measures what a frozen waiter costs those behind it, and writes results/frozen.json
//
// STORM_FOR is how long the faults of a kind last (60s), STORM_KINDS which kinds, by their beginnings (all), STORM_MAJORS on
// which servers (14,18), STORM_SEED from which seed (random), STORM_ENGINE with which engine
// (session or lease; what the library takes), STORM_ROUNDS how often a waiter is frozen (50). The exit
// status is 1 when a law was broken. It runs in a directory beside results.
package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/storm"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/integration_test/pgserver"
)

const (
	ttl         = 2 * time.Second
	processes   = 3
	clients     = 2
	bound       = 250 * time.Millisecond
	late        = 400 * time.Millisecond
	frozenTTL   = 15 * time.Second // the default
	stopTimeout = 30 * time.Second
)

var results = filepath.Join("..", "results")

func main() {
	worker.Main()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	run := storms
	if len(os.Args) > 1 && os.Args[1] == "frozen" {
		run = frozen
	}
	broken, err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "storm:", err)
	}
	if err != nil || broken {
		os.Exit(1)
	}
}

// settings are what the environment asks for.
type settings struct {
	dirs   []string // of servers, one a major
	kinds  []storm.Kind
	period time.Duration
	seed   uint64
	rounds int
	engine pgbaton.Engine
}

func read() (s settings, err error) {
	engine := pgbaton.Engine(os.Getenv("STORM_ENGINE"))
	s = settings{period: time.Minute, seed: rand.Uint64N(1 << 32), rounds: 50, kinds: storm.KindsOf(engine), engine: engine} //nolint:gosec // no secret
	if text := os.Getenv("STORM_FOR"); text != "" {
		if s.period, err = time.ParseDuration(text); err != nil {
			return s, fmt.Errorf("STORM_FOR: %w", err)
		}
	}
	if text := os.Getenv("STORM_SEED"); text != "" {
		if s.seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			return s, fmt.Errorf("STORM_SEED: %w", err)
		}
	}
	if text := os.Getenv("STORM_ROUNDS"); text != "" {
		if s.rounds, err = strconv.Atoi(text); err != nil {
			return s, fmt.Errorf("STORM_ROUNDS: %w", err)
		}
	}
	if text := os.Getenv("STORM_KINDS"); text != "" {
		wanted := strings.Split(text, ",")
		s.kinds = slices.DeleteFunc(slices.Clone(s.kinds), func(k storm.Kind) bool {
			return !slices.ContainsFunc(wanted, func(w string) bool { return w != "" && strings.HasPrefix(string(k), w) })
		})
		if len(s.kinds) == 0 {
			return s, fmt.Errorf("STORM_KINDS is %q; there are %v", text, storm.KindsOf(engine))
		}
	}
	majors := "14,18"
	if text := os.Getenv("STORM_MAJORS"); text != "" {
		majors = text
	}
	for _, text := range strings.Split(majors, ",") {
		major, err := strconv.Atoi(text)
		if err != nil {
			return s, fmt.Errorf("STORM_MAJORS: %w", err)
		}
		dir := pgserver.BinDirOf(major)
		if dir == "" {
			return s, fmt.Errorf("there are no server programs of PostgreSQL %d; there are those in %v (see PGBATON_TEST_BINDIRS)",
				major, pgserver.BinDirs())
		}
		s.dirs = append(s.dirs, dir)
	}
	return s, nil
}

// serve starts a server, with more settings, for the time of f.
func serve(ctx context.Context, dir string, more map[string]string, f func(*pgserver.Server) error) (err error) {
	opts := []pgserver.Option{pgserver.WithSetting("fsync", "off"), pgserver.WithSetting("full_page_writes", "off")}
	for name, value := range more {
		opts = append(opts, pgserver.WithSetting(name, value))
	}
	server, err := pgserver.StartBinaries(ctx, dir, opts...)
	if err != nil {
		return err
	}
	defer func() {
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err = errors.Join(err, server.Stop(stopping))
	}()
	return f(server)
}

func storms(ctx context.Context) (broken bool, err error) {
	s, err := read()
	if err != nil {
		return false, err
	}
	var outcomes []*storm.Outcome
	for _, dir := range s.dirs {
		for _, kind := range s.kinds {
			var outcome *storm.Outcome
			if outcome, err = one(ctx, s, dir, kind); outcome != nil {
				outcomes = append(outcomes, outcome)
				broken = broken || len(outcome.Violations) > 0
				outcome.Print(os.Stdout)
			}
			if err = errors.Join(err, context.Cause(ctx)); err != nil {
				break
			}
		}
	}
	fmt.Println()
	storm.Table(os.Stdout, outcomes)
	return broken, errors.Join(err, storm.Save(filepath.Join(results, "storm.json"), outcomes))
}

// one is a storm of one kind on servers of its own.
func one(ctx context.Context, s settings, dir string, kind storm.Kind) (outcome *storm.Outcome, err error) {
	err = serve(ctx, dir, kind.Settings(), func(server *pgserver.Server) error {
		opts := storm.Options{
			Kind: kind, Server: server, For: s.period, TTL: ttl, Processes: processes, Clients: clients, Seed: s.seed, Bound: bound, Late: late,
			Engine: string(s.engine), Mutant: os.Getenv("STORM_MUTANT"),
		}
		name := fmt.Sprintf("%s on %d", kind, server.Major())
		fmt.Fprintf(os.Stderr, "storm: %s, %v, seed %d\n", name, s.period, s.seed)
		fight := func() {
			failures := storm.Attempt(strings.ReplaceAll(name, " ", "-"), func(b *storm.Trial) { outcome = storm.Run(ctx, b, opts) })
			if outcome == nil {
				outcome = &storm.Outcome{Kind: kind, Major: server.Major(), Seed: s.seed}
			}
			outcome.Violations = append(outcome.Violations, failures...)
		}
		if kind != storm.Moved {
			fight()
			return nil
		}
		return serve(ctx, dir, nil, func(other *pgserver.Server) error {
			opts.Other = other
			fight()
			return nil
		})
	})
	return outcome, err
}

func frozen(ctx context.Context) (broken bool, err error) {
	s, err := read()
	if err != nil {
		return false, err
	}
	var all []*storm.Thawed
	for _, dir := range s.dirs {
		err = errors.Join(err, serve(ctx, dir, nil, func(server *pgserver.Server) error {
			name := fmt.Sprintf("frozen-on-%d", server.Major())
			fmt.Fprintf(os.Stderr, "storm: %s, %d rounds, TTL %v\n", name, s.rounds, frozenTTL)
			failures := storm.Attempt(name, func(b *storm.Trial) {
				all = append(all, storm.Freeze(ctx, b, server, storm.Lines, s.rounds, frozenTTL)...)
			})
			for _, failure := range failures {
				fmt.Fprintln(os.Stderr, failure)
			}
			broken = broken || len(failures) > 0
			return nil
		}), context.Cause(ctx))
	}
	broken = storm.TableOfThawed(os.Stdout, all) || broken
	return broken, errors.Join(err, storm.Save(filepath.Join(results, "frozen.json"), all))
}
