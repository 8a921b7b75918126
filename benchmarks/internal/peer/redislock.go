package peer

import (
	"context"
	"time"

	"github.com/bsm/redislock"
	"github.com/redis/go-redis/v9"
)

// patience is the deadline of an acquire whose context has none: without one redislock would take its TTL for it.
const patience = 5 * time.Minute

// redislocks are the locks of github.com/bsm/redislock. Its waiters try again at a fixed interval.
type redislocks struct {
	redis   *redis.Client
	client  *redislock.Client
	options *redislock.Options
}

func newRedislock(at Servers, retry time.Duration) *redislocks {
	client := redis.NewClient(&redis.Options{Addr: at.Redis})
	return &redislocks{
		redis:   client,
		client:  redislock.New(client),
		options: &redislock.Options{RetryStrategy: redislock.LinearBackoff(retry)},
	}
}

func (r *redislocks) Acquire(ctx context.Context, name string) (Release, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	lock, err := r.client.Obtain(ctx, name, ttl, r.options)
	if err != nil {
		return nil, err
	}
	return lock.Release, nil
}

func (r *redislocks) Close(context.Context) error { return r.redis.Close() }
