package poolers

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// modes are pgx's, by their names in a URL.
var modes = []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"}

// TestModes is the table of docs/ground.md: which operation works in which of pgx's modes behind which pooler. There is one server
// connection, and two clients use it in turn, so that each meets what the other has left there.
func TestModes(t *testing.T) {
	t.Parallel()
	type pooler struct {
		name, mode string
		settings   []string
		prepared   bool // named statements work
		resets     bool // all is forgotten after each transaction
	}
	poolers := []pooler{
		{name: "transaction", mode: "transaction"},
		{name: "transaction, server_reset_query_always", mode: "transaction", settings: []string{"server_reset_query_always = 1"}, resets: true},
		{name: "statement", mode: "statement"},
	}
	if lab.PgBouncerKeepsStatements(t) {
		// Off is 0; newer versions have it on by default.
		for i := range poolers {
			poolers[i].settings = append(poolers[i].settings, "max_prepared_statements = 0")
		}
		poolers = append(poolers,
			pooler{name: "transaction, max_prepared_statements", mode: "transaction", settings: []string{"max_prepared_statements = 100"}, prepared: true},
			pooler{name: "statement, max_prepared_statements", mode: "statement", settings: []string{"max_prepared_statements = 100"}, prepared: true})
	}
	for _, p := range poolers {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			dsn := lab.Database(t)
			schemaOf(t, dsn)
			through := lab.PgBouncer(t, dsn, p.mode, append(p.settings, "default_pool_size = 1")...)
			for _, mode := range modes {
				for _, op := range operations {
					err := inTurn(t, testkit.With(t, through, "default_query_exec_mode", mode), op)
					says := ""
					switch {
					case p.mode == "statement" && op.inTx:
						says = "transaction blocks not allowed in statement pooling mode"
					case mode == "cache_statement" && !p.prepared:
						says = "prepared statement"
					case mode == "describe_exec" && p.resets && !op.inTx: // what the first round trip prepared is gone in the second
						says = "unnamed prepared statement does not exist"
					}
					if says == "" {
						require.NoError(t, err, "%s %s", mode, op.name)
					} else {
						require.ErrorContains(t, err, says, "%s %s: if it works by now, docs/ground.md is to say so", mode, op.name)
					}
				}
			}
		})
	}
}

// inTurn lets two clients do an operation in turn, and returns the first error.
func inTurn(t *testing.T, through string, op operation) error {
	t.Helper()
	pools := []*pgxpool.Pool{onePool(t, through, 1), onePool(t, through, 1)}
	defer pools[0].Close()
	defer pools[1].Close()
	for range 3 {
		for _, pool := range pools {
			if err := op.run(t.Context(), pool); err != nil {
				return err
			}
		}
	}
	return nil
}

// onePool is a pool of at most so many connections.
func onePool(t *testing.T, dsn string, conns int32) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	cfg.MaxConns = conns
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	require.NoError(t, err)
	return pool
}

// afterPrepare calls a func when a statement has been prepared.
type afterPrepare struct{ then func() }

func (afterPrepare) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (afterPrepare) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (afterPrepare) TracePrepareStart(ctx context.Context, _ *pgx.Conn, _ pgx.TracePrepareStartData) context.Context {
	return ctx
}

func (a afterPrepare) TracePrepareEnd(context.Context, *pgx.Conn, pgx.TracePrepareEndData) { a.then() }

// TestModes_DescribeExecRunsTheOthersStatement is why docs/ground.md advises against describe_exec: between its two round trips,
// outside of a transaction, another client's statement takes the place of its own on the server connection that both share. What
// is written then is the other statement with one's own values.
func TestModes_DescribeExecRunsTheOthersStatement(t *testing.T) {
	t.Parallel()
	for _, mode := range modes[1:] {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			dsn := lab.Database(t)
			testkit.Run(t, dsn, `CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL, credit bigint NOT NULL, version bigint NOT NULL);
				INSERT INTO account VALUES (1, 0, 0, 1), (2, 0, 0, 1)`)
			through := testkit.With(t, lab.PgBouncer(t, dsn, "transaction", "default_pool_size = 1"), "default_query_exec_mode", mode)
			other := onePool(t, through, 1)
			defer other.Close()
			set := func(db pgbaton.Querier, id, version int64, column string) error {
				_, err := pgbaton.UpdateVersion(t.Context(), db, pgx.Identifier{"account"}, pgbaton.Values{"id": id}, version,
					pgbaton.Values{column: int64(7)}, nil)
				return err
			}
			require.NoError(t, set(other, 2, 1, "credit")) // what is looked up once is looked up
			cfg, err := pgx.ParseConfig(through)
			require.NoError(t, err)
			between := 0
			cfg.Tracer = afterPrepare{func() {
				if between++; between == 1 {
					require.NoError(t, set(other, 2, 2, "credit"))
				}
			}}
			conn, err := pgx.ConnectConfig(t.Context(), cfg)
			require.NoError(t, err)
			defer conn.Close(context.Background())
			err = set(conn, 1, 1, "balance")

			got := testkit.Value[string](t, testkit.Connect(t, dsn), "SELECT concat(balance, ' ', credit) FROM account WHERE id = 1")
			if mode == "describe_exec" {
				require.NoError(t, err)
				require.Equal(t, 1, between)
				require.Equal(t, "0 7", got, "if it is safe by now, docs/ground.md is to say so")
				return
			}
			require.NoError(t, err)
			require.Equal(t, "7 0", got)
		})
	}
}
