package pgbatonui

import (
	"context"
	"sync"
	"time"
)

// readings makes one reading after the other while somebody watches, for all viewers.
type readings struct {
	every, linger time.Duration
	make          func(ctx context.Context, last *snapshot) *snapshot

	ctx     context.Context //nolint:containedctx // of the goroutine
	stop    context.CancelFunc
	workers sync.WaitGroup

	mu       sync.Mutex
	watchers int
	left     time.Time // when the last viewer did
	running  bool
	closed   bool
	last     *snapshot     // nil before the first
	changed  chan struct{} // closed by the next snapshot
	next     time.Time     // when the next reading may begin
}

func newReadings(every, linger time.Duration, read func(ctx context.Context, last *snapshot) *snapshot) *readings {
	r := &readings{every: every, linger: linger, make: read, changed: make(chan struct{})}
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

// watch has readings made until leave is called, and for a while longer.
func (r *readings) watch() (leave func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watchers++
	if !r.running && !r.closed {
		r.running = true
		r.workers.Go(r.run)
	}
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.watchers--
		r.left = time.Now()
	})
}

// current returns the newest snapshot, nil if there is none, and a channel that the next one closes.
func (r *readings) current() (*snapshot, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last, r.changed
}

// first returns a snapshot that is not older than the linger, or nil when ctx ends before there is one.
func (r *readings) first(ctx context.Context) *snapshot {
	for {
		last, changed := r.current()
		if last != nil && time.Since(last.at) <= r.linger {
			return last
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		case <-r.ctx.Done():
			return nil
		}
	}
}

// run makes readings until nobody watches.
func (r *readings) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait, last, wanted := r.plan()
		if !wanted {
			return
		}
		timer.Reset(wait)
		select {
		case <-r.ctx.Done():
		case <-timer.C:
		}
		if r.ctx.Err() != nil {
			continue
		}
		begun := time.Now()
		s := r.make(r.ctx, last)
		r.mu.Lock()
		r.last = s
		r.next = begun.Add(max(r.every, 2*time.Since(begun)))
		close(r.changed)
		r.changed = make(chan struct{})
		r.mu.Unlock()
	}
}

// plan returns how long to wait for the next reading, and whether there shall be one.
func (r *readings) plan() (wait time.Duration, last *snapshot, wanted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.watchers == 0 && time.Since(r.left) >= r.linger {
		r.running = false
		return 0, nil, false
	}
	return max(time.Until(r.next), 0), r.last, true
}

// close ends the readings.
func (r *readings) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.stop()
	r.workers.Wait()
}
