package leaseengine

import (
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgbaton/pgbaton/internal/pipeline"
)

var (
	// Each serves a lone request for an exclusive lease, the common case.
	stmtAcquire = pipeline.Statement{
		Name:   "pgbaton_acquire_lease",
		SQL:    "SELECT pgbaton.acquire_lease($1, $2, $3, $4, $5, $6, $7)",
		Params: []uint32{pgtype.Int8OID, pgtype.Int4OID, pgtype.Int8OID, pgtype.BoolOID, pgtype.Int4OID, pgtype.Int4OID, pgtype.TextOID},
	}
	stmtRelease = pipeline.Statement{
		Name:   "pgbaton_release_lease",
		SQL:    "SELECT pgbaton.release_lease($1, $2, $3, $4)",
		Params: []uint32{pgtype.Int8OID, pgtype.Int8OID, pgtype.BoolOID, pgtype.Int8OID},
	}

	// The same for any number of requests.
	stmtAcquireMany = pipeline.Statement{
		Name: "pgbaton_acquire_leases",
		SQL:  "SELECT request, token, drawn FROM pgbaton.acquire_leases($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
		Params: []uint32{
			pgtype.Int8OID, pgtype.Int4OID, pgtype.Int8ArrayOID, pgtype.BoolArrayOID, pgtype.BoolArrayOID,
			pgtype.Int4ArrayOID, pgtype.Int4ArrayOID, pgtype.Int4ArrayOID, pgtype.BoolOID, pgtype.TextArrayOID,
		},
	}
	stmtReleaseMany = pipeline.Statement{
		Name: "pgbaton_release_leases",
		SQL:  "SELECT request FROM pgbaton.release_leases($1, $2, $3, $4, $5, $6)",
		Params: []uint32{
			pgtype.Int8OID, pgtype.Int8ArrayOID, pgtype.BoolArrayOID, pgtype.BoolArrayOID, pgtype.Int8ArrayOID, pgtype.BoolOID,
		},
	}
	stmtRenew = pipeline.Statement{
		Name: "pgbaton_renew_leases",
		SQL:  "SELECT request FROM pgbaton.renew_leases($1, $2, $3, $4, $5, $6, $7, $8)",
		Params: []uint32{
			pgtype.Int8OID, pgtype.Int4OID, pgtype.Int8ArrayOID, pgtype.BoolArrayOID, pgtype.BoolArrayOID, pgtype.Int8ArrayOID,
			pgtype.Int8ArrayOID, pgtype.BoolOID,
		},
	}
	// stmtLock goes before statements that give back and take leases in one transaction: each of them locks its keys in order.
	stmtLock = pipeline.Statement{
		Name:   "pgbaton_lock_leases",
		SQL:    "SELECT pgbaton.lock_leases($1, $2)",
		Params: []uint32{pgtype.Int8ArrayOID, pgtype.BoolArrayOID},
	}
	stmtJoin = pipeline.Statement{
		Name:   "pgbaton_join_engine",
		SQL:    "SELECT pgbaton.join_engine($1, $2, $3, $4)",
		Params: []uint32{pgtype.Int8OID, pgtype.TextOID, pgtype.TextOID, pgtype.Int4OID},
	}
	stmtLeave = pipeline.Statement{
		Name: "pgbaton_leave_leases", SQL: "SELECT pgbaton.leave_leases($1)", Params: []uint32{pgtype.Int8OID},
	}

	stmtListen = pipeline.Statement{Name: "pgbaton_listen", SQL: "LISTEN pgbaton_lease"}
	stmtTend   = pipeline.Statement{Name: "pgbaton_tend_leases", SQL: "SELECT pgbaton.tend_leases()"}
	// stmtStrays gives advisory locks back, and leaves the rows alone.
	stmtStrays = pipeline.Statement{
		Name: "pgbaton_strays",
		SQL: `
SELECT CASE WHEN pair AND shared THEN pg_advisory_unlock_shared((key >> 32)::int4, ((key << 32) >> 32)::int4)
            WHEN pair THEN pg_advisory_unlock((key >> 32)::int4, ((key << 32) >> 32)::int4)
            WHEN shared THEN pg_advisory_unlock_shared(key)
            ELSE pg_advisory_unlock(key) END
  FROM unnest($1::int8[], $2::bool[], $3::bool[]) AS stray (key, pair, shared)`,
		Params: []uint32{pgtype.Int8ArrayOID, pgtype.BoolArrayOID, pgtype.BoolArrayOID},
	}
	stmtUnlockAll = pipeline.Statement{Name: "pgbaton_free", SQL: "SELECT count(pg_advisory_unlock_all())"}
)

// What a request to acquire_leases wants.
const (
	wantFirst = iota // the key, also before those that wait
	wantTurn         // the key, after those that wait
	wantTokens
	wantNews // whether others wait
	wantNone // to give up one's turn
)
