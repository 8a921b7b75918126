// Package election elects leaders: it tries for the leader locks that the client wants, keeps the rows that say
// who leads, and carries requests to resign.
//
// # What it guarantees
//
//   - A candidate whose wait ends with an error leads nothing, and a grant that came too late for it is given back.
//   - All candidates of a client that do not lead are tried about once a second, in one round trip. Those for a name
//     that was given up elsewhere are tried when the news comes, if it comes.
//   - When the database has gone over to another engine than the client's, all candidates end with that error.
//   - A candidate never passes a lock of its own client that waits for the same key.
//   - After a resignation the client does not try for [holdBack], so that another can lead, also when the candidate
//     withdraws and another comes.
//   - A term whose row says that it should end is told so: at once with a notification, which has the row looked at, and
//     at the next look, within 5 s, without. A notification without such a row ends nothing.
//
// # What it does not
//
// It excludes nobody: the lock does. The rows may lag behind the lock for as long as they cannot be written.
//
// # How it works
//
// Each name that the client has candidates for is a contest, with one line of waiters. One goroutine tries; another
// writes rows through the sidecar session and listens. Both run only while there is a candidate.
//
// # Why candidates have a poll of their own
//
// The lock manager's line gives a released key to its own process first, and a resignation gives the term to other processes
// first. The lock queue has too few sessions for candidates: with 100 names in it a client sent 7 statements a second
// instead of 1.8, and the next term began up to 0.9 s after a resignation instead of 0.1 s, on a busy machine. Keys that the
// lock queue swept without a session gave the figures of the poll: 1.8 statements, 13 ms after a resignation, 1.15 s after a
// SIGKILL. Such a sweep is the same poll in another place: the lock stack grew by 104 lines, this package lost 44, and a
// lock of the same process came behind a candidate that had waited for the key before it.
package election

import "time"

const (
	every     = 1150 * time.Millisecond // between two tries of a candidate, ± 1/10; each takes two statements
	holdBack  = 2 * time.Second         // after a resignation
	spread    = 5 * time.Millisecond    // within which clients try that hear of a resignation
	pollEvery = 3500 * time.Millisecond // from which on the next write looks at the rows of the own terms: within 5 s
	patience  = 5 * time.Second         // with the sidecar session, of a write
	farewell  = time.Second             // for which the end of a term waits for its row

	farewellEnded = 20 * time.Millisecond // the same when its context has ended
)
