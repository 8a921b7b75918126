package lockqueue

import (
	"slices"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
	"github.com/pgbaton/pgbaton/internal/pgtext"
)

// Wait is a wait for several keys at the same time, or at one gate, that its owner follows. It has a turn when its
// session is first at all gates and all keys were free a moment ago. In a turn of keys the owner tries them,
// and calls Again or Leave; after [turnLimit] the turn is over in any case. A turn at a gate without a key goes on
// until Pass or Leave, or until other tickets need the session.
//
// The methods are safe for concurrent use. Leave must be called.
type Wait struct {
	queue *Queue
	keys  int // how many are waited for
	// The arguments of pgbaton.wait_for_turns.
	gates, numbers, pairs []byte
	all                   int // gates

	ready chan struct{}
	moved chan struct{}
	nudge chan struct{} // for the queuer

	// Guarded by the queue's mutex.
	ticket *ticket
	placed bool // a session waits for it: one that is assigned may still be dialling
	turn   bool // it is its turn
	over   bool // the owner has used the turn, or does not want it
	busy   bool // until the owner calls Again there is nothing to wait for: it tries keys, or is stuck
	got    int  // keys that the session holds
	known  bool // and it waits for the next one
	rounds int  // how often it has given way to others
	err    error
}

// Gather waits for keys, which must be in the order in which everybody takes them.
func (q *Queue) Gather(keys []advisory.Key) *Wait {
	gates := make([]int64, len(keys))
	for i, key := range keys {
		gates[i] = key.Gate()
	}
	return q.follow(gates, keys)
}

// AtGate waits at a gate. Its owner sees to it that only one of the process does.
func (q *Queue) AtGate(gate advisory.Key) *Wait { return q.follow([]int64{gate.ID}, nil) }

func (q *Queue) follow(gates []int64, keys []advisory.Key) *Wait {
	numbers, pairs := make([]int64, len(keys)), make([]bool, len(keys))
	for i, key := range keys {
		numbers[i], pairs[i] = key.ID, key.Pair
	}
	w := &Wait{
		queue: q, keys: len(keys), all: len(gates),
		gates: pgtext.Ints(gates), numbers: pgtext.Ints(numbers), pairs: pgtext.Bools(pairs),
		ready: make(chan struct{}, 1), moved: make(chan struct{}, 1), nudge: make(chan struct{}, 1),
	}
	w.ticket = &ticket{wait: w}
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.waits[w] = struct{}{}
		q.line = append(q.line, w.ticket)
		q.assign()
	}
	return w
}

// Ready gets a value when a turn begins, or the wait has failed.
func (w *Wait) Ready() <-chan struct{} { return w.ready }

// Moved gets a value when Got may have changed.
func (w *Wait) Moved() <-chan struct{} { return w.moved }

// Held reports whether it is the wait's turn.
func (w *Wait) Held() bool {
	w.queue.mu.Lock()
	defer w.queue.mu.Unlock()
	return w.turn && !w.over
}

// Placed reports whether a session is at it: else its owner should look by itself now and then.
func (w *Wait) Placed() bool {
	w.queue.mu.Lock()
	defer w.queue.mu.Unlock()
	return w.placed
}

// Got returns how many keys, of the first ones, the wait's session holds, and keeps from others. It is known that the
// next one is what is waited for as soon as the session has waited for a slice.
func (w *Wait) Got() (keys int, known bool) {
	w.queue.mu.Lock()
	defer w.queue.mu.Unlock()
	return w.got, w.known
}

// Err returns why there will be no turn; nil if there may be.
func (w *Wait) Err() error {
	w.queue.mu.Lock()
	defer w.queue.mu.Unlock()
	return w.err
}

// Again reports that a key was taken by a passer-by. It is waited for, still first at the gates if the turn is on.
// After Park the wait for a turn goes on.
func (w *Wait) Again() {
	q := w.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	w.busy, w.over = false, true
	chans.Signal(w.nudge)
	if w.ticket.queuer == nil && !w.ticket.left && !q.closed && !slices.Contains(q.line, w.ticket) {
		q.line = append(q.line, w.ticket)
		q.assign()
	}
}

// Park ends a turn at a gate until Again is called: its owner could not use another one.
func (w *Wait) Park() {
	w.queue.mu.Lock()
	defer w.queue.mu.Unlock()
	w.busy, w.over = true, true
	chans.Signal(w.nudge)
}

// Pass ends a turn at a gate: the next process comes first, and this one comes behind it.
func (w *Wait) Pass() {
	w.queue.mu.Lock()
	defer w.queue.mu.Unlock()
	if w.turn {
		w.over = true
		chans.Signal(w.nudge)
	}
}

// Leave ends the wait. It returns at once.
func (w *Wait) Leave() {
	q := w.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	w.ticket.left = true
	delete(q.waits, w)
	q.ended++
	if w.ticket.queuer != nil {
		w.ticket.queuer.abandon()
		chans.Signal(w.nudge)
		return
	}
	q.dequeue(w.ticket)
}

// fail ends a wait whose owner cannot be helped.
func (w *Wait) fail(err error) {
	w.queue.mu.Lock()
	w.err = err
	w.queue.mu.Unlock()
	chans.Signal(w.ready)
}
