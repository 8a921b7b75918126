// Package lockmgr arbitrates between the goroutines of one process, and asks an engine on their behalf.
//
// # What it guarantees
//
//   - For one key, at most one exclusive holder or any number of shared ones in this process, and those
//     only while an anchor of the engine holds the key on the server.
//   - Waiters of one key are served in order of arrival. A try never passes a waiter.
//   - A grant has a token that was drawn after the server granted the key, greater than the tokens of
//     earlier grants of this process.
//   - A grant that nobody wants any longer goes to the next in line, or back to the server.
//   - A key is kept for the own goroutines for at most [maxPasses] hand-overs or joins or [tenure]; then it
//     is given back if another process waits for it.
//   - When an anchor is lost every holder at it is told, before anybody is granted the key again here.
//
// # What it does not
//
// It trusts the engine for what the server holds, for the wait among processes, and for the tokens.
//
// # How it works
//
// There is one state a key, with its waiters, its owners and a phase that says which answer is awaited, if any. All
// of it is guarded by one mutex, which is never held while something is sent or somebody is woken: a
// step collects these in actions, and they are carried out after it. The manager has no goroutine of its own.
//
// # How mutexes nest
//
// This is where the path of a lock begins. Of these mutexes, one that comes later in the list may be locked while one
// that comes earlier is held; never the other way round:
//
//  1. that of sessions that enter their home, see package session: holders are told of a move with it
//  2. the manager's
//  3. the lock queue's, see [engine.Engine.Queue]
//  4. the budget's of connections
//
// The other mutexes are leaves, under which no other one is locked: a hold's, that of a hold's end, a pipeline's, that of its
// jeopardy, and the session engine's list of anchors. An engine calls the manager, and a pipeline its owner, without any
// mutex but the first; the exceptions are with the methods of pipeline.Owner, which do nothing but sort.
package lockmgr

import "time"

const (
	// maxPasses is how many hand-overs or joins follow a grant by the server at the most.
	maxPasses = 63
	// tenure is how long they go on at the most.
	tenure = time.Second
)
