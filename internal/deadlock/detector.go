package deadlock

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// Board is where the processes that share a database publish their waits.
type Board interface {
	// Holder is in whose name waits are published now. When it changes, what was published before is gone.
	Holder(ctx context.Context) (int64, error)
	Publish(ctx context.Context, holder int64, w Wait) (id int64, err error)
	// Withdraw withdraws waits of a holder, or all if ids is nil.
	Withdraw(ctx context.Context, holder int64, ids []int64) error
	// Waits are all waits of holders that live.
	Waits(ctx context.Context) ([]Published, error)
}

// Published is a wait on the board.
type Published struct {
	Wait
	Holder int64
}

// Detector watches the waits of one client.
type Detector struct {
	board Board         // nil: only the waits of this process are seen
	place func() string // the database; waits in others have nothing to do with it

	report func(event string, err error) // for the log

	// Of the goroutine that looks.
	holder  int64             // as the board has last said; 0 if what is on it in our name is unknown
	known   map[*Watched]bool // waits that are on the board
	suspect []suspicion
	misses  int // looks in a row without the board

	mu      sync.Mutex
	waits   map[*Watched]bool // those that wait for longer than after
	looking bool
	closed  bool

	nudge   chan struct{}
	ctx     context.Context //nolint:containedctx // of the goroutine that looks
	stop    context.CancelFunc
	workers sync.WaitGroup
}

// suspicion is a cycle that the next look is to confirm.
type suspicion struct {
	cycle Cycle
	seen  time.Time
}

// Watched is a wait that is watched.
type Watched struct {
	detector *Detector
	name     func() string
	wait     Wait
	holds    func() []Lock
	end      func(error)
	timer    *time.Timer

	// Guarded by the detector's mutex.
	over bool
	long time.Time

	// Of the goroutine that looks.
	id        int64 // on the board; 0 if it is not there
	published []Lock
}

// New makes a detector.
func New(board Board, place func() string, report func(event string, err error)) *Detector {
	ctx, stop := context.WithCancel(context.Background())
	return &Detector{
		board: board, place: place, report: report, known: map[*Watched]bool{}, waits: map[*Watched]bool{},
		nudge: make(chan struct{}, 1), ctx: ctx, stop: stop,
	}
}

// Watch watches a wait until Over is called. If it must end, end is called, with an error that names the cycle. What
// it holds is asked for at every look.
func (d *Detector) Watch(name func() string, wants Lock, holds func() []Lock, end func(error)) *Watched {
	w := &Watched{detector: d, name: name, wait: Wait{Wants: wants}, holds: holds, end: end}
	w.timer = time.AfterFunc(after, w.ripen)
	return w
}

// ripen makes the wait one that is looked at.
func (w *Watched) ripen() {
	d := w.detector
	d.mu.Lock()
	defer d.mu.Unlock()
	if w.over || d.closed {
		return
	}
	w.wait.Name = w.name()
	w.long = time.Now().Add(LongAfter)
	processes.add(d.place(), w)
	d.waits[w] = true
	d.work()
}

// work makes sure that somebody looks, soon. The caller holds the mutex.
func (d *Detector) work() {
	if !d.looking {
		d.looking = true
		d.workers.Add(1)
		go d.look()
		return
	}
	select {
	case d.nudge <- struct{}{}:
	default:
	}
}

// Over says that the wait has ended.
func (w *Watched) Over() {
	w.timer.Stop()
	d := w.detector
	d.mu.Lock()
	defer d.mu.Unlock()
	w.over = true
	if d.waits[w] {
		delete(d.waits, w)
		processes.remove(w)
		if !d.closed {
			d.work()
		}
	}
}

// look looks, again and again, until there is nothing to be looked at.
func (d *Detector) look() {
	defer d.workers.Done()
	for {
		now, more := d.step()
		if !more {
			return
		}
		select {
		case <-d.ctx.Done():
			return
		case <-time.After(soon):
		}
		select {
		case <-d.ctx.Done():
			return
		case <-d.nudge:
		case <-time.After(time.Until(now.Add(every))):
		}
	}
}

// step is one look. It returns when it was, and false if there is nothing left to do.
func (d *Detector) step() (time.Time, bool) {
	ctx, cancel := context.WithTimeout(d.ctx, patience)
	defer cancel()
	d.mu.Lock()
	mine := make([]*Watched, 0, len(d.waits))
	for w := range d.waits {
		mine = append(mine, w)
	}
	d.mu.Unlock()
	slices.SortFunc(mine, func(a, b *Watched) int { return int(a.wait.ID - b.wait.ID) })

	ids := map[int64]*Watched{}
	waits, err := d.exchange(ctx, mine)
	for _, w := range mine {
		ids[w.id] = w
	}
	if err == nil {
		d.misses = 0
	} else {
		d.holder = 0
		if d.misses++; d.misses == 1 && d.ctx.Err() == nil {
			d.report("deadlocks with other processes cannot be found at the moment", err)
		}
	}
	if err != nil || d.board == nil {
		waits = processes.at(d.place())
		clear(ids)
		for _, w := range mine {
			ids[w.wait.ID] = w
		}
	}
	now := time.Now()
	d.judge(newGraph(waits), ids, now)

	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.waits) == 0 && (d.misses > retries || (err == nil && len(d.known) == 0)) {
		d.looking = false
		return now, false
	}
	return now, true
}

// exchange brings the board up to date with this client's waits, and returns all that are on it.
func (d *Detector) exchange(ctx context.Context, mine []*Watched) ([]Wait, error) {
	if d.board == nil {
		return nil, nil
	}
	holder, err := d.board.Holder(ctx)
	if err != nil {
		return nil, err
	}
	if holder != d.holder {
		if err := d.board.Withdraw(ctx, holder, nil); err != nil {
			return nil, err
		}
		clear(d.known)
		d.holder = holder
	}
	if err := d.withdraw(ctx, mine); err != nil {
		return nil, err
	}
	for _, w := range mine {
		if d.known[w] {
			continue
		}
		wait := w.current()
		if w.id, err = d.board.Publish(ctx, holder, wait); err != nil {
			return nil, err
		}
		w.published = wait.Holds
		d.known[w] = true
	}
	if len(mine) == 0 {
		return nil, nil
	}
	published, err := d.board.Waits(ctx)
	if err != nil {
		return nil, err
	}
	return d.alive(published, mine), nil
}

// withdraw takes from the board the waits that are over, and those of whom it says something else than is true by
// now.
func (d *Detector) withdraw(ctx context.Context, mine []*Watched) error {
	var ids []int64
	for w := range d.known {
		if !slices.Contains(mine, w) || !slices.Equal(w.published, w.holds()) {
			ids = append(ids, w.id)
			delete(d.known, w)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return d.board.Withdraw(ctx, d.holder, ids)
}

// alive leaves out what the board has of this client's own waits that are over.
func (d *Detector) alive(published []Published, mine []*Watched) []Wait {
	waits := make([]Wait, 0, len(published))
	for _, p := range published {
		if p.Holder == d.holder && !slices.ContainsFunc(mine, func(w *Watched) bool { return w.id == p.ID }) {
			continue
		}
		waits = append(waits, p.Wait)
	}
	return waits
}

// current is the wait as it is now.
func (w *Watched) current() Wait {
	wait := w.wait
	wait.Holds = w.holds()
	wait.Long = !time.Now().Before(w.long)
	return wait
}

// judge ends this client's waits that must end, by what the last look suspected and this one confirms.
func (d *Detector) judge(g *graph, mine map[int64]*Watched, now time.Time) {
	var suspect []suspicion
	for _, s := range d.suspect {
		w := mine[s.cycle[0].ID]
		switch {
		case w == nil || !g.has(s.cycle):
		case now.Sub(s.seen) < apart:
			suspect = append(suspect, s)
		default:
			w.end(s.cycle.err())
		}
	}
	for _, c := range g.cycles() {
		known := slices.ContainsFunc(d.suspect, func(s suspicion) bool { return s.cycle.same(c) })
		if !known && mine[c[0].ID] != nil {
			suspect = append(suspect, suspicion{c, now})
		}
	}
	d.suspect = suspect
}

// err is why the youngest wait of the cycle ends.
func (c Cycle) err() error {
	names := make([]string, 0, len(c))
	for _, w := range c {
		names = append(names, w.Name)
	}
	if len(c) == 1 {
		return fmt.Errorf("%w: who waits for %s holds it", lockerr.Deadlock, names[0])
	}
	return fmt.Errorf("%w: each of those who wait for %s holds what the one before waits for",
		lockerr.Deadlock, strings.Join(names, ", "))
}

// Close ends the looking, and withdraws what is left on the board.
func (d *Detector) Close(ctx context.Context) {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.stop()
	d.workers.Wait()
	if len(d.known) > 0 {
		bounded, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		_ = d.board.Withdraw(bounded, d.holder, nil) // without it they go with the holder
	}
}
