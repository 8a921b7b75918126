// Package storm tests the whole library at once under one kind of fault at a time, for a few seconds each; make storm does
// so for longer. The engine is that of PGBATON_TEST_ENGINE. See the package storm of the internal ones for what is judged.
package storm

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/integration_test/internal/storm"
	"github.com/pgbaton/pgbaton/integration_test/internal/worker"
	"github.com/pgbaton/pgbaton/integration_test/pgserver"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/internal/testkit/testclient"
)

func TestMain(m *testing.M) {
	worker.Main()
	goleak.VerifyTestMain(lab.Run{M: m})
}

const seed = 20250701

// options are of a short storm: small and at rest now and then, since every process of it has the race detector.
func options(kind storm.Kind, server *pgserver.Server) storm.Options {
	return storm.Options{
		Kind: kind, Server: server, For: testkit.Brief(3*time.Second, 1500*time.Millisecond), TTL: ttl,
		// A slow machine takes its time to tell a holder, and to move.
		Processes: 2, Clients: 1, Seed: seed, Bound: time.Minute, Strict: ttl, Both: lab.Slow,
		Pause: testkit.Brief(0, 30*time.Millisecond),
	}
}

const ttl = 2 * time.Second

// places bounds how many storms there are at the same time.
var places = make(chan struct{}, 4)

// take waits for a place, until the test ends.
func take(t *testing.T) {
	t.Helper()
	places <- struct{}{}
	t.Cleanup(func() { <-places })
}

func TestStorm(t *testing.T) {
	t.Parallel()
	for _, kind := range storm.KindsOf(testclient.Engine()) {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			take(t)
			opts := options(kind, lab.OwnServer(t, kind.Settings())) // its sessions are ended, and found by name
			if kind == storm.Moved {
				opts.Other, opts.For = lab.OwnServer(t, nil), 2*opts.For
			}
			outcome := storm.Run(t.Context(), t, opts)
			outcome.Print(t.Output())
			require.Empty(t, outcome.Violations)
			require.NotZero(t, outcome.Holds)
			if kind != storm.None && kind != storm.Slow {
				require.NotZero(t, outcome.Faults, "nothing happened")
			}
		})
	}
}

// A service that does not listen to the loss of its locks, and one that leaves a lock behind, must be found out: else the
// storm would prove nothing.
func TestStorm_FindsMistakes(t *testing.T) {
	t.Parallel()
	for mutant, sign := range map[string]string{
		worker.Deaf: "was held by two at once",
		worker.Leak: "advisory locks were left behind",
	} {
		t.Run(mutant, func(t *testing.T) {
			t.Parallel()
			take(t)
			opts := options(storm.Terminate, lab.OwnServer(t, nil))
			opts.Mutant, opts.Pause = mutant, 0 // the busier, the sooner it shows
			text := ""
			for range 5 { // it shows by chance, and seldom on a crowded machine
				if text = storm.Run(t.Context(), t, opts).Text(); strings.Contains(text, sign) {
					break
				}
				opts.Seed++
			}
			require.Contains(t, text, sign)
		})
	}
}

// The law of frozen waiters, at a TTL that is far from it.
func TestFrozen(t *testing.T) {
	t.Parallel()
	for _, result := range storm.Freeze(t.Context(), t, lab.OwnServer(t, nil), storm.Lines, 1, time.Minute) {
		t.Logf("figure: behind a frozen waiter, %s: %v", result.Line, result.Max)
		require.Equal(t, 1, result.Rounds, result.Line)
		require.Less(t, result.Max, lab.Slow, "%s: the others waited until the server gave the frozen one up", result.Line)
	}
}
