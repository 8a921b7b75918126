// Package leaseengine holds keys as rows with holder, token and expiry: see package engine for what an engine is. It needs
// transactions and no session, so it works behind a pooler that lends a connection for a transaction.
//
// # What it guarantees
//
//   - A lease is granted by the row, which one transaction at a time changes: it names one exclusive holder, or is marked as
//     shared and has a row for each that shares it.
//   - Tokens come from the row: greater than its last, and not less than the database's clock; see [engine.Request].
//   - Only the database's clock says when a lease is over. The client trusts its leases until the send time of the last answered
//     renewal + TTL − TTL/10, which is sooner.
//   - All leases are renewed by one statement, three times a TTL. A renewal that does not find a lease reports its loss.
//   - A lease is given back by holder and token, so a release that comes late frees nothing of somebody else's.
//   - A client with a session of its own is a holder with a beacon: an advisory lock that shows that the session lives. When it ends,
//     the leases are free at once, and the client is told. Behind a pooler a connection that is lost costs no lease:
//     the next connection takes the leases over, and first gives back what an answer that was lost may have granted.
//   - Of the processes that wait for a key the row names the one that has waited longest: it is its turn when the key
//     is free. Others pass it only if they do not wait.
//   - Before the first lock, each connection agrees with the engine that the schema records; see pgbaton.join_engine. With
//     [Config.Both] a grant is a lease and an advisory lock, which excludes clients of either engine.
//
// # What it does not
//
// It knows nothing of an old primary that others still reach after a failover. A step of the server's clock ahead ends leases of
// holders without a beacon early, by as much.
//
// # How it works
//
// One anchor has all leases. Its link is a connection with its [pipeline.Pipeline]; requests of one round trip share a
// statement for each kind. The states of a link:
//
//	unjoined: connected; no statement about a lock was sent
//	joined:   the engine is agreed, in the transaction of the first request
//	lost:     ended; what was under way is unknown
//
// and those of an anchor:
//
//	linked:   requests go to the link
//	unlinked: behind a pooler; releases wait for the next link, other requests are answered with "again". Trust goes on
//	lost:     told to the lock manager; the next link belongs to another anchor
//
// A waiting process asks for all keys that it waits for in one statement, about every 125 ms. Where it has a session, it is
// notified when its turn has come.
package leaseengine
