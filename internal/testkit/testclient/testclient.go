// Package testclient opens clients for tests, with the patience that a busy machine needs, and closes them with the test. It
// stands apart from package testkit, because the library's own packages have that one in their tests.
package testclient

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// New opens a client that is closed with the test. The TTL is a minute where the config has none: a machine on which
// everything stands still for a while costs no locks.
func New(tb testing.TB, dsn string, cfg *pgbaton.Config) *pgbaton.Client {
	tb.Helper()
	var patient pgbaton.Config
	if cfg != nil {
		patient = *cfg
	}
	if patient.Engine == pgbaton.EngineAuto {
		patient.Engine = Engine()
	}
	if patient.TTL == 0 {
		patient.TTL = testkit.Patience
	}
	client := Open(tb, dsn, &patient)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
		defer cancel()
		require.NoError(tb, client.Close(ctx))
	})
	return client
}

// Engine is that of clients whose test has no wish: PGBATON_TEST_ENGINE has it, so that tests of what both engines give run over
// either.
func Engine() pgbaton.Engine { return pgbaton.Engine(os.Getenv("PGBATON_TEST_ENGINE")) }

// Open opens a client that the test closes, in spite of a server that stands still for a while.
func Open(tb testing.TB, dsn string, cfg *pgbaton.Config) *pgbaton.Client {
	tb.Helper()
	for end := time.Now().Add(testkit.Patience); ; {
		client, err := pgbaton.Open(context.Background(), dsn, cfg)
		if errors.Is(err, context.DeadlineExceeded) && time.Now().Before(end) {
			continue
		}
		require.NoError(tb, err)
		return client
	}
}

// EnoughTime makes a call that has so much time, and doubles the time as long as the call's error does not say what it
// shall: on a busy machine the time may be over before the call has come to the point.
func EnoughTime(limit *time.Duration, says string, call func() error) error {
	for {
		err := call()
		if err == nil || strings.Contains(err.Error(), says) || *limit <= 0 || *limit > testkit.Patience {
			return err
		}
		*limit *= 2
	}
}

// Available returns how many permits of a semaphore are free.
func Available(ctx context.Context, s *pgbaton.Semaphore) (int, error) {
	state, err := s.State(ctx)
	return state.Available, err
}

// Capacity returns how many permits a semaphore has.
func Capacity(ctx context.Context, s *pgbaton.Semaphore) (int, error) {
	state, err := s.State(ctx)
	return state.Capacity, err
}

// Holders returns the holders of a semaphore's permits.
func Holders(ctx context.Context, s *pgbaton.Semaphore) ([]pgbaton.Holder, error) {
	state, err := s.State(ctx)
	return state.Holders, err
}
