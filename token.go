package pgbaton

// Token is a fencing token. For one key, an exclusive grant's token is greater than that of every earlier
// grant, and a shared grant's is greater than that of every earlier exclusive one. A resource that remembers
// the greatest token it has seen can refuse the writes of a holder that was paused and has lost its lock:
//
//	UPDATE ledger SET balance = $1, fence = $2 WHERE id = $3 AND fence <= $2
//
// Tokens of different keys are drawn from one sequence and cannot be equal, but their order means nothing.
// They have gaps, and stay below 2^53, so they survive JSON numbers. As JSON a token is a number, as text a decimal.
// Zero means none; no grant has it.
//
// [Lock.Assert] and [Fence] do the comparison in a transaction, pgbaton.fence in SQL, and a trigger of
// pgbaton.fence_guard() for every writer of a table. docs/fencing.md says how, and how it is done outside of the
// database.
type Token int64
