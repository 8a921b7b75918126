package pgbaton

// Token is a fencing token: for one key, a later exclusive grant has a greater one. A resource that remembers
// the greatest token it has seen can refuse the writes of a holder that was paused and has lost its lock.
// Tokens stay below 2^53, so they survive JSON numbers. Zero means none; no grant has it.
type Token int64
