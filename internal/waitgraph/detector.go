package waitgraph

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/pgbaton/pgbaton/internal/chans"
)

// Detector watches the waits of one client.
type Detector struct {
	board Board         // nil: only the waits of this process are seen
	place func() string // the database; waits in others have nothing to do with it

	report func(event string, err error) // for the log

	// Of the goroutine that looks.
	rows   ownRows
	shared view // the waits on the board
	own    view // the waits of this process
	misses int  // looks in a row without the board

	mu      sync.Mutex
	waits   map[*Watched]bool
	looking bool
	closed  bool

	nudge   chan struct{}
	ctx     context.Context //nolint:containedctx // of the goroutine that looks
	stop    context.CancelFunc
	workers sync.WaitGroup
}

// Watched is a wait that is watched.
type Watched struct {
	detector *Detector
	wait     Wait // of this process
	holds    func() []Lock
	end      func(error)

	// Guarded by the register's mutex.
	row     row  // its newest row on the board
	visible bool // and the board shows it
	ended   bool // by a detector

	published []Lock // what it holds by its row; of the goroutine that looks
}

// New makes a detector.
func New(board Board, place func() string, report func(event string, err error)) *Detector {
	ctx, stop := context.WithCancel(context.Background())
	return &Detector{
		board: board, place: place, report: report, waits: map[*Watched]bool{},
		nudge: make(chan struct{}, 1), ctx: ctx, stop: stop,
	}
}

// Watch watches a wait that has lasted for [After], until Over is called. If it must end, end is called, with an error
// that names the cycle. holds is called at every look. The name is that of the key, for people.
func (d *Detector) Watch(name string, wants Lock, holds func() []Lock, end func(error)) *Watched {
	w := &Watched{detector: d, wait: Wait{Name: name, Wants: wants}, holds: holds, end: end}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		processes.add(d.place(), w)
		d.waits[w] = true
		d.work()
	}
	return w
}

// work makes sure that somebody looks, soon. The caller holds the mutex.
func (d *Detector) work() {
	if !d.looking {
		d.looking = true
		d.workers.Add(1)
		go d.look()
		return
	}
	chans.Signal(d.nudge)
}

// Busy reports whether waits are watched, or may still be on the board.
func (d *Detector) Busy() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.looking
}

// Over reports that the wait has ended.
func (w *Watched) Over() {
	d := w.detector
	d.mu.Lock()
	defer d.mu.Unlock()
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
		began := time.Now()
		pause, more := d.step()
		if !more {
			return
		}
		select {
		case <-d.ctx.Done():
			return
		case <-time.After(pause):
		}
		select {
		case <-d.ctx.Done():
			return
		case <-d.nudge:
		case <-time.After(time.Until(began.Add(every))):
		}
	}
}

// step is one look. It returns how long to pause after it, and false if there is nothing left to do.
func (d *Detector) step() (pause time.Duration, more bool) {
	mine := d.mine()
	waits, err := d.exchange(mine)
	processes.reach(mine, err == nil && d.board != nil)
	began := time.Now()
	switch {
	case err == nil:
		d.misses = 0
		d.shared.local = func(w Wait) (*Watched, bool) { return processes.behind(d.rows.by.place, w) }
		d.shared.skip = func(Cycle) bool { return false }
		d.shared.judge(d, waits, began)
	case d.ctx.Err() == nil:
		if d.misses++; d.misses == 1 {
			d.report("deadlocks with other processes cannot be found at the moment", err)
		}
	}
	here := processes.here(d.place())
	d.judgeOwn(here, began)

	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.waits) > 0 {
		return pace(max(len(waits), len(here), len(mine)), time.Since(began)), true
	}
	if err == nil && d.rows.none() {
		d.looking = false
		return 0, false
	}
	return min(every<<min(d.misses, mostMisses), longest), true
}

// mine are the client's waits that go on, the oldest first.
func (d *Detector) mine() []*Watched {
	d.mu.Lock()
	mine := make([]*Watched, 0, len(d.waits))
	for w := range d.waits {
		mine = append(mine, w)
	}
	d.mu.Unlock()
	slices.SortFunc(mine, func(a, b *Watched) int { return int(a.wait.ID - b.wait.ID) })
	return processes.going(mine)
}

// judgeOwn looks for cycles of this process that cannot be seen on the board, since one of their waits is not there.
// Nil is none.
func (d *Detector) judgeOwn(here []*Watched, now time.Time) {
	waits := make([]Wait, len(here))
	behind := make(map[int64]*Watched, len(here))
	for i, w := range here {
		waits[i] = w.current()
		behind[w.wait.ID] = w
	}
	d.own.local = func(w Wait) (*Watched, bool) { return behind[w.ID], true }
	d.own.skip = func(c Cycle) bool {
		members := make([]*Watched, len(c))
		for i, w := range c {
			members[i] = behind[w.ID]
		}
		return !processes.anyHidden(members)
	}
	d.own.judge(d, waits, now)
}

// current is the wait as it is now.
func (w *Watched) current() Wait {
	wait := w.wait
	wait.Holds = w.holds()
	return wait
}

// pace is how long to pause between looks, so that they take a small share of a processor, of the client's and of
// the server's: a look at n waits costs each of them some ten microseconds a wait, and where there are many
// cycles, what it was seen to cost.
func pace(n int, judged time.Duration) time.Duration {
	return max(soon+time.Duration(n)*pausePerWait, pauseShare*judged)
}

// Close ends the looking, and withdraws what is left on the board.
func (d *Detector) Close(ctx context.Context) {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.stop()
	d.workers.Wait()
	d.farewell(ctx)
}
