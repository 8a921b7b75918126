// Package peer puts pgbaton and what it is compared with behind one interface. Each is used as its documentation
// says, with its defaults where it has some.
package peer

import (
	"context"
	"fmt"
	"time"
)

// Servers is where the servers are.
type Servers struct {
	Postgres string `json:"postgres"` // a URL
	Redis    string `json:"redis"`    // host:port
}

// ttl is for how long a holder that has fallen silent keeps what it holds.
const ttl = 15 * time.Second

// Client acquires locks or permits, by name. It is safe for concurrent use.
type Client interface {
	// Acquire waits for the lock, or for one permit.
	Acquire(ctx context.Context, name string) (Release, error)
	Close(ctx context.Context) error
}

// Release gives back what was acquired.
type Release func(ctx context.Context) error

// Names of the peers.
const (
	PgbatonLock      = "pgbaton, lock"
	PgbatonSemaphore = "pgbaton, semaphore"
	Redislock1       = "redislock, LinearBackoff 1 ms"
	Redislock50      = "redislock, LinearBackoff 50 ms"
	Redislock100     = "redislock, LinearBackoff 100 ms"
	Rueidislock      = "rueidislock"
	Lua50            = "Redis semaphore in Lua, polled every 50 ms"
	Lua100           = "Redis semaphore in Lua, polled every 100 ms"
	TwoSelects       = "two prepared SELECT 1"
)

// Open opens a client of a peer. Semaphores have the capacity; locks do without.
func Open(ctx context.Context, name string, at Servers, capacity int) (Client, error) {
	switch name {
	case PgbatonLock:
		return openLocks(ctx, at)
	case PgbatonSemaphore:
		return openSemaphores(ctx, at, capacity)
	case Redislock1:
		return newRedislock(at, time.Millisecond), nil
	case Redislock50:
		return newRedislock(at, 50*time.Millisecond), nil
	case Redislock100:
		return newRedislock(at, 100*time.Millisecond), nil
	case Rueidislock:
		return openRueidislock(at)
	case Lua50:
		return newLua(at, 50*time.Millisecond, capacity), nil
	case Lua100:
		return newLua(at, 100*time.Millisecond, capacity), nil
	case TwoSelects:
		return openSelects(ctx, at)
	}
	return nil, fmt.Errorf("there is no peer %q", name)
}
