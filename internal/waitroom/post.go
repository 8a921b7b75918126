package waitroom

import (
	"slices"
	"strconv"
	"strings"

	"github.com/pgbaton/pgbaton/internal/advisory"
	"github.com/pgbaton/pgbaton/internal/chans"
)

// Post is a wait for several keys at the same time, or at one gate, that its owner follows. It has a turn when its
// session stands first at all gates and all keys were free a moment ago. In a turn of keys the owner tries them on the
// link, and says Again or Leave; after [turnLimit] the turn is over in any case. A turn at a gate without a key goes on
// until Pass or Leave, or until other stands need the session.
//
// The methods are safe for concurrent use. Leave must be called.
type Post struct {
	room *Room
	keys int // how many are waited for
	// The arguments of pgbaton.wait_for_turns.
	gates, numbers, pairs []byte
	all                   int // gates

	ready chan struct{}
	moved chan struct{}
	nudge chan struct{} // for the place

	// Guarded by the room's mutex.
	stand  *stand
	turn   bool // it is its turn
	over   bool // the owner has used the turn, or does not want it
	busy   bool // until the owner says Again there is nothing to wait for: it tries keys, or is stuck
	got    int  // keys that the session holds
	known  bool // and it waits for the next one
	rounds int  // how often it has given way to others
	err    error
}

// Gather waits for keys, which must be in the order in which everybody takes them.
func (r *Room) Gather(keys []advisory.Key) *Post {
	gates := make([]advisory.Key, len(keys))
	for i, key := range keys {
		gates[i] = advisory.Key{ID: key.Gate()}
	}
	return r.post(gates, keys)
}

// Stand waits at a gate. Its owner sees to it that only one of the process does.
func (r *Room) Stand(gate advisory.Key) *Post { return r.post([]advisory.Key{gate}, nil) }

func (r *Room) post(gates, keys []advisory.Key) *Post {
	p := &Post{
		room: r, keys: len(keys), all: len(gates),
		gates:   array(gates, func(k advisory.Key) string { return strconv.FormatInt(k.ID, 10) }),
		numbers: array(keys, func(k advisory.Key) string { return strconv.FormatInt(k.ID, 10) }),
		pairs:   array(keys, func(k advisory.Key) string { return strconv.FormatBool(k.Pair) }),
		ready:   make(chan struct{}, 1), moved: make(chan struct{}, 1), nudge: make(chan struct{}, 1),
	}
	p.stand = &stand{post: p}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.posts[p] = struct{}{}
		r.line = append(r.line, p.stand)
		r.staff()
	}
	return p
}

// array writes an array as PostgreSQL reads it.
func array(keys []advisory.Key, text func(advisory.Key) string) []byte {
	elements := make([]string, len(keys))
	for i, key := range keys {
		elements[i] = text(key)
	}
	return []byte("{" + strings.Join(elements, ",") + "}")
}

// Ready gets a value when a turn begins, or the post has failed.
func (p *Post) Ready() <-chan struct{} { return p.ready }

// Moved gets a value when Got may have changed.
func (p *Post) Moved() <-chan struct{} { return p.moved }

// Held reports whether it is the post's turn.
func (p *Post) Held() bool {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	return p.turn && !p.over
}

// Placed reports whether a session waits for the post: else its owner should look by itself now and then.
func (p *Post) Placed() bool {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	return p.stand.place != nil
}

// Got is how many keys, of the first ones, the post's session holds, and keeps from others. It is known that the
// next one is what is waited for as soon as the session has waited for a slice.
func (p *Post) Got() (keys int, known bool) {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	return p.got, p.known
}

// Err is why there will be no turn; nil if there may be.
func (p *Post) Err() error {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	return p.err
}

// Again says that a key was taken by a passer-by. The post waits for it, still first at the gates if the turn is on.
// After Park it goes on waiting for a turn.
func (p *Post) Again() {
	r := p.room
	r.mu.Lock()
	defer r.mu.Unlock()
	p.busy, p.over = false, true
	chans.Signal(p.nudge)
	if p.stand.place == nil && !p.stand.left && !r.closed && !slices.Contains(r.line, p.stand) {
		r.line = append(r.line, p.stand)
		r.staff()
	}
}

// Park ends a turn at a gate until Again is called: its owner could not use another one.
func (p *Post) Park() {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	p.busy, p.over = true, true
	chans.Signal(p.nudge)
}

// Pass ends a turn at a gate: the next process comes first, and the post waits behind it.
func (p *Post) Pass() {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	if p.turn {
		p.over = true
		chans.Signal(p.nudge)
	}
}

// Leave ends the post. It returns at once.
func (p *Post) Leave() {
	r := p.room
	r.mu.Lock()
	defer r.mu.Unlock()
	p.stand.left = true
	delete(r.posts, p)
	r.ended++
	if p.stand.place != nil {
		p.stand.place.abandon()
		chans.Signal(p.nudge)
		return
	}
	r.unline(p.stand)
}
