package migrate_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"io/fs"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/golang-migrate/migrate/v4"
	"github.com/golang-migrate/migrate/v4/database"
	migratepgx "github.com/golang-migrate/migrate/v4/database/pgx/v5"
	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/migrations"
)

// template is a database that [pgbaton.Migrate] has made. Most tests begin with a copy of it.
var template struct {
	sync.Mutex
	server, name string
	catalog      []string
}

// migrated makes a database with the schema by [pgbaton.Migrate].
func migrated(t *testing.T) string {
	t.Helper()
	source, name := needTemplate(t), "pgbaton_test_"+strings.ToLower(rand.Text())
	testkit.Run(t, testkit.Server(t), "CREATE DATABASE "+name+" TEMPLATE "+source)
	t.Cleanup(func() { testkit.Run(t, testkit.Server(t), "DROP DATABASE "+name+" WITH (FORCE)") })
	return inDatabase(t, name)
}

// rightCatalog is the catalog of what [pgbaton.Migrate] makes.
func rightCatalog(t *testing.T) []string {
	t.Helper()
	needTemplate(t)
	return template.catalog
}

// needTemplate makes the template when it is first asked for, and returns its name.
func needTemplate(t *testing.T) string {
	t.Helper()
	template.Lock()
	defer template.Unlock()
	if template.name == "" {
		name := "pgbaton_template_" + strings.ToLower(rand.Text())
		template.server = testkit.Server(t)
		testkit.Run(t, template.server, "CREATE DATABASE "+name)
		template.name = name
		dsn := inDatabase(t, name)
		require.NoError(t, pgbaton.Migrate(t.Context(), dsn))
		template.catalog = catalog(t, dsn)
	}
	return template.name
}

// dropTemplate is for the end of all tests.
func dropTemplate() error {
	if template.name == "" {
		return nil
	}
	conn, err := pgx.Connect(context.Background(), template.server)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	_, err = conn.Exec(context.Background(), "DROP DATABASE "+template.name+" WITH (FORCE)")
	return err
}

func inDatabase(t *testing.T, name string) string {
	t.Helper()
	u, err := url.Parse(testkit.Server(t))
	require.NoError(t, err)
	u.Path = "/" + name
	return u.String()
}

// golangMigrate is golang-migrate on the embedded files, over a database/sql handle.
func golangMigrate(t *testing.T, dsn string) *migrate.Migrate {
	t.Helper()
	source, err := iofs.New(migrations.FS, ".")
	require.NoError(t, err)
	db, err := sql.Open("pgx/v5", dsn)
	require.NoError(t, err)
	driver, err := migratepgx.WithInstance(db, &migratepgx.Config{MigrationsTable: migrations.VersionTable})
	require.NoError(t, err)
	m, err := migrate.NewWithInstance("iofs", source, "pgx5", driver)
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = m.Close() })
	return m
}

// golangMigrateByURL is what golang-migrate's command does. Its advisory lock is another one.
func golangMigrateByURL(t *testing.T, dsn string) *migrate.Migrate {
	t.Helper()
	source, err := iofs.New(migrations.FS, ".")
	require.NoError(t, err)
	u, err := url.Parse(dsn)
	require.NoError(t, err)
	u.Scheme = "pgx5"
	query := u.Query()
	query.Set("x-migrations-table", migrations.VersionTable)
	u.RawQuery = query.Encode()
	m, err := migrate.NewWithSourceInstance("iofs", source, u.String())
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = m.Close() })
	return m
}

// catalog describes everything in the schema pgbaton and the version table, one object a line. A temporary table of the
// version table's name is left out: it belongs to a session that may be ending, and one that is dropped while the query
// runs has no name.
func catalog(t *testing.T, dsn string) []string {
	t.Helper()
	const sqlCatalog = `
WITH relations AS (
    SELECT c.* FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = 'pgbaton' OR (c.relname LIKE 'pgbaton_schema_migrations%' AND c.relpersistence <> 't'))
SELECT 'schema ' || nspname || ' ' || coalesce(nspacl::text, '-') || ' ' || nspowner::regrole
FROM pg_namespace WHERE nspname = 'pgbaton'
UNION ALL
SELECT 'function ' || pg_get_functiondef(p.oid) || ' ' || coalesce(proacl::text, '-') || ' ' || proowner::regrole
FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace WHERE n.nspname = 'pgbaton'
UNION ALL
SELECT format('relation %s kind %s persistence %s options %s acl %s owner %s comment %s', oid::regclass, relkind,
              relpersistence, reloptions, relacl, relowner::regrole, obj_description(oid, 'pg_class'))
FROM relations
UNION ALL
SELECT format('column %s.%s %s not null %s default %s comment %s', r.oid::regclass, attname,
              format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid), col_description(r.oid, attnum))
FROM relations AS r JOIN pg_attribute AS a ON a.attrelid = r.oid AND attnum > 0 AND NOT attisdropped
LEFT JOIN pg_attrdef AS d ON d.adrelid = r.oid AND d.adnum = attnum
UNION ALL
SELECT format('constraint %s.%s %s', conrelid::regclass, conname, pg_get_constraintdef(c.oid))
FROM pg_constraint AS c JOIN relations AS r ON r.oid = conrelid
UNION ALL
SELECT 'index ' || pg_get_indexdef(oid) FROM relations WHERE relkind = 'i'
UNION ALL
SELECT 'trigger ' || pg_get_triggerdef(t.oid) FROM pg_trigger AS t JOIN relations AS r ON r.oid = tgrelid
WHERE NOT tgisinternal
UNION ALL
SELECT format('sequence %s %s %s %s %s %s %s %s', r.oid::regclass, seqtypid::regtype, seqstart, seqincrement,
              seqmax, seqmin, seqcache, seqcycle)
FROM pg_sequence JOIN relations AS r ON r.oid = seqrelid
UNION ALL
SELECT format('version %s dirty %s', version, dirty) FROM public.pgbaton_schema_migrations
ORDER BY 1`
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), sqlCatalog)
	require.NoError(t, err)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return lines
}

// generateLockID is golang-migrate's own advisory lock.
func generateLockID(t *testing.T, databaseName string, names ...string) int64 {
	t.Helper()
	text, err := database.GenerateAdvisoryLockId(databaseName, names...)
	require.NoError(t, err)
	id, err := strconv.ParseInt(text, 10, 64)
	require.NoError(t, err)
	return id
}

// versions are those of the migration files, in order.
var versions = func() []int {
	names, err := fs.Glob(migrations.FS, "*.up.sql")
	if err != nil {
		panic(err)
	}
	var all []int
	for _, name := range names {
		number, _, _ := strings.Cut(name, "_")
		version, err := strconv.Atoi(number)
		if err != nil {
			panic(err)
		}
		all = append(all, version)
	}
	return all
}()

// newest is the version of the newest migration file.
var newest = versions[len(versions)-1]

// sqlOf is what makes the schema of the first n versions.
func sqlOf(t *testing.T, n int) string {
	t.Helper()
	names, err := fs.Glob(migrations.FS, "*.up.sql")
	require.NoError(t, err)
	var all strings.Builder
	for _, name := range names[:n] {
		file, err := fs.ReadFile(migrations.FS, name)
		require.NoError(t, err)
		all.Write(file)
		all.WriteString("\n")
	}
	return all.String()
}
