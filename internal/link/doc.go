// Package link multiplexes many goroutines over one PostgreSQL session that holds advisory locks.
//
// # What it guarantees
//
//   - Every operation that was submitted is answered exactly once: completed, or lost with the link.
//   - It sends nothing that can wait in the server: tries, unlocks, downgrades, token draws and pings.
//   - Tokens dealt with a grant were drawn after it: the draw is a later statement, or the result branch
//     of a CASE whose condition is the grant.
//   - After a failed statement the session's locks are what the operations' answers say. A failed
//     batch keeps the locks that it had already taken, so the link asks pg_locks and sets it right.
//   - It stops trusting itself TTL − TTL/10 after the last answered message was sent. The server ends the
//     session TTL after that message's statement ended, so no earlier than TTL after it was sent.
//   - A dead session is noticed within milliseconds, also while idle: somebody is always reading.
//
// # What it does not
//
// It knows nothing of who holds what: a second try of one key would be granted again by the server.
// Its handler keeps the order.
//
// # How it works
//
// Operations submitted while a round trip is under way are combined into the next one. There is one reader
// at a time. A goroutine that waits for its own answer reads for everybody while nobody else does, so a lone
// caller pays no change of goroutine; a reader of the link's own takes over when answers are due and no
// caller reads, and while the link is idle. A caller whose context ends gives the reading up and leaves its
// operation behind, to be answered to the handler.
package link
