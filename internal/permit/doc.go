// Package permit claims slots of semaphores, and arbitrates between the goroutines of one process that want them.
//
// # What it guarantees
//
//   - A permit has slots of its own, claimed on the server for a time, from its grant to the call of Release or
//     the news of its loss; the time is renewed while the process can reach the server.
//   - Waiters of one semaphore are served in the order of arrival in the process, each with all that it wants.
//     None passes another because it wants less, here or, where sessions can stand at the gate, in another process.
//   - Slots that are released are handed to the next in line in memory, if they are enough for it, at most
//     [tokensPerClaim] − 1 times and for a [tenure]. Then they go back to the server.
//   - Waiters share a statement, and so do releases.
//   - A permit is no longer trusted TTL − TTL/10 after its last claim or renewal that was answered was sent; or as
//     soon as the session is lost whose end gives its slots to others.
//   - Release waits for the server's word no longer than the permit would have been trusted, whatever others do to the
//     table or to its rows; without that word the permit is lost. The slots are freed nevertheless, as soon as the
//     server can: while the session lives nobody else takes them from it.
//   - A grant that nobody wants goes to the next in line, or back.
//
// # What it does not
//
// A release and a claim of one process may share a transaction, so a process that finds nobody at the gate may have
// a slot again that it has just given back.
//
// # How it works
//
// One line a semaphore, with its waiters, guarded by the desk's mutex, which is never held while something is sent
// or somebody is woken. A line asks for slots with one statement at a time. If there are not enough, its head,
// a goroutine, stands in the server's queue for the semaphore's gate, with a session that only waits; the
// process whose turn it is looks for slots when a notification says that some were released, and every now and then,
// until it gets some, and lets the next process to the gate. A claim that does not come from there
// is refused while anybody is. A process that freezes there loses its turn within a second, since its session says
// four times in that time that it lives, or dies. Behind a pooler no session can stand anywhere, nor can one where
// all are busy: there the head asks every now and then, and a row says whose turn it is, for half a second at a time,
// and that it is the gate's afterwards.
package permit

import "time"

const (
	// tokensPerClaim is how many permits there are in a claim, hand-overs included: the numbers of one draw.
	tokensPerClaim = 32
	// tenure is how long slots are handed over in the process before they go back to the server.
	tenure = time.Second
	// pollEvery is about how often the head of a line looks for slots of which no notification came.
	pollEvery = 200 * time.Millisecond
	// pollPooled is the same for who cannot stand at the gate, and may get no notifications.
	pollPooled = 80 * time.Millisecond
	// restPooled is how long one who had a turn leaves the next to others: each of them asks once in that time.
	restPooled = 2 * pollPooled
	// patience is for the answer to the claim of a head that keeps others from the gate.
	patience = 700 * time.Millisecond
	// turnPooled is how long a turn lasts that nobody can see the end of.
	turnPooled = 500 * time.Millisecond
)
