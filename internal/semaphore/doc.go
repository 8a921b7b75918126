// Package semaphore claims slots of semaphores, and arbitrates between the goroutines of one process that want them.
//
// # What it guarantees
//
//   - A permit has slots of its own, claimed on the server for a time, from its grant to the call of Release or
//     the news of its loss; the time is renewed while the process can reach the server.
//   - Waiters of one semaphore are served in the order of arrival in the process, each with all that it wants.
//     None passes another because it wants less, here or, where sessions can wait at the gate, in another process.
//   - Slots that are released are handed over to the next in line in memory, if they are enough for it, at most
//     [tokensPerClaim] − 1 times and for a [tenure]. Then they go back to the server.
//   - Waiters share a statement, and so do releases.
//   - A permit is no longer trusted TTL − TTL/10 after its last claim or renewal that was answered was sent; or as
//     soon as the session is lost whose end gives its slots to others.
//   - Release waits for the server's word no longer than the permit would have been trusted, whatever others do to the
//     table or to its rows; without that word the permit is lost. The slots are freed nevertheless, as soon as the
//     server can: while the session lives nobody else takes them from it.
//   - A grant that nobody wants goes to the next in line, or back.
//   - Every goroutine is the manager's. Close waits for them until its context ends, and Wait until they have ended.
//
// # What it does not
//
// A release and a claim of one process may share a transaction, so a process that finds nobody at the gate may have
// a slot again that it has just given back.
//
// # How it works
//
// Each semaphore has one line, with its waiters. A line asks for slots with one statement at a time, a claim. If a claim
// does not bring enough, the line sends its head, a goroutine, which waits in the server's queue for the semaphore's
// gate, with a session that only waits. The process whose turn it is looks for slots when a notification says that some
// were released, and every now and then, until it gets some, and lets the next process to the gate. A claim that does
// not come from there is refused while anybody is. A process that freezes there loses its turn within a second, since
// its session says four times in that time that it lives, or dies. Behind a pooler no session can wait anywhere, nor
// can one where all are busy: there the head asks every now and then, and a row says whose turn it is, for half a second
// at a time, and that it is the gate's afterwards.
//
// # The states of a line
//
// A line is in one of six states. A row says what an event does: the next state and, after a comma, the action. "-" is
// an event that changes nothing, "never" one that cannot come in that state. If it comes nevertheless, by a defect, the line may be
// wrong about its slots. It changes nothing then, reports it, and gives its permits up: the holders are told, and then the
// server frees the slots. Package lockmgr does the same, and says why.
//
//	             | wanted        | served | short             | look                      | turnBegan  | turnEnded    | headLeft
//	idle         | asking, claim | never  | never             | never                     | never      | never        | never
//	asking       | -             | idle   | queued, send head | never                     | never      | never        | never
//	queued       | -             | never  | never             | queuedAsking, claim ahead | turn       | never        | idle
//	queuedAsking | -             | queued | queued            | -                         | turnAsking | never        | asking
//	turn         | -             | never  | never             | turnAsking, claim ahead   | never      | queued       | never
//	turnAsking   | -             | turn   | turn              | never                     | never      | queuedAsking | never
//
// The states say two things: whether a claim is under way (the states with Asking), and whether the head is away, in the
// queue or at its turn. The events:
//
//   - wanted: somebody is in line, there is a session, and the semaphore is not being looked up.
//   - served: a claim was answered, and no waiter was left short.
//   - short: a claim was answered, and there was not enough for a waiter, or it failed for a reason that passes.
//   - look: the head wants to ask, under the conditions of wanted.
//   - turnBegan, turnEnded: the head's turn at the gate.
//   - headLeft: the head has gone, because nobody waits, or the manager is closed.
//
// A line that loses its last waiter calls its head off, in any state. Besides, a line looks its semaphore up by name, one
// statement at a time: its capacity for waiters that may want more than there is, or its existence when a claim did not
// find it. While its existence is in doubt nothing is claimed.
//
// # The order of mutexes
//
// The manager's mutex guards all lines, claims and permits. Nothing is sent and nobody is woken while it is held. The
// sidecar session's mutex and a permit's own end may be locked inside it, never the other way round.
package semaphore

import "time"

const (
	// tokensPerClaim is how many permits there are in a claim, hand-overs included: the numbers of one draw.
	tokensPerClaim = 32
	// tenure is how long slots are handed over in the process before they go back to the server.
	tenure = time.Second
	// pollEvery is about how often the head of a line looks for slots of which no notification came.
	pollEvery = 200 * time.Millisecond
	// pollPooled is the same for a head that cannot wait at the gate, and may get no notifications.
	pollPooled = 80 * time.Millisecond
	// pausePooled is how long a head that had a turn leaves the next to others: each of them asks once in that time.
	pausePooled = 2 * pollPooled
	// patience is for the answer to the claim of a head that keeps others from the gate.
	patience = 700 * time.Millisecond
	// turnPooled is how long a turn lasts that nobody can see the end of.
	turnPooled = 500 * time.Millisecond
)
