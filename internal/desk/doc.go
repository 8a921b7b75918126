// Package desk arbitrates between the goroutines of one process, and asks the server on their behalf.
//
// # What it guarantees
//
//   - For one key, at most one exclusive holder or any number of shared ones in this process, and those
//     only while a link holds the key on the server.
//   - Waiters of one key are served in order of arrival. A try never passes a waiter.
//   - A grant has a token that was drawn after the server granted the key, greater than the tokens of
//     earlier grants of this process.
//   - A grant that nobody wants any more goes to the next in line, or back to the server.
//   - A key is kept for the own goroutines for at most [maxPasses] hand-overs or joins or [tenure]; then it
//     is given back if another process stands at its gate.
//   - When a link is lost every holder on it is told, before anybody is granted the key again here.
//
// # What it does not
//
// It trusts the link for what the server holds, and the room for waiting.
//
// # How it works
//
// One entry a key, with its waiters, its owners and a phase that says which answer is awaited, if any. All
// of it is guarded by one mutex, which is never held while something is sent or somebody is woken: a
// step collects these in actions, and they are carried out after it.
package desk

import "time"

const (
	// maxPasses is how many hand-overs or joins follow a grant by the server at the most.
	maxPasses = 63
	// tenure is how long they go on at the most.
	tenure = time.Second
)
