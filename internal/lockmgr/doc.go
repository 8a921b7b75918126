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
// There is one record a key, with its waiters (see package waitline), its owners and two states: what the server holds of the
// key or is asked for, and whether the engine waits for it. All of it is guarded by one mutex, which is never held while something
// is sent or somebody is woken: a step collects these in actions, and they are carried out after it. The manager has no goroutine
// of its own.
//
// # The states of a key
//
// A row says what an event does: the next state and, after a comma, the action. "-" is an event that changes nothing, "never"
// one that cannot come in that state. If it comes nevertheless, by a defect, the manager may be wrong about what the server
// holds. It changes nothing then, reports it, and has the anchor fail: the holders there are told, the server frees their keys, and
// the service goes on. To go on without that might let two hold the key. A panic takes everything down; or, when the caller of a
// method recovers, leaves the mutex locked, and all keys held by sessions that are kept alive.
//
//	          | wanted          | granted     | denied     | overdue         | tokensOut     | unwanted           | answered | freed      | anchorLost
//	idle      | asking, acquire | never       | never      | never           | never         | never              | never    | never      | never
//	asking    | never           | held, count | idle, drop | never           | never         | never              | never    | never      | idle, drop
//	held      | never           | never       | never      | checking, yield | drawing, draw | releasing, release | never    | never      | idle, drop
//	checking  | never           | never       | never      | never           | never         | never              | held     | never      | idle, drop
//	drawing   | never           | never       | never      | never           | never         | never              | held     | never      | idle, drop
//	releasing | never           | never       | never      | never           | never         | never              | never    | idle, drop | idle, drop
//
// In idle the server holds nothing of the key for this process; in asking, an Acquire is under way; in held, nothing is. In the
// other states the key is held, and a Yield, Draw or Release is under way. The events:
//
//   - wanted: somebody is in line, and there is an anchor; who waits in the engine's queue asks at a turn or in a sweep.
//   - granted, denied: the answer to the Acquire; it is denied, too, when the server refuses to run it.
//   - overdue: the next in line fits those who own the key, and the tenure is over.
//   - tokensOut: the next in line may have the key, and there is no token for it.
//   - unwanted: nobody owns the key, and nobody may be granted it in the tenure and in the mode in which it is held.
//   - answered: the answer to a Yield or a Draw.
//   - freed: the answer to a Release.
//   - anchorLost: the loss of the anchor, or of the key at the anchor. The answer under way, if there is one, no longer counts.
//
// The actions that have the name of a verb ask the anchor for it; see [engine.Verb]. To count a key is to have it among those
// that are bounded by [Config.MaxHeld]; to drop it takes it off its anchor, and out of the count.
//
// # The states of the wait for a key
//
// They go with any of the states above.
//
//	         | taken         | turnCame         | turnMissed    | needless
//	unqueued | inQueue, join | unqueued, answer | -             | -
//	inQueue  | -             | atTurn, listen   | -             | unqueued, leave
//	atTurn   | -             | atTurn, listen   | inQueue, deny | unqueued, settle
//
// The events:
//
//   - taken: another process has the key, or waits for it and is first, and somebody is in line.
//   - turnCame: the engine announces a turn; again, if it did not get an answer in time.
//   - turnMissed: the turn did not lead to a grant.
//   - needless: the key is granted, or nobody is in line.
//
// To join and to leave are [engine.Engine.Queue] and Unqueue. At a turn the engine listens for what became of it: to
// deny says that it was not taken, and that the process goes on waiting; to settle says that it was, or that nobody wants it,
// and leaves. A turn that comes too late gets the same answer at once.
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
// The other mutexes are leaves, under which no other one is locked: a hold's, that of a hold's end, a pipeline's, and
// the session engine's list of anchors. An engine calls the manager, and a pipeline its owner, without any
// mutex but the first; the exceptions are with the methods of pipeline.Owner, which do nothing but sort.
package lockmgr

import "time"

const (
	// maxPasses is how many hand-overs or joins follow a grant by the server at the most.
	maxPasses = 63
	// tenure is how long they go on at the most.
	tenure = time.Second
)
