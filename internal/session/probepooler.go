package session

import (
	"context"

	"github.com/jackc/pgx/v5/pgconn"
)

// ProbePooler returns an error that matches the sentinel for poolers if two connections share server processes, as
// behind a pooler in transaction mode. The server process that has answered on conn is backend. Nothing is set or locked.
func ProbePooler(ctx context.Context, conn, other *pgconn.PgConn, backend string) error {
	const rounds = 3
	return probePooler(ctx, conn, other, backend, rounds)
}
