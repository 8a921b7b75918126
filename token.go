package pgbaton

// Token is a fencing token. For one key, an exclusive grant's token is greater than that of every earlier
// grant, and a shared grant's is greater than that of every earlier exclusive one. A resource that remembers
// the greatest token it has seen can refuse the writes of a holder that was paused and has lost its lock:
//
//	UPDATE ledger SET balance = $1, fence = $2 WHERE id = $3 AND fence <= $2
//
// Tokens of different keys are drawn from one sequence and cannot be equal, but their order means nothing.
// They have gaps, and stay below 2^53, so they survive JSON numbers. Zero means none; no grant has it.
type Token int64
