package lockmgr

import (
	"fmt"

	"github.com/pgbaton/pgbaton/internal/engine"
)

// state is what the server holds of a key, and which answer is awaited; see the package's first table.
type state uint8

const (
	idle      state = iota // the server holds nothing for us
	asking                 // a try is under way
	held                   // the anchor holds the key; nothing is under way
	checking               // held, and the server is asked whether another process waits
	drawing                // held, and tokens are on their way
	releasing              // an unlock is under way
	states
)

// counts reports whether the key is among those that the server is believed to hold.
func (s state) counts() bool { return s > asking }

// event is what happens to a key; see the package's first table.
type event uint8

const (
	wanted event = iota
	granted
	denied
	overdue
	tokensOut
	unwanted
	answered
	freed
	anchorLost
	events
)

// action is what a transition has the manager do.
type action uint8

const (
	none action = iota
	acquire
	count // among the keys that are held
	yield
	draw
	release
	drop  // the key from its anchor
	never // the event cannot come in the state
)

type transition struct {
	to state
	do action
}

// verbs are those of the actions that ask the server.
var verbs = [never + 1]engine.Verb{
	acquire: engine.Acquire, yield: engine.Yield, draw: engine.Draw, release: engine.Release,
}

var transitions = [states][events]transition{
	idle: {
		wanted: {asking, acquire}, granted: {idle, never}, denied: {idle, never}, overdue: {idle, never}, tokensOut: {idle, never},
		unwanted: {idle, never}, answered: {idle, never}, freed: {idle, never}, anchorLost: {idle, never},
	},
	asking: {
		wanted: {asking, never}, granted: {held, count}, denied: {idle, drop}, overdue: {asking, never}, tokensOut: {asking, never},
		unwanted: {asking, never}, answered: {asking, never}, freed: {asking, never}, anchorLost: {idle, drop},
	},
	held: {
		wanted: {held, never}, granted: {held, never}, denied: {held, never}, overdue: {checking, yield}, tokensOut: {drawing, draw},
		unwanted: {releasing, release}, answered: {held, never}, freed: {held, never}, anchorLost: {idle, drop},
	},
	checking: {
		wanted: {checking, never}, granted: {checking, never}, denied: {checking, never}, overdue: {checking, never}, tokensOut: {checking, never},
		unwanted: {checking, never}, answered: {held, none}, freed: {checking, never}, anchorLost: {idle, drop},
	},
	drawing: {
		wanted: {drawing, never}, granted: {drawing, never}, denied: {drawing, never}, overdue: {drawing, never}, tokensOut: {drawing, never},
		unwanted: {drawing, never}, answered: {held, none}, freed: {drawing, never}, anchorLost: {idle, drop},
	},
	releasing: {
		wanted: {releasing, never}, granted: {releasing, never}, denied: {releasing, never}, overdue: {releasing, never},
		tokensOut: {releasing, never}, unwanted: {releasing, never}, answered: {releasing, never},
		freed: {idle, drop}, anchorLost: {idle, drop},
	},
}

// happens takes a key through a transition, and carries out its action. The caller holds the mutex.
func (m *Manager) happens(e *keyState, what event, a *actions) {
	from := e.state
	t := transitions[from][what]
	e.state = t.to
	switch t.do {
	case acquire, yield, draw, release:
		e.request.Reset(verbs[t.do], e.mode)
		e.request.Name = e.name
		a.requests, a.anchors = append(a.requests, e.request), append(a.anchors, e.anchor)
	case count:
		m.held++
	case drop:
		if from.counts() {
			m.held--
		}
		e.anchor.Drop()
		e.anchor, e.tokens = nil, engine.Tokens{}
	case never:
		a.defects = append(a.defects, defect{e.anchor, fmt.Errorf("the key %v met event %d in state %d", e.key, what, from)}) //nolint:err113 // for the log
	case none:
	}
}

// queueState says whether the engine waits for a key; see the package's second table.
type queueState uint8

const (
	unqueued queueState = iota // it does not
	inQueue                    // it does
	atTurn                     // it has announced a turn, and wants to hear whether the turn was taken
	queueStates
)

// queueEvent is what happens to the wait for a key; see the package's second table.
type queueEvent uint8

const (
	taken queueEvent = iota
	turnCame
	turnMissed
	needless
	queueEvents
)

// queueAction is what a transition tells the engine.
type queueAction uint8

const (
	nothing queueAction = iota
	join
	listen // the engine is told later, on the channel that came with the event
	deny   // the turn was not taken
	leave
	settle // the turn was taken, or nobody wants it; and leave
	answer // the same on the channel that came with the event
)

type queueTransition struct {
	to queueState
	do queueAction
}

var queueTransitions = [queueStates][queueEvents]queueTransition{
	unqueued: {taken: {inQueue, join}, turnCame: {unqueued, answer}, turnMissed: {unqueued, nothing}, needless: {unqueued, nothing}},
	inQueue:  {taken: {inQueue, nothing}, turnCame: {atTurn, listen}, turnMissed: {inQueue, nothing}, needless: {unqueued, leave}},
	atTurn:   {taken: {atTurn, nothing}, turnCame: {atTurn, listen}, turnMissed: {inQueue, deny}, needless: {unqueued, settle}},
}

// queueHears takes the wait for a key through a transition, and carries out its action. A channel comes with a turn. The
// caller holds the mutex.
func (m *Manager) queueHears(e *keyState, what queueEvent, turn chan<- bool) {
	t := queueTransitions[e.queue][what]
	e.queue = t.to
	switch t.do {
	case join:
		m.engine.Queue(e.key)
	case listen:
		e.turn = turn
	case deny:
		e.turn <- false
		e.turn = nil
	case leave:
		m.engine.Unqueue(e.key)
	case settle:
		m.engine.Unqueue(e.key)
		e.turn <- true
		e.turn = nil
	case answer:
		turn <- true
	case nothing:
	}
}
