// Package engine is the seam between the lock manager, which arbitrates the goroutines of this process, and the engine, by
// which the database excludes processes.
//
// # What an engine guarantees
//
//   - A request is answered exactly once: by [Manager.Answer], or by the loss of its anchor. The loss names no requests: the
//     manager knows which ones it had there.
//   - An Acquire that is answered OK holds the key on the server, against every other process, until a Release is answered or the
//     anchor or the key is lost.
//   - Tokens that come with an answer were drawn after the key was granted, or while it is held, and are greater
//     than all tokens of the key's earlier grants.
//   - While an anchor is trusted, the server grants its keys to nobody else.
//   - A loss is reported before the engine does anything that frees the keys for others.
//   - Nothing that the lock manager calls waits for the server, but Start, Help, CatchUp and Close.
//
// # What it does not
//
// It knows nothing of the holders in this process: a second Acquire of one key may be granted again. The lock manager
// has one request a key under way at the most.
//
// # Two engines
//
// The session engine holds keys as advisory locks of a session. An anchor is such a session; there are several when
// many keys are held. Waiting is PostgreSQL's own queue.
//
// The lease engine holds keys as rows with holder, token and expiry. How it implements a method in another way is said with the
// method, under "Leases". The short of it: one anchor for the client, whose trust is that of the renewal (one statement for all
// rows); a request is a part of one statement for all requests of a round trip; waiting is a poll in one statement
// for all keys, woken by notifications.
package engine

import (
	"context"
	"time"

	"github.com/pgbaton/pgbaton/internal/advisory"
)

// Engine excludes processes from each other's keys.
type Engine interface {
	// Start connects, with the manager that it reports to. On failure nothing is left open. Manager's methods may be called
	// before it returns.
	//
	// Leases: open the link, start the renewal and the poll. The first request agrees with the engine that the schema records.
	Start(ctx context.Context, manager Manager) error

	// Pick returns the anchor at which to ask for one more key, and counts the key there until [Anchor.Drop]. It is nil
	// while there is none: then [Manager.Ready] or [Manager.Down] follows. The error says that no more keys may be asked for.
	// It is called with the lock manager's mutex.
	//
	// Leases: the one anchor. Nothing bounds the keys but [Engine.Capacity].
	Pick(now time.Time) (Anchor, error)

	// Capacity returns how many keys a client may hold whose Config sets no number.
	//
	// Leases: a constant; rows are not as scarce as places in the lock table.
	Capacity() int

	// Queue has the engine wait until a key that was found taken may be free: [Manager.Turn] or [Manager.Sweep] says so, again
	// and again until Unqueue. A key that was unqueued may be queued again. Both return at once; they are called with the
	// lock manager's mutex.
	//
	// Leases: put the key into the set that is polled. The poll is a Sweep of all keys of the set, whose requests are one
	// statement; it is at once for a key of which a notification says that it was released. The key's row says whose turn it is.
	Queue(key advisory.Key)
	Unqueue(key advisory.Key)

	// Closing returns a channel that is closed when the engine begins to close: no turn comes any longer.
	Closing() <-chan struct{}

	// Close ends all waiting, gives all keys back, waits for the server's word on that until ctx ends or trust does, and ends
	// connections and goroutines. The error says that the word did not come.
	//
	// Leases: stop the poll, give the client's rows back in one statement.
	Close(ctx context.Context) error
}

// Gatherer is an engine that waits for several keys at once. With others the keys are waited for one after the other, in
// the order in which everybody takes them.
type Gatherer interface {
	// Gather has the engine wait until the keys, in that order, may be free at the same time. [Gathering.Leave] must follow.
	Gather(keys []advisory.Key) Gathering
}

// Identified is an engine, or an anchor, of which the server knows by a number in pgbaton.lock_client whether it lives. It is 0 as long as the server
// does not. It is called with the lock manager's mutex.
type Identified interface {
	Client() int64
}

// Recorded is an anchor whose grants are rows. Recorded returns the token that the row of a key has; 0 if the anchor has none. It is called with the lock
// manager's mutex.
type Recorded interface {
	Recorded(key advisory.Key) int64
}

// Listener is an engine whose sessions hear notifications from Listen on, also those that come later if it is called again.
type Listener interface {
	Listen()
}

// Anchor is what holds keys on the server: they are trusted together and lost together.
type Anchor interface {
	// Submit hands requests over, which are answered to the manager. It does not wait for answers: Help or Attend must follow.
	//
	// Leases: requests of a round trip share one statement for the ones that acquire or draw, and one for the ones that release.
	Submit(requests ...*Request)
	// Help reads answers, for everybody, while the calling goroutine waits for its own: until done, or ctx ends, or nothing
	// is under way. It returns at once when somebody else reads already.
	Help(ctx context.Context, done func() bool)
	// Attend makes sure that somebody reads the answers.
	Attend()
	// CatchUp makes sure that what the server has said by now is known, as far as that has arrived.
	//
	// Leases: nothing where there is no session; a lease ends by the clock then, which Trusted knows.
	CatchUp(ctx context.Context)

	// Trusted reports whether, at a moment, the keys can still be relied on. It is called with the lock manager's mutex.
	//
	// Leases: send time of the last answered renewal + TTL − TTL/10. A lease that is younger than the renewal lasts longer
	// than that.
	Trusted(now time.Time) bool
	// Expire ends an anchor that is no longer trusted, and returns why it is lost.
	Expire() error
	// Fail ends an anchor for a cause: its keys are lost.
	//
	// Leases: go on as another holder, and give the rows of this one back at the next contact.
	Fail(cause error)

	// Drop reports that a key for which the anchor was picked is no longer held by it or asked for. It is called with the
	// lock manager's mutex.
	Drop()
}

// Manager gets the answers to requests, the losses, and the news that it is worth asking again. Engines call its methods without
// any mutex of theirs.
type Manager interface {
	// Answer hands over the answers to requests that made one round trip. It may come after Lost, when the anchor was lost while they
	// were on their way: what they grant was lost at once.
	Answer(requests []*Request)
	// Lost reports that keys of an anchor are lost: the keys given or, with none, all, and the anchor with them. It comes again for
	// requests that are submitted to a lost anchor.
	//
	// Leases: a renewal that does not find a row reports the loss of its key.
	Lost(anchor Anchor, cause error, keys ...advisory.Key)
	// Ready reports that there is an anchor again, or another one.
	Ready()
	// Down reports that there is no anchor, and why one could not be had just now.
	Down(err error)

	Waiting
}

// Waiting is what the lock queue asks the lock manager and reports to it.
type Waiting interface {
	// Need returns in which mode to wait for a queued key, and until when anybody wants it; the zero time is without end.
	// It reports false if nobody does at the moment, or the key is being asked for.
	Need(key advisory.Key) (mode advisory.Mode, until time.Time, ok bool)
	// Turn reports that this process is first in line for a key, which was free a moment ago. The answer comes on the channel:
	// true when the turn was used or nobody wants it, false when a passer-by was faster.
	Turn(key advisory.Key) <-chan bool
	// Sweep has the keys tried that are still queued, in one round trip.
	Sweep(keys []advisory.Key)
}

// Gathering is a wait for several keys. Its methods are safe for concurrent use.
type Gathering interface {
	// Ready gets a value when the keys may be free, or there will be no turn: see Err.
	Ready() <-chan struct{}
	Err() error
	// Held reports whether the process comes before all others for the keys, so that waiters for one of them in
	// this process come behind.
	Held() bool
	// Again reports that the keys were tried, and one was taken by a passer-by.
	Again()
	// Placed reports whether the engine waits for the keys: else their owner should try them now and then.
	Placed() bool
	// Got returns how many of the keys, the first ones, are kept from others meanwhile, and whether it is known that the next
	// one is what is waited for. Moved gets a value when that may have changed.
	Got() (keys int, known bool)
	Moved() <-chan struct{}
	// Leave ends the wait. It returns at once.
	Leave()
}
