package waitroom

import (
	"context"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/session"
)

// Desk is whom the room waits for; see package desk.
type Desk interface {
	Need(key advisory.Key) (mode advisory.Mode, until time.Time, ok bool)
	Turn(key advisory.Key) <-chan bool
	Sweep(keys []advisory.Key)
}

// Config is what a room needs.
type Config struct {
	TTL    time.Duration
	Budget *session.Budget
	Dial   func(context.Context) (*session.Session, error)
	Report func(event string, err error) // for the log
}

// Room is the set of waiting sessions and the line before them. Set Desk before the first Enter.
type Room struct {
	Desk Desk
	cfg  Config

	mu       sync.Mutex
	stands   map[advisory.Key]*stand
	posts    map[*Post]struct{}
	line     []*stand // without a session, longest wait first
	idle     int
	ended    int // waits, ever
	sweeping bool
	closed   bool

	wake    chan struct{} // a token for an idle place
	ctx     context.Context
	stop    context.CancelFunc
	workers sync.WaitGroup
}

// stand is what waits: a key, or a post. Guarded by the room's mutex.
type stand struct {
	key   advisory.Key
	post  *Post  // instead of a key
	place *place // nil while in line
	left  bool   // nobody wants it any more
}

// New makes a room without sessions; they are opened when somebody waits.
func New(cfg Config) *Room {
	ctx, stop := context.WithCancel(context.Background())
	return &Room{cfg: cfg, stands: map[advisory.Key]*stand{}, posts: map[*Post]struct{}{}, wake: make(chan struct{}, 1), ctx: ctx, stop: stop}
}

// Enter starts to wait for a key. It returns at once.
func (r *Room) Enter(key advisory.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	if st := r.stands[key]; st != nil {
		st.left = false
		return
	}
	st := &stand{key: key}
	r.stands[key] = st
	r.line = append(r.line, st)
	r.staff()
}

// staff sees to it that somebody serves the line. The caller holds mu.
func (r *Room) staff() {
	if r.closed {
		return
	}
	switch {
	case r.idle > 0:
		chans.Signal(r.wake)
	case r.cfg.Budget.Take(session.Waiting):
		r.workers.Add(1)
		go (&place{room: r}).run()
	}
	if !r.sweeping && len(r.line) > 0 {
		r.sweeping = true
		r.workers.Add(1)
		go r.sweep()
	}
}

// Leave stops waiting for a key. It returns at once.
func (r *Room) Leave(key advisory.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := r.stands[key]
	if st == nil {
		return
	}
	r.ended++
	if st.place != nil {
		st.left = true
		st.place.abandon()
		return
	}
	delete(r.stands, key)
	r.unline(st)
}

// unline takes a stand out of the line.
func (r *Room) unline(st *stand) {
	for i, other := range r.line {
		if other == st {
			r.line = append(r.line[:i], r.line[i+1:]...)
			return
		}
	}
}

// next gives a place the key that has waited longest; nil when there is none.
func (r *Room) next(p *place) *stand {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.line) == 0 {
		return nil
	}
	st := r.line[0]
	r.line = r.line[1:]
	st.place = p
	if len(r.line) > 0 {
		r.staff() // the call that came with this key may have been for two
	}
	return st
}

// part ends a place's service of a key: it goes back into the line, or away if nobody wants it.
func (r *Room) part(st *stand, front bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	st.place = nil
	switch {
	case st.post != nil && (st.left || st.post.busy): // it comes back by itself, or never
	case st.left:
		delete(r.stands, st.key)
	case front:
		r.line = append([]*stand{st}, r.line...)
		if r.idle > 0 {
			r.staff() // the place that failed will pause
		}
	default:
		r.line = append(r.line, st)
	}
}

// wanted says whether anybody still waits for the key, and whether other keys wait for a place.
func (r *Room) wanted(st *stand) (wanted, others bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !st.left, len(r.line) > 0
}

// A sweep is one round trip, but costs the server a try for each key in line. Where waits end often, with or without
// success, keys are being released, and a key in line must not wait for a session while it is free. Where none
// ends, a sweep finds nothing.
const (
	sweepOften  = 20 * time.Millisecond
	sweepSeldom = time.Second
	sweepPerKey = 2 * time.Millisecond // at the least, between sweeps
)

// sweep tries the keys in line, as long as there are any.
func (r *Room) sweep() {
	defer r.workers.Done()
	pause, seen := sweepOften, 0
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-timer.C:
		}
		r.mu.Lock()
		keys := make([]advisory.Key, 0, len(r.line))
		for _, st := range r.line {
			if st.post == nil { // those who have a post look by themselves
				keys = append(keys, st.key)
			}
		}
		if len(r.line) == 0 {
			r.sweeping = false
			r.mu.Unlock()
			return
		}
		r.staff() // the budget may allow another place by now
		pause *= 2
		if r.ended != seen {
			pause, seen = sweepOften, r.ended
		}
		r.mu.Unlock()
		if len(keys) > 0 {
			r.Desk.Sweep(keys)
		}
		pause = min(max(pause, time.Duration(len(keys))*sweepPerKey), sweepSeldom)
		timer.Reset(pause)
	}
}

// MakeRoom asks one of the waiting sessions to leave for a link, without waiting for the end of its slice.
func (r *Room) MakeRoom() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, st := range r.stands {
		if st.place != nil && st.place.calling {
			st.place.abandon()
			return
		}
	}
	for post := range r.posts {
		if place := post.stand.place; place != nil {
			place.abandon()
			chans.Signal(post.nudge)
			return
		}
	}
}

// Done is closed when the room is: no post has a turn any more.
func (r *Room) Done() <-chan struct{} { return r.ctx.Done() }

// Close ends all waits and waits for the room's goroutines.
func (r *Room) Close() {
	r.mu.Lock()
	r.closed = true
	for _, st := range r.stands {
		if st.place != nil {
			st.left = true
			st.place.abandon()
		}
	}
	for post := range r.posts {
		if place := post.stand.place; place != nil {
			post.stand.left = true
			place.abandon()
		}
	}
	r.mu.Unlock()
	r.stop()
	r.workers.Wait()
}
