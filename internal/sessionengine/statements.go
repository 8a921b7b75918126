package sessionengine

import (
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgbaton/pgbaton/internal/pipeline"
)

// tokensPerDraw is the sequence's increment: a draw of v represents the tokens v … v+31.
const tokensPerDraw = 32

// Down to stmtMany each serves a lone request on a bigint key, the common case, in the fewest steps. CASE decides before its
// branch is run, so the token is drawn after the grant.
var (
	stmtTry = pipeline.Statement{
		Name:   "pgbaton_try",
		SQL:    "SELECT CASE WHEN pg_try_advisory_lock($1) THEN pgbaton.draw_token() END",
		Params: []uint32{pgtype.Int8OID},
	}
	stmtTryShared = pipeline.Statement{
		Name:   "pgbaton_try_shared",
		SQL:    "SELECT CASE WHEN pg_try_advisory_lock_shared($1) THEN pgbaton.draw_token() END",
		Params: []uint32{pgtype.Int8OID},
	}
	// With a look at the gate, shared with others that look, for the statement alone. Arguments: key, gate.
	stmtPolite = pipeline.Statement{
		Name: "pgbaton_polite",
		SQL: "SELECT CASE WHEN pg_try_advisory_xact_lock_shared($2) THEN CASE WHEN pg_try_advisory_lock($1) " +
			"THEN pgbaton.draw_token() END END",
		Params: []uint32{pgtype.Int8OID, pgtype.Int8OID},
	}
	stmtPoliteShared = pipeline.Statement{
		Name: "pgbaton_polite_shared",
		SQL: "SELECT CASE WHEN pg_try_advisory_xact_lock_shared($2) THEN CASE WHEN pg_try_advisory_lock_shared($1) " +
			"THEN pgbaton.draw_token() END END",
		Params: []uint32{pgtype.Int8OID, pgtype.Int8OID},
	}
	stmtUnlock = pipeline.Statement{
		Name:   "pgbaton_unlock",
		SQL:    "SELECT pg_advisory_unlock($1)",
		Params: []uint32{pgtype.Int8OID},
	}
	stmtUnlockShared = pipeline.Statement{
		Name:   "pgbaton_unlock_shared",
		SQL:    "SELECT pg_advisory_unlock_shared($1)",
		Params: []uint32{pgtype.Int8OID},
	}

	// stmtMany runs any number of requests in their order. To try behind is to try a key only if nobody waits
	// at its gate, which is locked for the statement alone. Arguments: keys, gates, codes.
	stmtMany = pipeline.Statement{
		Name: "pgbaton_many",
		SQL: withCodes(`
SELECT array_agg(CASE code
         WHEN {try} THEN pg_try_advisory_lock(key)
         WHEN {unlock} THEN pg_advisory_unlock(key)
         WHEN {try shared} THEN pg_try_advisory_lock_shared(key)
         WHEN {unlock shared} THEN pg_advisory_unlock_shared(key)
         WHEN {try pair} THEN pg_try_advisory_lock((key >> 32)::int4, ((key << 32) >> 32)::int4)
         WHEN {try pair shared} THEN pg_try_advisory_lock_shared((key >> 32)::int4, ((key << 32) >> 32)::int4)
         WHEN {unlock pair} THEN pg_advisory_unlock((key >> 32)::int4, ((key << 32) >> 32)::int4)
         WHEN {unlock pair shared} THEN pg_advisory_unlock_shared((key >> 32)::int4, ((key << 32) >> 32)::int4)
         WHEN {yield} THEN pg_try_advisory_xact_lock_shared(gate)
         ELSE CASE WHEN pg_try_advisory_xact_lock_shared(gate) THEN CASE code -- behind, the only codes left
              WHEN {behind} THEN pg_try_advisory_lock(key)
              WHEN {behind shared} THEN pg_try_advisory_lock_shared(key)
              WHEN {behind pair} THEN pg_try_advisory_lock((key >> 32)::int4, ((key << 32) >> 32)::int4)
              WHEN {behind pair shared} THEN pg_try_advisory_lock_shared((key >> 32)::int4, ((key << 32) >> 32)::int4)
              END ELSE false END
         END)
  FROM unnest($1::int8[], $2::int8[], $3::int2[]) AS request(key, gate, code)`),
		Params: []uint32{pgtype.Int8ArrayOID, pgtype.Int8ArrayOID, pgtype.Int2ArrayOID},
	}

	// stmtJoin makes the session a client that takes locks by this engine, if the schema records no other one. It goes before
	// the first lock, in its transaction, and records the engine if none is recorded. The id has to be unlike others.
	stmtJoin = pipeline.Statement{
		Name:   "pgbaton_join_engine",
		SQL:    "SELECT pgbaton.join_engine($1, 'session', $2, NULL)",
		Params: []uint32{pgtype.Int8OID, pgtype.TextOID},
	}

	stmtDraw = pipeline.Statement{
		Name:   "pgbaton_draw",
		SQL:    "SELECT pgbaton.draw_token() FROM generate_series(1, $1)",
		Params: []uint32{pgtype.Int4OID},
	}
	stmtListen    = pipeline.Statement{Name: "pgbaton_listen", SQL: "LISTEN pgbaton_free"}
	stmtUnlockAll = pipeline.Statement{Name: "pgbaton_free", SQL: "SELECT count(pg_advisory_unlock_all())"}
)

// A code says what stmtMany does with a key: one of these, with sharedKey and pairKey added. A code without a WHEN ends the
// session.
const (
	tryKey = 4 * iota
	tryBehind
	unlockKey
	yieldKey

	sharedKey = 1
	pairKey   = 2
)

// withCodes puts the numbers of the codes into a statement that has their names.
func withCodes(sql string) string {
	var names []string
	for name, code := range map[string]int{
		"try": tryKey, "behind": tryBehind, "unlock": unlockKey, "yield": yieldKey,
	} {
		names = append(names,
			"{"+name+"}", strconv.Itoa(code), "{"+name+" shared}", strconv.Itoa(code+sharedKey),
			"{"+name+" pair}", strconv.Itoa(code+pairKey), "{"+name+" pair shared}", strconv.Itoa(code+pairKey+sharedKey))
	}
	return strings.NewReplacer(names...).Replace(sql)
}
