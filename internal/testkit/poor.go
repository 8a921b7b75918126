package testkit

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// Poor makes an empty database that emulates an engine on which the full set of migrations cannot run: PostgreSQL without plpgsql and
// without advisory locks, which are forbidden or, with stubs, always say that all is well. The owner is no superuser, and may make a
// schema; admin may do everything.
func Poor(tb testing.TB, stubs bool) (owner, admin string) {
	tb.Helper()
	role := Role(tb)
	admin = Empty(tb)
	conn := Connect(tb, admin)
	Exec(tb, conn, "DROP EXTENSION plpgsql")
	name := Value[string](tb, conn, "SELECT quote_ident(current_database())")
	Exec(tb, conn, "GRANT CREATE ON DATABASE "+name+" TO "+role)
	rows, err := conn.Query(context.Background(), `SELECT p.oid::regprocedure::text, pg_get_function_result(p.oid) FROM pg_proc AS p
		WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname ~ '^pg_(try_)?advisory_(xact_|un)?lock'`)
	require.NoError(tb, err)
	functions, err := pgx.CollectRows(rows, pgx.RowToStructByPos[struct{ Signature, Result string }])
	require.NoError(tb, err)
	require.NotEmpty(tb, functions)
	for _, f := range functions {
		switch {
		case !stubs:
			Exec(tb, conn, "REVOKE EXECUTE ON FUNCTION pg_catalog."+f.Signature+" FROM PUBLIC")
		case f.Result == "boolean":
			Exec(tb, conn, fmt.Sprintf("CREATE OR REPLACE FUNCTION pg_catalog.%s RETURNS boolean LANGUAGE sql VOLATILE AS 'SELECT true'", f.Signature))
		default:
			Exec(tb, conn, fmt.Sprintf("CREATE OR REPLACE FUNCTION pg_catalog.%s RETURNS %s LANGUAGE sql VOLATILE AS 'SELECT'", f.Signature, f.Result))
		}
	}
	return As(tb, admin, role), admin
}
