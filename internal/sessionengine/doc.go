// Package sessionengine holds keys as advisory locks of PostgreSQL sessions: see package engine for what an engine is.
//
// # What it guarantees
//
//   - A session that holds locks is sent nothing that can wait in the server: tries, unlocks, token draws and signs of
//     life.
//   - Tokens dealt with a grant were drawn after it: the draw is a later statement, or the result branch
//     of a CASE whose condition is the grant. A draw that is not greater than the last ends the session.
//   - After a failed statement a session's locks are what the requests' answers report: the session is asked which locks it
//     holds, and these are set right before anything else is sent.
//   - There is one session for locks as long as the server can be reached, and another one when each holds
//     [Config.PerAnchor] keys, up to [Config.MaxAnchors], evenly filled.
//   - A client that holds a good part of the server's lock table looks at how full it is, at most once a TTL, and is refused
//     further keys above 70 %.
//
// # How it works
//
// An anchor is a session with its [pipeline.Pipeline], on which the requests of many goroutines share round trips. The sessions
// that wait belong to package lockqueue. One goroutine opens anchors when they are wanted; Close waits for it, and for the
// goroutines of the pipelines.
package sessionengine
