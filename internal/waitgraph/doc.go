// Package waitgraph finds waits that wait for one another, and ends one of them.
//
// # What it guarantees
//
//   - A cycle among waits that are watched, of this process or of any that shares the board, is found within about
//     half a second after the last of them has lasted for [After], or within 0.8 s if it is closed by a wait to
//     share what is shared. With some thousands of waits on the board looks become rarer, and this takes longer.
//   - In a cycle that shares no wait with others exactly one wait ends, the youngest. Where cycles overlap, no more end
//     than needed: after the ends no cycle is left, and each wait that ends is the youngest of a cycle in which all
//     the others go on. It is not always the least number that would do.
//   - A wait ends only if its cycle was there in two looks, and every process that has a wait in it has said in between
//     that it goes on, and holds what it did: what one look sees may be over already. So a process that is cut off from
//     the board, or frozen, has no victims, whatever its rows say.
//   - A wait that ends sooner than [After] costs nothing here.
//   - The row of a wait is deleted when the wait ends, as soon as the board can be reached. Rows of a process that died do
//     not count.
//
// # What it does not
//
// It knows only the waits whose context says what their goroutine holds. While the board cannot be reached it
// sees the waits of this process. A wait that ends by itself, in the moment in which another one ends for their cycle, cannot
// be told from one that goes on. Where a cycle is on the board, and one that overlaps it is not, one more may end
// than needed. Where a process is cut off from the board, but not from its locks, what it has said last may hide
// a cycle until its session is over.
//
// # How it works
//
// Every process publishes its own waits and looks at all of them, as long as it has any. All draw the same
// conclusion, and each ends its own. Cycles within the process are looked at there when one of their waits is not
// on the board, because its client has no session for it, or the session is lost.
package waitgraph

import "time"

const (
	// After is how long a wait is left alone.
	After = time.Second
	// every is how often a process looks.
	every = 200 * time.Millisecond
	// apart is how far two looks must be from one another for the second to confirm the first, at the least.
	apart = 300 * time.Millisecond
	// apartShared is the same for a cycle that may be none; see [Cycle.apart].
	apartShared = 600 * time.Millisecond
	// soon is how quickly a look follows another when waits begin or end meanwhile.
	soon = 25 * time.Millisecond
	// pausePerWait and pauseShare are how long it rests; see [pace].
	pausePerWait = 250 * time.Microsecond
	pauseShare   = 10
	// longest is how long it rests when all that is left to do is to withdraw rows from a board that is away.
	longest = 5 * time.Second
	// patience bounds what a statement waits for the board.
	patience        = time.Second
	patiencePerWait = 200 * time.Microsecond
	mostMisses      = 5 // more do not count
	// chunk is how many waits are published by a statement at the most.
	chunk = 1000
)
