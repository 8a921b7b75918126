package lockmgr

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/engine"
	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// attempt is an acquire that the driver has begun, and its hold.
type attempt struct {
	*call
	order int // of arrival
	key   advisory.Key
	mode  advisory.Mode
	try   bool
	cut   bool // its context has ended

	release *call
	fate    fate // of the release
}

func (a *attempt) String() string {
	return fmt.Sprintf("acquire %d of %v, mode %d, try %v", a.order, a.key.ID, a.mode, a.try)
}

// fate is what the model knows of how a release must end.
type fate uint8

const (
	holdsOn fate = iota // without an error
	mayLose             // either way: the loss came at the same moment
	mustLose
)

// keyModel is what the model knows of a key.
type keyModel struct {
	waiting []*attempt // in order of arrival
	holders []*attempt
	untold  []*attempt // whose trust has ended, and who need not know it before somebody else is granted the key
	newest  [2]int64   // tokens of grants, by mode
	turn    <-chan bool
	passes  int  // grants since the server has granted the key, or has let this process go on
	refused bool // the server has refused to run something for it
}

// flight is a round trip that the server has run and whose answers are on their way.
type flight struct {
	anchor   *fakeAnchor
	requests []*engine.Request
}

// history drives a manager, with a fake of the engine, through random events, and compares it with a model: a key is a
// line and a set of holders, and the server's own books say who may be among them.
type history struct {
	*world
	random *rand.Rand
	seed   uint64
	log    []string
	events int

	keys         map[advisory.Key]*keyModel
	attempts     int
	releases     []*attempt // that are under way
	many         []*manyCall
	flights      []flight
	other, queue int // sessions of another process, and of our lock queue
	limited      bool
	closed       bool
	racing       bool // several events happen at the same moment
}

var errRefused = errors.New("the server does not want to")

func newHistory(t *testing.T, seed uint64) *history {
	t.Helper()
	h := &history{random: rand.New(rand.NewPCG(seed, 7)), seed: seed, keys: map[advisory.Key]*keyModel{}} //nolint:gosec // reproducible on purpose
	h.limited = seed%5 == 0
	h.world = newWorld(t, func(w *world, cfg *Config) {
		w.maxAnchors, w.perAnchor = 1+int(seed%3), 2
		if h.limited {
			cfg.MaxHeld = 2
		}
	})
	for i := range int64(2 + seed%3) {
		h.keys[advisory.Key{ID: i, Pair: i == 3}] = &keyModel{}
	}
	h.other, h.queue = h.server.newSession(), h.server.newSession()
	return h
}

func (h *history) failf(format string, args ...any) {
	h.t.Helper()
	h.t.Fatalf(format, args...)
}

func (h *history) note(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf("%8.3f ", time.Since(epoch).Seconds())+fmt.Sprintf(format, args...))
}

// tell prints the events that led to a failure, whoever has noticed it.
func (h *history) tell() {
	if h.t.Failed() {
		h.t.Logf("seed %d:\n%s\nagain: go test -run TestModel -model.seed=%d ./internal/lockmgr", h.seed, strings.Join(h.log, "\n"), h.seed)
	}
}

var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // of the clock in a bubble

// settle waits until everybody has got as far as possible, unless more is to happen at this moment.
func (h *history) settle() {
	if !h.racing {
		synctest.Wait()
	}
}

// start calls a function in a goroutine of its own.
func (h *history) start(f func()) {
	go f()
	h.settle()
}

func (h *history) aKey() advisory.Key {
	i := h.random.Int64N(int64(len(h.keys)))
	return advisory.Key{ID: i, Pair: i == 3}
}

func (h *history) mode() advisory.Mode { return advisory.Mode(h.random.IntN(2)) } //nolint:gosec // 0 or 1

// opened returns the anchors that are open.
func (h *history) opened() []*fakeAnchor {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.anchors)
}

func oneOf[T any](h *history, all []T) (one T, ok bool) {
	if len(all) == 0 {
		return one, false
	}
	return all[h.random.IntN(len(all))], true
}

func (h *history) begin(k advisory.Key, mode advisory.Mode, try bool) {
	ctx, cancel := context.WithCancel(context.Background())
	h.attempts++
	a := &attempt{order: h.attempts, key: k, mode: mode, try: try, call: &call{cancel: cancel, done: make(chan struct{})}}
	h.note("%v", a)
	h.keys[k].waiting = append(h.keys[k].waiting, a)
	h.start(func() {
		defer close(a.done)
		a.hold, a.err = h.Acquire(ctx, advisory.Named{Key: k}, mode, try)
	})
}

func (h *history) cut(a *attempt) {
	h.note("the context of acquire %d ends", a.order)
	a.cut = true
	a.cancel()
	h.settle()
}

// giveUp releases a hold, alone or as one of many.
func (h *history) giveUp(a *attempt) {
	h.note("release of acquire %d", a.order)
	km := h.keys[a.key]
	km.holders = slices.DeleteFunc(km.holders, func(other *attempt) bool { return other == a })
	l := a.hold.anchor.(*fakeAnchor) //nolint:forcetypeassert // of this test
	if l.gone() {
		a.fate = mustLose
	}
	if h.racing {
		a.fate = max(a.fate, mayLose)
	}
	h.releases = append(h.releases, a)
	c := &call{done: make(chan struct{})}
	a.release = c
	asMany := h.random.IntN(4) == 0
	h.start(func() {
		defer close(c.done)
		if asMany {
			c.err = h.ReleaseMany([]*Hold{a.hold})[0]
		} else {
			c.err = a.hold.Release()
		}
	})
}

// forfeit takes a hold away, as for a deadlock.
func (h *history) forfeit(a *attempt) {
	h.note("acquire %d loses what it holds", a.order)
	km := h.keys[a.key]
	km.holders = slices.DeleteFunc(km.holders, func(other *attempt) bool { return other == a })
	a.hold.Forfeit(errCut)
	if a.hold.Reason() == nil {
		h.failf("acquire %d was not told", a.order)
	}
	h.settle()
}

// tryAll tries all keys at once.
func (h *history) tryAll(mode advisory.Mode, take bool) {
	h.note("all keys are tried, mode %d, with a turn: %v", mode, take)
	var keys []advisory.Key
	for i := range int64(len(h.keys)) {
		keys = append(keys, advisory.Key{ID: i, Pair: i == 3})
	}
	c := &manyCall{done: make(chan struct{}), keys: keys, mode: mode}
	h.many = append(h.many, c)
	h.start(func() {
		defer close(c.done)
		if take {
			c.holds, c.errs = h.TakeMany(context.Background(), nameless(keys...), mode)
		} else {
			c.holds, c.errs = h.TryMany(context.Background(), nameless(keys...), mode)
		}
	})
}

// send has the server run what an anchor has been given.
func (h *history) send(l *fakeAnchor, refuse bool) {
	requests := l.take()
	if len(requests) == 0 {
		return
	}
	if l.gone() {
		h.fail(l)
		return
	}
	h.server.refuse = func(r *engine.Request) error {
		if !refuse || r.Verb == engine.Release || h.random.IntN(2) == 0 {
			return nil
		}
		h.keys[r.Key].refused = true
		if h.random.IntN(2) == 0 {
			return errRetry
		}
		return errRefused
	}
	h.server.run(h.t, l.session, requests)
	for _, r := range requests {
		h.note("anchor %d: verb %d of key %d, manners %d: %v %v", l.session, r.Verb, r.Key.ID, r.Manners, r.OK, r.Err)
	}
	h.flights = append(h.flights, flight{l, requests})
}

// land has the oldest answers of an anchor arrive.
func (h *history) land(l *fakeAnchor) {
	i := slices.IndexFunc(h.flights, func(f flight) bool { return f.anchor == l })
	if i < 0 {
		return
	}
	f := h.flights[i]
	h.flights = slices.Delete(h.flights, i, i+1)
	h.note("anchor %d answers", l.session)
	for _, r := range f.requests {
		if r.OK && (r.Verb == engine.Acquire || r.Verb == engine.Yield) {
			h.keys[r.Key].passes = 0
		}
	}
	h.start(func() { h.Answer(f.requests) })
}

// stranger is what another process does.
func (h *history) stranger(k advisory.Key, mode advisory.Mode, what int) {
	switch what {
	case 0, 1:
		if h.server.try(h.other, k, mode) {
			h.note("another process takes key %d, mode %d", k.ID, mode)
			h.tokens(h.keys[k], mode, h.server.draw())
		}
	case 2:
		if h.server.unlock(h.other, k, mode) {
			h.note("another process frees key %d", k.ID)
		}
	case 3:
		if h.server.unlock(h.other, gateOf(k), exclusive) {
			h.note("another process leaves the gate of key %d", k.ID)
		} else if h.server.try(h.other, gateOf(k), exclusive) {
			h.note("another process stands at the gate of key %d", k.ID)
		}
	}
}

// turn is what the lock queue does.
func (h *history) turn(k advisory.Key) {
	km := h.keys[k]
	if km.turn != nil || !h.queued[k] {
		return
	}
	mode, _, ok := h.Need(k)
	if !ok || !h.server.try(h.queue, gateOf(k), exclusive) {
		return
	}
	if !h.server.free(h.queue, k, mode) {
		h.server.unlock(h.queue, gateOf(k), exclusive)
		return
	}
	h.note("a turn for key %d", k.ID)
	km.passes = 0
	km.turn = h.Turn(k)
	h.settle()
	if h.random.IntN(3) == 0 {
		h.stranger(k, exclusive, 0) // a passer-by
	}
}

func (h *history) sleep(d time.Duration) {
	h.note("%v pass", d)
	time.Sleep(d)
	synctest.Wait()
}

func (h *history) dial(err error) {
	h.note("no anchor can be had: %v", err)
	h.mu.Lock()
	h.dialErr = err
	h.mu.Unlock()
}

func (h *history) pickFails(err error) {
	h.note("the engine wants no more keys: %v", err)
	h.mu.Lock()
	h.pickErr = err
	h.mu.Unlock()
}

var errTooMany = fmt.Errorf("%w: made up", lockerr.TooManyLocks)
