// Package pgbaton locks things with the PostgreSQL that a service already runs on: exclusive and shared locks,
// semaphores and leaders between processes, row locks and optimistic updates, each grant with a fencing token, without a
// second system to operate.
//
// # What it guarantees
//
// Among all clients of one primary, goroutines of one process included:
//
//   - A key has at most one exclusive holder, or any number of shared ones, from the return of an acquire to
//     the call of Release or the news of a loss.
//   - Every grant has a [Token] greater than that of every earlier exclusive grant of the key, and an
//     exclusive one greater than that of every earlier grant: through crashes, failover and restore.
//   - An acquire that fails holds nothing, and returns within 50 ms of its context's end.
//   - Release returns nil only if the lock was held without a break until then.
//   - The server frees the locks of a killed process within milliseconds, and the locks of a frozen or
//     unreachable one within [Config.TTL].
//   - A process that waits and freezes, or cannot be reached, keeps the waiters behind it waiting for at most a
//     second and a half, whatever TTL is and whatever it waits for: in line for a lock, exclusive or shared, for several,
//     for permits, also behind a pooler, or to lead. A process whose turn it is takes it or loses it
//     within a second. A lock that is granted in the moment in which the process freezes is held, as above. When several
//     freeze one after the other, each at its turn, each may cost as much.
//   - A semaphore never has more valid permits, by the database's clock, than its capacity.
//   - A client opens at most [Config.MaxConns] connections, however many locks it holds or waits for, and
//     takes none from the caller's pool. All are on one server: when the address leads to another one, what is held
//     on the first is lost before anything is granted on the second.
//
// # What it does not
//
//   - A holder that is paused (a stopped process, a long garbage collection, a virtual machine that is moved) cannot
//     know that it has lost its lock until it runs again. When the server itself ends the session, by an
//     operator or a crash, the next holder may be granted the key before the old one is told; README has the measured
//     times. In between the old holder's process may hand the key on with a token older than the next holder's.
//     A write to something that must not see two holders checks the token there.
//   - Locks are not re-entrant, and a goroutine that holds one key and waits for another can deadlock with its mirror
//     image. Take keys by [Client.AcquireAll], or in one order. Where each acquire gets the context of the lock around
//     it, a deadlock ends within 2 s, later among thousands of such waits, with [ErrDeadlock] for one side; else it lasts.
//     Between processes this holds for those of one service (see docs/security.md).
//   - A lock does not survive a failover or a restart of the server: the lock is lost, and its holder is told.
//   - A lock that a transaction of the caller's waits for ([AcquireTx], [LockRow]) is granted to that transaction also
//     while its process is frozen, and then is held until the server ends that session, by the caller's settings.
//   - Locks on a standby exclude nobody; [New] refuses it. So do the locks of sessions behind a pooler in transaction mode: there
//     they are leases, see [Config.Engine].
//   - Two primaries (a failover whose old primary still runs) are two servers: only the token tells their holders
//     apart. It rises on the new one.
//   - Fairness is order of arrival among the goroutines of a process, and PostgreSQL's own queue among
//     processes. A process keeps a key for its own goroutines for at most 63 hand-overs or 1 s while others
//     wait. A process that comes by at the right moment may overtake one that waits.
//
// # How it works
//
// Goroutines of one process are arbitrated in the process; the database arbitrates between processes.
//
// One session holds all locks of the process as session-level advisory locks, and never issues a statement that can
// wait. Requests that come while a round trip is under way share the next one. The sessions of the lock queue only wait:
// they wait in the server's queue for a key and, when it is free, let the first session take it. The server ends them
// after a second of silence, so a place in the queue is worth nothing to a process that is frozen. Within the process a
// released key goes to the next goroutine in line without the server. The server ends the session that holds when
// nothing was heard from it for TTL, and the client stops trusting it after 9/10 of that. Permits and terms are kept
// in rows by the sidecar, one more session that is opened when it is needed first. The schema pgbaton has the sequence of tokens, the means
// to notice that it can no longer be trusted, tables, and functions for SQL; see package
// [github.com/pgbaton/pgbaton/migrations].
//
// With [EngineLease] a lock is a row with holder, token and expiry instead, which one connection, or one that a pooler lends for a
// transaction, takes, renews three times in a TTL and gives back. Whose turn it is stands in the row. Only the database's clock says
// when a lease is over. A client that has a session of its own shows by an advisory lock that it lives, so that the leases of a dead
// process are free at once.
//
// # Before the first lock
//
// Run the migrations, by [Migrate] or golang-migrate, as a role that may create a schema. The role that
// runs the service then needs:
//
//	SELECT pgbaton.grant_service('service');
//
// # Which lock for what
//
//   - [Client.Acquire], [Client.AcquireShared], [Client.Do]: work that spans several transactions, or
//     touches something outside the database. [Client.AcquireAll]: on several things.
//   - [Client.Lead]: work that one process of many does all the time, and another when that one ends.
//   - [Client.Once]: work that every replica is to start at a time, and one of them should do.
//   - [Client.Semaphore]: work that so many may do at the same time, such as calls of a slow partner.
//   - [AcquireTx]: work in one transaction, on something that is not one row.
//   - [LockRow], [LockRows], [ClaimRows]: rows, in one transaction.
//   - [UpdateVersion], [Mutate]: rows, when conflicts are rare, or a human sits between read and write.
//   - [Lock.Assert], [Permit.Assert], [Fence]: in a transaction, to keep out the writes of a holder that was paused.
//   - [InTx]: any transaction that may fail by serialization or deadlock and can be run again.
package pgbaton
