package peer

import (
	"context"
	"sync"

	"github.com/pgbaton/pgbaton"
)

// semaphores are pgbaton's semaphores, all of one capacity.
type semaphores struct {
	client   *pgbaton.Client
	capacity int

	mu   sync.Mutex
	open map[string]*pgbaton.Semaphore
}

func openSemaphores(ctx context.Context, at Servers, capacity int) (*semaphores, error) {
	client, err := openPgbaton(ctx, at)
	if err != nil {
		return nil, err
	}
	return &semaphores{client: client, capacity: capacity, open: map[string]*pgbaton.Semaphore{}}, nil
}

func (s *semaphores) Acquire(ctx context.Context, name string) (Release, error) {
	semaphore, err := s.named(ctx, name)
	if err != nil {
		return nil, err
	}
	permit, err := semaphore.Acquire(ctx, 1)
	if err != nil {
		return nil, err
	}
	return permit.Release, nil
}

func (s *semaphores) named(ctx context.Context, name string) (*pgbaton.Semaphore, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if semaphore := s.open[name]; semaphore != nil {
		return semaphore, nil
	}
	semaphore, err := s.client.Semaphore(ctx, name, s.capacity)
	if err == nil {
		s.open[name] = semaphore
	}
	return semaphore, err
}

func (s *semaphores) Close(ctx context.Context) error { return s.client.Close(ctx) }
