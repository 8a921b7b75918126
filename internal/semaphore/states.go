package semaphore

import "fmt"

// state is the state of a line; see the package's table.
type state uint8

const (
	idle         state = iota // no claim is under way, and no head is away
	asking                    // a claim is under way
	queued                    // the head is away, in the queue of the processes
	queuedAsking              // the same, and its claim is under way
	turn                      // it is the head's turn at the gate
	turnAsking                // the same, and its claim is under way
	states
)

// asking reports whether a claim is under way.
func (s state) asking() bool { return s == asking || s == queuedAsking || s == turnAsking }

// hasHead reports whether the head is away.
func (s state) hasHead() bool { return s >= queued }

// atGate reports whether it is the head's turn.
func (s state) atGate() bool { return s == turn || s == turnAsking }

// event is what happens to a line; see the package's table.
type event uint8

const (
	wanted event = iota
	served
	short
	look
	turnBegan
	turnEnded
	headLeft
	events
)

// action is what a transition has the line do.
type action uint8

const (
	none       action = iota
	claimSlots        // for the first in line
	claimAhead        // the same, for the head
	sendHead          // to the queue of the processes
	never             // the event cannot come in the state
)

type transition struct {
	to state
	do action
}

var transitions = [states][events]transition{
	idle: {
		wanted: {asking, claimSlots}, served: {idle, never}, short: {idle, never}, look: {idle, never},
		turnBegan: {idle, never}, turnEnded: {idle, never}, headLeft: {idle, never},
	},
	asking: {
		wanted: {asking, none}, served: {idle, none}, short: {queued, sendHead}, look: {asking, never},
		turnBegan: {asking, never}, turnEnded: {asking, never}, headLeft: {asking, never},
	},
	queued: {
		wanted: {queued, none}, served: {queued, never}, short: {queued, never}, look: {queuedAsking, claimAhead},
		turnBegan: {turn, none}, turnEnded: {queued, never}, headLeft: {idle, none},
	},
	queuedAsking: {
		wanted: {queuedAsking, none}, served: {queued, none}, short: {queued, none}, look: {queuedAsking, none},
		turnBegan: {turnAsking, none}, turnEnded: {queuedAsking, never}, headLeft: {asking, none},
	},
	turn: {
		wanted: {turn, none}, served: {turn, never}, short: {turn, never}, look: {turnAsking, claimAhead},
		turnBegan: {turn, never}, turnEnded: {queued, none}, headLeft: {turn, never},
	},
	turnAsking: {
		wanted: {turnAsking, none}, served: {turn, none}, short: {turn, none}, look: {turnAsking, never},
		turnBegan: {turnAsking, never}, turnEnded: {queuedAsking, none}, headLeft: {turnAsking, never},
	},
}

// happens takes the line through a transition, and carries out its action. An answer is for the head's claim. It returns
// the action.
func (l *Line) happens(e event, a *actions, answer chan<- int) action {
	from := l.state
	t := transitions[from][e]
	l.state = t.to
	switch t.do {
	case claimSlots, claimAhead:
		l.claim(a, answer)
	case sendHead:
		l.send()
	case never:
		l.distrust(fmt.Errorf("the line of %q met event %d in state %d", l.name, e, from), a) //nolint:err113 // for the log
	case none:
	}
	return t.do
}

// lookup is what a line asks the server about its semaphore, by name.
type lookup uint8

const (
	noLookup    lookup = iota
	ofCapacity         // for waiters that may want more than there is
	ofExistence        // the last claim did not find it: nothing is claimed before the answer
)

// lifetime is how far the manager is in its life. It goes through all, in this order.
type lifetime uint8

const (
	open    lifetime = iota
	closing          // nobody is served, and slots go back
	empty            // nothing is left to free, and nothing will be granted
	ended            // and no goroutine runs
)
