package rows

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// moving is a guarded table of three kinds of partitions, and a row with the token 9 in the first of them. The column
// of type json has no equality. The trigger that comes after the guard's changes the row once more.
const moving = `
CREATE TABLE public.job (id integer, state text, note json, last_token bigint, fence bigint, version bigint DEFAULT 0, at timestamptz)
	PARTITION BY LIST (state);
CREATE TABLE public.job_new PARTITION OF public.job FOR VALUES IN ('new');
CREATE TABLE public.job_old PARTITION OF public.job FOR VALUES IN ('old') PARTITION BY HASH (id);
CREATE TABLE public.job_old_0 PARTITION OF public.job_old FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE public.job_old_1 PARTITION OF public.job_old FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE public.job_run PARTITION OF public.job FOR VALUES IN ('run');
CREATE TRIGGER bump BEFORE UPDATE ON public.job FOR EACH ROW EXECUTE FUNCTION pgbaton.bump_version();
CREATE FUNCTION public.stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.at := clock_timestamp(); RETURN NEW; END';
CREATE TRIGGER zstamp BEFORE UPDATE ON public.job FOR EACH ROW EXECUTE FUNCTION public.stamp();
CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON public.job FOR EACH ROW EXECUTE FUNCTION pgbaton.fence_guard(%s);
INSERT INTO public.job SELECT i, 'new', '{"a": 1}', 9, 9 FROM generate_series(1, 4) AS i;`

// A row that an UPDATE moves to another partition is guarded as one that stays: by the token of the UPDATE.
func TestFenceGuard_Moves(t *testing.T) {
	t.Parallel()
	for _, server := range lab.Servers(t) {
		for column, argument := range map[string]string{"fence": "", "last_token": "'last_token'"} {
			t.Run(fmt.Sprint("PostgreSQL", server.Major(), "/", column), func(t *testing.T) {
				t.Parallel()
				dsn := testkit.MigratedOn(t, server.URL())
				conn := testkit.Connect(t, dsn)
				testkit.Exec(t, conn, fmt.Sprintf(moving, argument))
				g := guarded{t, conn, column}
				g.passes()
				g.refuses()
				if server.Major() >= 15 {
					g.do("BEGIN; SET LOCAL pgbaton.token = 20")
					g.do("MERGE INTO public.job AS j USING (SELECT 1 AS id) AS s ON j.id = s.id WHEN MATCHED THEN UPDATE SET state = 'run'")
					g.do("COMMIT")
					g.is("1 run 20")
				}
			})
		}
	}
}

type guarded struct {
	t      *testing.T
	conn   *pgx.Conn
	column string
}

func (g guarded) do(sql string) {
	g.t.Helper()
	testkit.Exec(g.t, g.conn, sql)
}

// is says what the row is: its id, state and token.
func (g guarded) is(want string) {
	g.t.Helper()
	require.Equal(g.t, want, testkit.Value[string](g.t, g.conn,
		"SELECT coalesce(string_agg(concat_ws(' ', id, state, "+g.column+"), ''), 'gone') FROM public.job WHERE id = 1"))
}

func (g guarded) stale(sql string) {
	g.t.Helper()
	_, err := g.conn.PgConn().Exec(context.Background(), sql).ReadAll()
	var pgErr *pgconn.PgError
	require.ErrorAs(g.t, err, &pgErr, sql)
	require.Equal(g.t, "PB001", pgErr.Code, "%s: %v", sql, err)
}

func (g guarded) passes() {
	g.do("UPDATE public.job SET state = 'old' WHERE id = 1") // who mends data
	g.is("1 old 9")
	g.do("BEGIN; SET LOCAL pgbaton.token = 9; UPDATE public.job SET state = 'new' WHERE id = 1; COMMIT")
	g.is("1 new 9")
	g.do("BEGIN; SET LOCAL pgbaton.token = 10; UPDATE public.job SET state = 'old' WHERE id = 1; COMMIT")
	g.is("1 old 10")
	g.do("UPDATE public.job SET state = 'run', " + g.column + " = 11 WHERE id = 1")
	g.is("1 run 11")
	g.do("BEGIN; SELECT pgbaton.fence('job', 12); UPDATE public.job SET state = 'new' WHERE id = 1; " +
		"UPDATE public.job SET state = 'old' WHERE id = 1; UPDATE public.job SET note = '{}' WHERE id = 1; COMMIT")
	g.is("1 old 12")
	g.do("UPDATE public.job SET state = CASE state WHEN 'new' THEN 'old' ELSE 'new' END") // all of them, to and fro
	g.is("1 new 12")
	require.Equal(g.t, int64(4), testkit.Value[int64](g.t, g.conn, "SELECT count(*) FROM public.job"))
	require.Equal(g.t, int64(8), testkit.Value[int64](g.t, g.conn, "SELECT version FROM public.job WHERE id = 1"))
}

func (g guarded) refuses() {
	g.stale("UPDATE public.job SET state = 'old', " + g.column + " = 11 WHERE id = 1")
	g.stale("BEGIN; SET LOCAL pgbaton.token = 11; UPDATE public.job SET state = 'old' WHERE id = 1")
	g.do("ROLLBACK")
	// A DELETE is not taken for a move, whatever came before it in the transaction.
	for _, before := range []string{
		"SELECT",
		"UPDATE public.job SET state = state WHERE id = 1",
		"UPDATE public.job SET note = '{}' WHERE id = 1",
		"UPDATE public.job SET note = '[]' WHERE id = 1; UPDATE public.job SET note = '{\"a\": 1}', at = NULL WHERE id = 1",
		"UPDATE public.job SET state = 'old' WHERE id = 1",
		"UPDATE public.job SET state = 'old' WHERE id = 1; UPDATE public.job SET state = 'new' WHERE id = 1",
		"UPDATE public.job SET state = 'old' WHERE id = 2",
		"INSERT INTO public.job SELECT 5, 'new', '{}', 9, 9",
		"SAVEPOINT s; DO 'BEGIN UPDATE public.job SET state = ''none'' WHERE id = 1; EXCEPTION WHEN check_violation THEN NULL; END'",
	} {
		g.do("BEGIN; " + before)
		g.stale("DELETE FROM public.job WHERE id = 1")
		g.do("ROLLBACK")
	}
	g.is("1 new 12")
	g.do("BEGIN; SET LOCAL pgbaton.token = 12; DELETE FROM public.job WHERE id = 1")
	g.is("gone")
	g.do("ROLLBACK")
}
