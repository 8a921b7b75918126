package peer

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// luaSemaphores are semaphores as they are commonly made with Redis: a sorted set of holders, each with the time at
// which it expires, by Redis's clock, in a script; waiters try again at a fixed interval. There is no such
// semaphore in redislock or rueidislock.
type luaSemaphores struct {
	redis    *redis.Client
	retry    time.Duration
	capacity int
}

var luaAcquire = redis.NewScript(`
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[1]) then
  return 0
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
`)

var errExpired = errors.New("the permit had expired")

func newLua(at Servers, retry time.Duration, capacity int) *luaSemaphores {
	return &luaSemaphores{redis: redis.NewClient(&redis.Options{Addr: at.Redis}), retry: retry, capacity: capacity}
}

func (l *luaSemaphores) Acquire(ctx context.Context, name string) (Release, error) {
	holder := rand.Text()
	ticker := time.NewTicker(l.retry)
	defer ticker.Stop()
	for {
		got, err := luaAcquire.Run(ctx, l.redis, []string{name}, l.capacity, holder, ttl.Milliseconds()).Int()
		if err != nil {
			return nil, err
		}
		if got == 1 {
			return func(ctx context.Context) error { return l.release(ctx, name, holder) }, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-ticker.C:
		}
	}
}

func (l *luaSemaphores) release(ctx context.Context, name, holder string) error {
	removed, err := l.redis.ZRem(ctx, name, holder).Result()
	if err == nil && removed != 1 {
		err = errExpired
	}
	return err
}

func (l *luaSemaphores) Close(context.Context) error { return l.redis.Close() }
