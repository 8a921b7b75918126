package pgbaton_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/dbtest"
)

// availableOf, capacityOf and holdersOf return a part of a semaphore's state.
func availableOf(ctx context.Context, s *pgbaton.Semaphore) (int, error) {
	state, err := s.State(ctx)
	return state.Available, err
}

func capacityOf(ctx context.Context, s *pgbaton.Semaphore) (int, error) {
	state, err := s.State(ctx)
	return state.Capacity, err
}

func holdersOf(ctx context.Context, s *pgbaton.Semaphore) ([]pgbaton.Holder, error) {
	state, err := s.State(ctx)
	return state.Holders, err
}

// newClient opens a client, closed with the test. Where the test says nothing else, the TTL is a minute: a machine on which
// everything stands still for a while costs no locks.
func newClient(tb testing.TB, dsn string, cfg *pgbaton.Config) *pgbaton.Client {
	tb.Helper()
	var patient pgbaton.Config
	if cfg != nil {
		patient = *cfg
	}
	if patient.TTL == 0 {
		patient.TTL = dbtest.Patience
	}
	client := openClient(tb, dsn, &patient)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), dbtest.Patience)
		defer cancel()
		require.NoError(tb, client.Close(ctx))
	})
	return client
}

// openClient opens a client that the test closes, in spite of a server that stands still for a while.
func openClient(tb testing.TB, dsn string, cfg *pgbaton.Config) *pgbaton.Client {
	tb.Helper()
	for end := time.Now().Add(dbtest.Patience); ; {
		client, err := pgbaton.Open(context.Background(), dsn, cfg)
		if errors.Is(err, context.DeadlineExceeded) && time.Now().Before(end) {
			continue
		}
		require.NoError(tb, err)
		return client
	}
}

// enoughTime makes a call that has so much time, and doubles the time as long as the call's error does not say what it
// shall: on a busy machine the time may be over before the call has come to the point.
func enoughTime(limit *time.Duration, says string, call func() error) error {
	for {
		err := call()
		if err == nil || strings.Contains(err.Error(), says) || *limit <= 0 || *limit > dbtest.Patience {
			return err
		}
		*limit *= 2
	}
}
