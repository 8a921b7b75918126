package peer

import (
	"context"
	"time"

	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidislock"
)

// rueidislocks are the locks of github.com/redis/rueidis/rueidislock. Its waiters are told by Redis's
// client-side caching when the key has changed.
type rueidislocks struct{ locker rueidislock.Locker }

func openRueidislock(at Servers) (*rueidislocks, error) {
	locker, err := rueidislock.NewLocker(rueidislock.LockerOption{
		ClientOption:   rueidis.ClientOption{InitAddress: []string{at.Redis}},
		KeyValidity:    ttl,
		KeyMajority:    1,    // there is one Redis
		NoLoopTracking: true, // as it advises for Redis 7.0.5 and later
		// With the default, 20 ms, a busy machine makes attempts fail, and it then waits for news of a key that nobody
		// holds: 1,000 goroutines hang.
		TryNextAfter: time.Second,
	})
	if err != nil {
		return nil, err
	}
	return &rueidislocks{locker}, nil
}

func (r *rueidislocks) Acquire(ctx context.Context, name string) (Release, error) {
	_, release, err := r.locker.WithContext(ctx, name)
	if err != nil {
		return nil, err
	}
	return func(context.Context) error {
		release()
		return nil
	}, nil
}

func (r *rueidislocks) Close(context.Context) error {
	r.locker.Close()
	return nil
}
