// Package deadlock finds waits that wait for one another, and ends one of them.
//
// # What it guarantees
//
//   - A cycle among waits that are watched, of this process or of any that shares the board, is found within about
//     half a second after the last of them has been watched for [after].
//   - Of the waits of a cycle exactly one ends, the youngest, and only if the cycle was there in two looks that
//     are at least [apart] from one another: what one look sees may be over already.
//   - A wait that ends sooner than [after] costs a timer, and nothing on the server.
//   - The row of a wait is deleted when the wait ends. Those of a process that died do not count.
//
// # What it does not
//
// It knows only the waits whose context says what their goroutine holds. While the board cannot be reached it
// sees those of this process.
//
// # How it works
//
// Every process publishes its own waits and looks at all of them, as long as it has any. All draw the same
// conclusion, and each ends its own.
package deadlock

import "time"

const (
	// after is how long a wait is left alone.
	after = time.Second
	// every is how often a process looks.
	every = 200 * time.Millisecond
	// apart is how far two looks must be from one another for the second to confirm the first: so far that every
	// process has looked in between, and said what its waits do not hold any more.
	apart = 300 * time.Millisecond
	// soon is how quickly a look follows another when waits begin or end meanwhile.
	soon = 25 * time.Millisecond
	// LongAfter is how long after its publication a wait is a long one; see Wait.
	LongAfter = 2 * time.Second
	// patience bounds what a look waits for the board.
	patience = time.Second
	// retries is how often the board is asked in vain to forget the last wait. A holder that is gone takes its
	// waits along.
	retries = 20
)
