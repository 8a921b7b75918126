package migrate_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/migrations"
)

func TestMigrate(t *testing.T) {
	t.Parallel()

	t.Run("Twice", func(t *testing.T) {
		t.Parallel()
		dsn := migrated(t)
		before := catalog(t, dsn)
		require.NoError(t, pgbaton.Migrate(t.Context(), testkit.Pool(t, dsn)))
		require.Equal(t, before, catalog(t, dsn))
	})

	t.Run("NilPool", func(t *testing.T) {
		t.Parallel()
		require.ErrorContains(t, pgbaton.Migrate(t.Context(), (*pgxpool.Pool)(nil)), "pgbaton: migrate: the pool or the database is nil")
	})

	t.Run("UpToDateNeedsNoRightToWrite", func(t *testing.T) {
		t.Parallel()
		role := testkit.Role(t)
		dsn := migrated(t)
		pool := testkit.Pool(t, testkit.As(t, dsn, role))
		err := pgbaton.Migrate(t.Context(), pool)
		requireServicesNeedNot(t, err, role)
		require.ErrorContains(t, err, "pgbaton: migrate: role ")
		testkit.Exec(t, testkit.Connect(t, dsn), "GRANT SELECT ON pgbaton_schema_migrations TO "+role)
		require.NoError(t, pgbaton.Migrate(t.Context(), pool))
	})

	t.Run("NoRightToCreate", func(t *testing.T) {
		t.Parallel()
		role := testkit.Role(t)
		dsn := testkit.Empty(t)
		conn := testkit.Connect(t, dsn)
		testkit.Exec(t, conn, "GRANT CREATE ON SCHEMA public TO "+role)
		err := pgbaton.Migrate(t.Context(), testkit.Pool(t, testkit.As(t, dsn, role)))
		requireServicesNeedNot(t, err, role)
		require.ErrorContains(t, err, "apply 000001_foundation: ")
		require.ErrorContains(t, err, "permission denied for database")
		require.False(t, testkit.Value[bool](t, conn, "SELECT to_regclass('pgbaton_schema_migrations') IS NOT NULL"))
	})
}

// requireServicesNeedNot makes sure that an error says what to do about a missing privilege.
func requireServicesNeedNot(t *testing.T, err error, role string) {
	t.Helper()
	require.ErrorIs(t, err, pgbaton.ErrSchema)
	require.ErrorContains(t, err, `role "`+role+`" may not migrate: `)
	require.ErrorContains(t, err, "permission denied")
	require.ErrorContains(t, err, "The role of a service need not")
	require.NotContains(t, strings.TrimPrefix(err.Error(), "pgbaton: "), "pgbaton: ", "no stutter")
}

func TestMigrate_SearchPath(t *testing.T) {
	t.Parallel()

	t.Run("VersionTableInTheCurrentSchema", func(t *testing.T) {
		t.Parallel()
		dsn := testkit.Empty(t)
		conn := testkit.Connect(t, dsn)
		testkit.Exec(t, conn, `CREATE SCHEMA "Odd ""name"`)
		require.NoError(t, pgbaton.Migrate(t.Context(), poolWith(t, dsn, `SET search_path = nowhere, "Odd ""name", public`)))
		require.Equal(t, `"Odd ""name"`, testkit.Value[string](t, conn,
			"SELECT relnamespace::regnamespace::text FROM pg_class WHERE relname = 'pgbaton_schema_migrations'"))
	})

	refused := map[string]string{
		"SET search_path = ''":              "current_schema() is NULL",
		"SET search_path = nowhere":         "current_schema() is NULL",
		"SET search_path = pgbaton, public": "makes pgbaton the current schema",

		"SET search_path = pg_catalog, public":                      "makes pg_catalog the current schema",
		"CREATE TEMP TABLE t (); SET search_path = pg_temp, public": "makes pg_temp_",
	}
	for set, message := range refused {
		t.Run(set, func(t *testing.T) {
			t.Parallel()
			dsn := testkit.Empty(t)
			for range 2 {
				require.ErrorContains(t, pgbaton.Migrate(t.Context(), poolWith(t, dsn, set)), message)
			}
			conn := testkit.Connect(t, dsn)
			require.False(t, testkit.Value[bool](t, conn, "SELECT to_regnamespace('pgbaton') IS NOT NULL"))
		})
	}
}

func TestMigrate_Hooks(t *testing.T) {
	t.Parallel()
	dsn := testkit.Empty(t)
	config, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	calls := []string{}
	user := config.ConnConfig.User
	config.ConnConfig.User = "nobody_of_this_name"
	config.BeforeConnect = func(_ context.Context, config *pgx.ConnConfig) error {
		calls = append(calls, "before")
		config.User = user
		return nil
	}
	hookErr := errors.New("refused by the hook")
	config.AfterConnect = func(context.Context, *pgx.Conn) error {
		calls = append(calls, "after")
		return hookErr
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	err = pgbaton.Migrate(t.Context(), pool)
	require.ErrorIs(t, err, hookErr)
	require.ErrorContains(t, err, "pgbaton: migrate: connect: ")
	require.Equal(t, []string{"before", "after"}, calls)
	require.Equal(t, "nobody_of_this_name", pool.Config().ConnConfig.User)
}

func TestMigrate_ContextEndsDuringTheWait(t *testing.T) {
	t.Parallel()
	dsn := testkit.Empty(t)
	holder, observer := testkit.Connect(t, dsn), testkit.Connect(t, dsn)
	for _, path := range []string{"", "/"} {
		testkit.Exec(t, holder, "BEGIN")
		_, err := holder.Exec(t.Context(), "SELECT pg_advisory_xact_lock($1)", lockID(t, holder, path))
		require.NoError(t, err)

		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { result <- pgbaton.Migrate(ctx, testkit.Pool(t, dsn)) }()
		const sqlWaits = `
SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database AS d ON d.oid = database
               WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted)`
		testkit.WaitFor(t, observer, sqlWaits)
		cancel()
		err = <-result
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorContains(t, err, "pgbaton: migrate: wait for the migration lock: ")
		testkit.WaitFor(t, observer, "SELECT NOT ("+sqlWaits+")")
		testkit.Exec(t, holder, "ROLLBACK")
	}
	require.NoError(t, pgbaton.Migrate(t.Context(), testkit.Pool(t, dsn)))
}

// A service whose own migrations hold the files has the schema and no version row.
func TestMigrate_Adopts(t *testing.T) {
	t.Parallel()
	setup := func(t *testing.T, dsn string) {
		t.Helper()
		testkit.Exec(t, testkit.Connect(t, dsn), sqlOf(t, 1))
	}

	t.Run("OwnSchema", func(t *testing.T) {
		t.Parallel()
		dsn := testkit.Empty(t)
		setup(t, dsn)
		pool := testkit.Pool(t, dsn)
		require.NoError(t, pgbaton.Migrate(t.Context(), pool))
		require.Equal(t, rightCatalog(t), catalog(t, dsn))
		require.NoError(t, pgbaton.Migrate(t.Context(), pool))
		require.NoError(t, golangMigrate(t, dsn).Down())
	})

	t.Run("NotAnothersSchema", func(t *testing.T) {
		t.Parallel()
		role := testkit.Role(t)
		dsn := testkit.Empty(t)
		conn := testkit.Connect(t, dsn)
		testkit.Exec(t, conn, "GRANT CREATE ON DATABASE "+testkit.Value[string](t, conn, "SELECT current_database()")+" TO "+role)
		setup(t, testkit.As(t, dsn, role))
		err := pgbaton.Migrate(t.Context(), testkit.Pool(t, dsn))
		require.ErrorContains(t, err, "the schema pgbaton belongs to role")
	})
}

// poolWith is a pool whose connections are set by statements.
func poolWith(t *testing.T, dsn, set string) *pgxpool.Pool {
	t.Helper()
	return hooked(t, dsn, func(config *pgxpool.Config) {
		config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.PgConn().Exec(ctx, set).ReadAll()
			return err
		}
	})
}

// hooked is a pool with another config.
func hooked(t *testing.T, dsn string, change func(config *pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(dsn)
	require.NoError(t, err)
	change(config)
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// lockID asks golang-migrate for its lock.
func lockID(t *testing.T, conn *pgx.Conn, path string) int64 {
	t.Helper()
	database := path + testkit.Value[string](t, conn, "SELECT current_database()::text")
	return generateLockID(t, database, "public", migrations.VersionTable)
}
