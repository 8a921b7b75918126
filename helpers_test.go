package pgbaton_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
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

func holdersOf(ctx context.Context, s *pgbaton.Semaphore) ([]pgbaton.SemaphoreHolder, error) {
	state, err := s.State(ctx)
	return state.Holders, err
}

// newClient opens a client, closed with the test.
func newClient(tb testing.TB, dsn string, cfg *pgbaton.Config) *pgbaton.Client {
	tb.Helper()
	client, err := pgbaton.Open(context.Background(), dsn, cfg)
	require.NoError(tb, err)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(tb, client.Close(ctx))
	})
	return client
}
