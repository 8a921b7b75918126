package migrate_test

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/pgerr"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// settings are those that a role, a database, a URL or AfterConnect may bring, and that must neither get in the way nor
// change what is made.
var settings = []string{
	"SET default_transaction_isolation = 'repeatable read'",
	"SET default_transaction_isolation = 'serializable'; SET default_transaction_deferrable = on",
	"SET default_transaction_read_only = on",
	"SET standard_conforming_strings = off",
	"SET standard_conforming_strings = off; SET backslash_quote = on; SET escape_string_warning = off",
	"SET check_function_bodies = off",
	"SET plpgsql.extra_errors = 'all'; SET plpgsql.extra_warnings = 'all'",
	"SET plpgsql.variable_conflict = use_column; SET plpgsql.print_strict_params = on; SET plpgsql.check_asserts = off",
	"SET lock_timeout = 1; SET statement_timeout = '10s'",
	"SET lock_timeout = 1; SET statement_timeout = 20; SET idle_in_transaction_session_timeout = 20",
	"SET client_encoding = LATIN1",
	"SET client_encoding = SQL_ASCII",
	"SET client_encoding = EUC_JP",
	"SET DateStyle = 'German, DMY'; SET IntervalStyle = sql_standard; SET TimeZone = 'Asia/Tokyo'",
	"SET transform_null_equals = on; SET array_nulls = off; SET xmloption = document; SET row_security = off",
	"SET bytea_output = escape; SET extra_float_digits = -15; SET quote_all_identifiers = on",
	"SET client_min_messages = debug5",
	"SET exit_on_error = on; SET session_replication_role = replica; SET synchronous_commit = off; SET jit = on; SET jit_above_cost = 0",
	"SET enable_seqscan = off; SET enable_indexscan = off; SET enable_hashjoin = off; SET plan_cache_mode = force_generic_plan",
	"SET default_table_access_method = other",
	"SET default_toast_compression = pglz; SET default_statistics_target = 1; SET temp_buffers = 100; SET work_mem = 64",
	"CREATE TEMP TABLE pgbaton_schema_migrations (version text, dirty text); CREATE TEMP TABLE pg_class (oid oid); " +
		"CREATE TEMP TABLE pg_roles (oid oid); CREATE TEMP TABLE pg_namespace (oid oid); SET search_path = public, pg_temp, pg_catalog",
	"CREATE TEMP TABLE pg_class (oid oid); CREATE TEMP TABLE pg_roles (oid oid); SET search_path = public",
}

func TestMigrate_Settings(t *testing.T) {
	t.Parallel()
	const sqlOther = "CREATE ACCESS METHOD other TYPE TABLE HANDLER heap_tableam_handler" // heap under another name
	right := rightCatalog(t)
	for _, set := range settings {
		t.Run(set, func(t *testing.T) {
			t.Parallel()
			dsn := testkit.Empty(t)
			conn := testkit.Connect(t, dsn)
			testkit.Exec(t, conn, sqlOther)
			pool := poolWith(t, dsn, set)
			jobs := []func() error{}
			for range testkit.Brief(3, 2) {
				jobs = append(jobs, func() error {
					for { // a role's lock_timeout of 1 ms counts while a file waits for a table, which autovacuum may have
						if err := pgbaton.Migrate(t.Context(), pool); pgerr.Code(err) != pgerr.LockNotAvailable {
							return err
						}
					}
				})
			}
			require.NoError(t, errors.Join(atOnce(jobs)...))
			require.Zero(t, pool.Stat().NewConnsCount(), "a connection of the pool was used")
			require.Equal(t, right, catalog(t, dsn))
			require.Zero(t, testkit.Value[int64](t, conn, `SELECT count(*) FROM pg_class JOIN pg_am AS a ON a.oid = relam
				WHERE a.amname = 'other'`))
		})
	}
}

// The same by a role's, a database's and a URL's settings.
func TestMigrate_SettingsOfTheRole(t *testing.T) {
	t.Parallel()
	right := rightCatalog(t)
	set := []string{
		"client_encoding = 'LATIN1'", "default_transaction_isolation = 'serializable'", "check_function_bodies = 'off'",
		"transform_null_equals = 'on'", "DateStyle = 'German'", "default_transaction_read_only = 'on'", "lock_timeout = '1'",
	}
	dsn := testkit.Empty(t)
	conn := testkit.Connect(t, dsn)
	name := testkit.Value[string](t, conn, "SELECT current_database()::text")
	for _, one := range set {
		testkit.Exec(t, conn, "ALTER DATABASE "+name+" SET "+one)
	}
	require.NoError(t, pgbaton.Migrate(t.Context(), dsn))
	require.Equal(t, right, catalog(t, dsn))

	dsn = testkit.Empty(t)
	url := testkit.With(t, testkit.With(t, dsn, "client_encoding", "LATIN1"), "options", "-cstandard_conforming_strings=off")
	for _, mode := range []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"} {
		require.NoError(t, pgbaton.Migrate(t.Context(), testkit.With(t, url, "default_query_exec_mode", mode)), mode)
	}
	require.Equal(t, right, catalog(t, dsn))
}

func TestMigrateDSN(t *testing.T) {
	t.Parallel()
	dsn := testkit.Empty(t)
	require.NoError(t, pgbaton.Migrate(t.Context(), testkit.With(t, dsn, "pool_max_conns", "7")))
	require.Equal(t, rightCatalog(t), catalog(t, dsn))
	for _, bad := range []string{"host=h password = geheim port=x", "postgres://u:12/geheim@h/db", testkit.With(t, dsn, "pool_max_conns", "geheim")} {
		err := pgbaton.Migrate(t.Context(), bad)
		require.ErrorContains(t, err, "pgbaton: migrate: the connection ")
		require.NotContains(t, err.Error(), "geheim")
	}
	config, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	config.BeforeConnect = func(_ context.Context, config *pgx.ConnConfig) error {
		config.Password, config.User = "geheim", "nobody_of_this_name"
		return nil
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	err = pgbaton.Migrate(t.Context(), pool)
	require.ErrorContains(t, err, "pgbaton: migrate: connect: failed to connect to `user=nobody_of_this_name ")
	require.NotContains(t, err.Error(), "geheim")
	require.NotContains(t, err.Error(), "\n")
}
