// Package sidecar keeps one session of the client for rows and notifications, apart from the sessions that hold
// locks, which must not wait for rows.
//
// # What it guarantees
//
//   - It opens no connection before somebody needs it, then one at a time, and opens it again when it is lost.
//   - A session that is its own is a holder: while it lives, an advisory lock shows that, and the functions of the
//     schema know at once when it has ended. The id of the holder is new with each session.
//   - Operations that are submitted at the same time share a round trip and a transaction; one that fails does
//     not fail the others, which run again. One marked as alone has a transaction of its own.
//   - No statement of a session of its own waits for a lock longer than half a second. A statement that was undone for that
//     runs again until its context ends, one at a time, and gives the session to the others in between.
//     First operations, which keep permits, wait for two others at the most.
//   - A query waits for a session, and for the next one when that is lost, until its context ends; only a server that needs an
//     operator's help ends the wait sooner. It returns when its context ends, whatever the network does.
//   - A session that nobody has used for a while, or needs (see [Sidecar.StayOpenWhile] and [Lender]), is closed; the next one is
//     opened when somebody asks.
//
// # What it does not
//
// It does not repeat operations that were under way when the session was lost: it is not known whether the server has run
// them. Queries are repeated, so they must be of a kind that may run twice.
// Behind a pooler there is no session that ends: only the clock shows that the holder is gone, and
// notifications do not come.
//
// The prefixes of payloads belong to packages: "slot:" and "size:" to semaphore, "leader/" to election,
// "free/" to registry.
package sidecar
