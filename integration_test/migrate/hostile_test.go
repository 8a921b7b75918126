package migrate_test

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton"
	"github.com/pgbaton/pgbaton/integration_test/pgserver"
	"github.com/pgbaton/pgbaton/internal/testkit"
)

// scene is a database in which a stranger may create in public, as everybody may by default up to PostgreSQL 14, and
// create schemas.
type scene struct {
	dsn      string
	conn     *pgx.Conn // the superuser who will migrate
	stranger *pgx.Conn
	name     string // of the stranger
}

func newScene(t *testing.T, server *pgserver.Server) scene {
	t.Helper()
	name := "stranger_" + strings.ToLower(rand.Text())
	testkit.Run(t, server.URL(), "CREATE ROLE "+name+" LOGIN PASSWORD 'service'")
	t.Cleanup(func() { testkit.Run(t, server.URL(), "DROP ROLE "+name) })
	dsn := testkit.EmptyOn(t, server.URL())
	s := scene{dsn: dsn, conn: testkit.Connect(t, dsn), name: name}
	if server.Major() > 14 {
		testkit.Exec(t, s.conn, "GRANT CREATE ON SCHEMA public TO PUBLIC")
	}
	testkit.Exec(t, s.conn, "GRANT CREATE ON DATABASE "+testkit.Value[string](t, s.conn, "SELECT current_database()")+" TO "+name)
	s.stranger = testkit.Connect(t, testkit.As(t, dsn, name))
	testkit.Exec(t, s.stranger, bait)
	return s
}

// bait makes its caller's rights the stranger's, and leaves a trace that also a failed transaction cannot take back.
const bait = `
CREATE SCHEMA lair;
CREATE SEQUENCE lair.caught;
GRANT USAGE ON SCHEMA lair TO PUBLIC;
GRANT ALL ON SEQUENCE lair.caught TO PUBLIC;
CREATE FUNCTION lair.bite() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    IF current_user <> (SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'lair') THEN
        RETURN nextval('lair.caught');
    END IF;
    RETURN 1;
END $$;
CREATE FUNCTION lair.bite(boolean) RETURNS boolean LANGUAGE sql AS 'SELECT lair.bite() > 0';
CREATE FUNCTION lair.bite(bigint) RETURNS bigint LANGUAGE sql AS 'SELECT lair.bite()';
CREATE FUNCTION lair.fixed(bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT lair.bite()';
CREATE FUNCTION lair.on_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM lair.bite(); RETURN coalesce(NEW, OLD); END $$;
`

// caught says whether somebody ran the stranger's code.
func (s scene) caught(t *testing.T) bool {
	t.Helper()
	return testkit.Value[bool](t, s.conn, "SELECT is_called FROM lair.caught")
}

const plain = "CREATE TABLE public.pgbaton_schema_migrations (version bigint NOT NULL PRIMARY KEY, dirty boolean NOT NULL)"

// traps are what a stranger leaves where the version table will be looked for.
var traps = map[string]string{
	"View": `CREATE VIEW public.pgbaton_schema_migrations AS SELECT lair.bite() AS version, false AS dirty`,
	"ViewThatIsWritten": plainAs("lair.real") + `CREATE VIEW public.pgbaton_schema_migrations AS SELECT * FROM lair.real;
		CREATE TRIGGER t INSTEAD OF INSERT ON public.pgbaton_schema_migrations FOR EACH ROW EXECUTE FUNCTION lair.on_write()`,
	"MaterializedView": `CREATE MATERIALIZED VIEW public.pgbaton_schema_migrations AS SELECT 999::bigint AS version, false AS dirty`,
	"Sequence":         `CREATE SEQUENCE public.pgbaton_schema_migrations`,
	"Type":             `CREATE TYPE public.pgbaton_schema_migrations AS (version bigint, dirty boolean)`,
	"Index":            plainAs("public.real") + `CREATE INDEX pgbaton_schema_migrations ON public.real (version)`,
	"PlainTable":       plain + `; INSERT INTO public.pgbaton_schema_migrations VALUES (999, false)`,
	"Trigger":          plain + `; CREATE TRIGGER t BEFORE INSERT OR DELETE ON public.pgbaton_schema_migrations FOR EACH ROW EXECUTE FUNCTION lair.on_write()`,
	"Rule":             plain + `; CREATE RULE r AS ON INSERT TO public.pgbaton_schema_migrations DO ALSO SELECT lair.bite()`,
	"Policy": plain + `; INSERT INTO public.pgbaton_schema_migrations VALUES (1, false);
		ALTER TABLE public.pgbaton_schema_migrations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
		CREATE POLICY p ON public.pgbaton_schema_migrations USING (lair.bite(dirty))`,
	"Check":            plain + `; ALTER TABLE public.pgbaton_schema_migrations ADD CHECK (lair.bite(dirty))`,
	"Default":          plain + `; ALTER TABLE public.pgbaton_schema_migrations ALTER version SET DEFAULT lair.bite()`,
	"MoreColumn":       plain + `; ALTER TABLE public.pgbaton_schema_migrations ADD bait bigint DEFAULT lair.bite()`,
	"Generated":        plain + `; ALTER TABLE public.pgbaton_schema_migrations ADD bait bigint GENERATED ALWAYS AS (lair.fixed(version)) STORED`,
	"Index expression": plain + `; CREATE INDEX ON public.pgbaton_schema_migrations (lair.fixed(version))`,
	"Index predicate":  plain + `; CREATE INDEX ON public.pgbaton_schema_migrations (version) WHERE lair.fixed(version) > 0`,
	"Domain": `CREATE DOMAIN lair.version AS bigint CHECK (lair.bite(value) > 0);
		CREATE TABLE public.pgbaton_schema_migrations (version lair.version PRIMARY KEY, dirty boolean NOT NULL)`,
	"Child": plain + `; CREATE TABLE lair.child () INHERITS (public.pgbaton_schema_migrations);
		ALTER TABLE lair.child ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON lair.child USING (lair.bite(dirty))`,
	"Partitioned": `CREATE TABLE public.pgbaton_schema_migrations (version bigint, dirty boolean) PARTITION BY LIST (dirty);
		CREATE TABLE lair.part PARTITION OF public.pgbaton_schema_migrations DEFAULT;
		CREATE TRIGGER t BEFORE INSERT ON lair.part FOR EACH ROW EXECUTE FUNCTION lair.on_write()`,
	"ForeignKey": `CREATE TABLE lair.target (version bigint PRIMARY KEY);` + plain + `;
		ALTER TABLE public.pgbaton_schema_migrations ADD FOREIGN KEY (version) REFERENCES lair.target`,
	"Unlogged": strings.Replace(plain, "TABLE", "UNLOGGED TABLE", 1),
	"Text":     `CREATE TABLE public.pgbaton_schema_migrations (version text, dirty text)`,

	"SchemaOfTheRole": `CREATE SCHEMA postgres; ` + strings.ReplaceAll(plain, "public", "postgres") +
		`; CREATE TRIGGER t BEFORE INSERT ON postgres.pgbaton_schema_migrations FOR EACH ROW EXECUTE FUNCTION lair.on_write()`,
	"EmptySchemaOfTheRole": `CREATE SCHEMA postgres`,

	"Schema": `CREATE SCHEMA pgbaton`,
	"SchemaThatSaysItsVersion": `CREATE SCHEMA pgbaton;
		CREATE FUNCTION pgbaton.schema_version(OUT version integer, OUT oldest_client integer) LANGUAGE plpgsql IMMUTABLE AS $$
		BEGIN version := 999 + 0 * lair.bite(); oldest_client := 1; END $$`,
	"SchemaThatSaysItsVersionInSQL": `CREATE SCHEMA pgbaton; ` + saysVersion(999),
}

func plainAs(name string) string {
	return strings.Replace(plain, "public.pgbaton_schema_migrations", name, 1) + "; "
}

// Whatever a stranger has left, a superuser who migrates does not run it, and is told what is wrong.
func TestMigrate_Hostile(t *testing.T) {
	t.Parallel()
	oldestAndNewest(t, func(t *testing.T, server *pgserver.Server) {
		for name, trap := range traps {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := newScene(t, server)
				testkit.Exec(t, s.stranger, trap)
				for range 2 {
					err := pgbaton.Migrate(t.Context(), s.dsn)
					require.False(t, s.caught(t), "the stranger's code ran: %v", err)
					require.ErrorIs(t, err, pgbaton.ErrSchema)
					require.ErrorContains(t, err, s.name)
				}
				// Once the stranger's things are gone, it works.
				testkit.Exec(t, s.conn, "SET client_min_messages = error; DROP OWNED BY "+s.name+" CASCADE")
				require.NoError(t, pgbaton.Migrate(t.Context(), s.dsn))
			})
		}
	})
}

// A table of one's own is not touched either when it has what could run code: a trusted owner may have been careless.
func TestMigrate_HostileTableOfTheRole(t *testing.T) {
	t.Parallel()
	oldestAndNewest(t, func(t *testing.T, server *pgserver.Server) {
		for name, trap := range traps {
			if strings.HasPrefix(name, "Schema") || strings.HasPrefix(name, "EmptySchema") || name == "PlainTable" || name == "Type" {
				continue
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				s := newScene(t, server)
				testkit.Exec(t, s.conn, "CREATE SCHEMA IF NOT EXISTS lair;"+trap)
				err := pgbaton.Migrate(t.Context(), s.dsn)
				require.False(t, s.caught(t), "code of the table ran: %v", err)
				require.ErrorIs(t, err, pgbaton.ErrSchema)
				require.ErrorContains(t, err, "is not touched")
			})
		}
	})
}

// A table of the right kind that is swapped for another while Migrate is at it.
func TestMigrate_HostileSwap(t *testing.T) {
	t.Parallel()
	oldestAndNewest(t, func(t *testing.T, server *pgserver.Server) {
		s := newScene(t, server)
		testkit.Exec(t, s.stranger, plainAs("lair.good")+plainAs("lair.bad")+
			`CREATE TRIGGER t BEFORE INSERT OR DELETE ON lair.bad FOR EACH ROW EXECUTE FUNCTION lair.on_write()`)
		// The good one belongs to the superuser, who was talked into it.
		testkit.Exec(t, s.conn, "ALTER TABLE lair.good OWNER TO postgres")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var swapper sync.WaitGroup
		swapper.Go(func() {
			conn := testkit.Connect(t, s.dsn)
			for ctx.Err() == nil {
				for _, sql := range []string{
					"ALTER TABLE lair.good SET SCHEMA public; ALTER TABLE public.good RENAME TO pgbaton_schema_migrations",
					"ALTER TABLE public.pgbaton_schema_migrations RENAME TO good; ALTER TABLE public.good SET SCHEMA lair; " +
						"ALTER TABLE lair.bad RENAME TO pgbaton_schema_migrations; ALTER TABLE lair.pgbaton_schema_migrations SET SCHEMA public",
					"ALTER TABLE public.pgbaton_schema_migrations RENAME TO bad; ALTER TABLE public.bad SET SCHEMA lair",
				} {
					_, err := conn.PgConn().Exec(t.Context(), sql).ReadAll()
					if err != nil && strings.Contains(err.Error(), "already exists") {
						return // Migrate made a table of its own meanwhile
					}
				}
			}
		})
		for range testkit.Brief(100, 20) {
			err := pgbaton.Migrate(t.Context(), s.dsn)
			if err == nil {
				continue
			}
			require.NotErrorIs(t, err, context.Canceled)
		}
		cancel()
		swapper.Wait()
		require.False(t, s.caught(t))
	})
}

// Objects that shadow the system's in the schemas that a superuser has in search_path.
func TestMigrate_HostileNames(t *testing.T) {
	t.Parallel()
	oldestAndNewest(t, func(t *testing.T, server *pgserver.Server) {
		for _, path := range []string{`"$user",public`, "public,pg_catalog", "public,lair,pg_catalog"} {
			t.Run(path, func(t *testing.T) {
				t.Parallel()
				s := newScene(t, server)
				for _, schema := range []string{"public", "lair"} {
					testkit.Exec(t, s.stranger, strings.ReplaceAll(shadows, "SCHEMA", schema))
				}
				for range 2 {
					require.NoError(t, pgbaton.Migrate(t.Context(), testkit.With(t, s.dsn, "search_path", path)))
					require.False(t, s.caught(t))
				}
				require.Equal(t, catalog(t, migratedOn(t, server)), catalog(t, s.dsn))
			})
		}
	})
}

// shadows are functions, operators, types, tables and casts with names of the system's.
const shadows = `
CREATE FUNCTION SCHEMA.current_setting(text) RETURNS text LANGUAGE sql AS 'SELECT lair.bite()::text';
CREATE FUNCTION SCHEMA.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT lair.bite()::text';
CREATE FUNCTION SCHEMA.current_database() RETURNS name LANGUAGE sql AS 'SELECT lair.bite()::text::name';
CREATE FUNCTION SCHEMA.pg_advisory_xact_lock(bigint) RETURNS bigint LANGUAGE sql AS 'SELECT lair.bite()';
CREATE FUNCTION SCHEMA.pg_get_function_sqlbody(oid) RETURNS text LANGUAGE sql AS 'SELECT lair.bite()::text';
CREATE FUNCTION SCHEMA.count(bigint) RETURNS bigint LANGUAGE sql AS 'SELECT lair.bite()';
CREATE FUNCTION SCHEMA.same(name, name) RETURNS boolean LANGUAGE sql AS 'SELECT lair.bite() > 0';
CREATE FUNCTION SCHEMA.same(oid, oid) RETURNS boolean LANGUAGE sql AS 'SELECT lair.bite() > 0';
CREATE FUNCTION SCHEMA.same(name, text) RETURNS boolean LANGUAGE sql AS 'SELECT lair.bite() > 0';
CREATE OPERATOR SCHEMA.= (FUNCTION = SCHEMA.same, LEFTARG = name, RIGHTARG = name);
CREATE OPERATOR SCHEMA.= (FUNCTION = SCHEMA.same, LEFTARG = oid, RIGHTARG = oid);
CREATE OPERATOR SCHEMA.= (FUNCTION = SCHEMA.same, LEFTARG = name, RIGHTARG = text);
CREATE DOMAIN SCHEMA.text AS pg_catalog.text CHECK (lair.bite() > 0);
CREATE DOMAIN SCHEMA.name AS pg_catalog.name CHECK (lair.bite() > 0);
CREATE DOMAIN SCHEMA.bigint AS pg_catalog.int8 CHECK (lair.bite() > 0);
CREATE DOMAIN SCHEMA.regclass AS pg_catalog.oid CHECK (lair.bite() > 0);
CREATE DOMAIN SCHEMA.timestamptz AS pg_catalog.timestamptz CHECK (lair.bite() > 0);
CREATE VIEW SCHEMA.pg_class AS SELECT lair.bite()::pg_catalog.int8 AS oid;
CREATE VIEW SCHEMA.pg_roles AS SELECT lair.bite()::pg_catalog.int8 AS oid;
CREATE VIEW SCHEMA.pg_namespace AS SELECT lair.bite()::pg_catalog.int8 AS oid;
`

// A schema that belongs to somebody else is not added to, also by a superuser: it would run the owner's code, and make
// functions that others take for the owner's.
func TestMigrate_AnothersSchema(t *testing.T) {
	t.Parallel()
	oldestAndNewest(t, func(t *testing.T, server *pgserver.Server) {
		s := newScene(t, server)
		owner := testkit.As(t, s.dsn, s.name)
		database := testkit.Value[string](t, s.conn, "SELECT current_database()")
		testkit.Exec(t, s.conn, "ALTER DATABASE "+database+" OWNER TO "+s.name) // who is trusted, and not executed
		t.Cleanup(func() { testkit.Exec(t, s.conn, "ALTER DATABASE "+database+" OWNER TO postgres") })
		testkit.Exec(t, s.stranger, "SET check_function_bodies = off;"+sqlOf(t, 4)+`
			CREATE TRIGGER t BEFORE INSERT OR UPDATE OR DELETE ON pgbaton.slot EXECUTE FUNCTION lair.on_write()`)
		err := pgbaton.Migrate(t.Context(), s.dsn)
		require.ErrorIs(t, err, pgbaton.ErrSchema)
		require.ErrorContains(t, err, "migrate as \""+s.name+"\"")
		require.NoError(t, pgbaton.Migrate(t.Context(), owner))
		require.NoError(t, pgbaton.Migrate(t.Context(), s.dsn), "there is nothing left to do")
		require.False(t, s.caught(t))

		// A function of somebody else in the schema of the role that migrates.
		dsn := testkit.EmptyOn(t, server.URL())
		conn := testkit.Connect(t, dsn)
		testkit.Exec(t, conn, sqlOf(t, 4)+"GRANT CREATE, USAGE ON SCHEMA pgbaton TO "+s.name)
		testkit.Exec(t, testkit.Connect(t, testkit.As(t, dsn, s.name)),
			"CREATE FUNCTION pgbaton.planted(name) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'")
		err = pgbaton.Migrate(t.Context(), dsn)
		require.ErrorIs(t, err, pgbaton.ErrSchema)
		require.ErrorContains(t, err, "function planted")
		testkit.Exec(t, conn, "DROP FUNCTION pgbaton.planted")
		require.NoError(t, pgbaton.Migrate(t.Context(), dsn))
	})
}

// The owner of the database, who is no superuser, migrates and runs the service: the usual small installation.
func TestMigrate_DatabaseOwner(t *testing.T) {
	t.Parallel()
	oldestAndNewest(t, func(t *testing.T, server *pgserver.Server) {
		s := newScene(t, server)
		owner := "owner_" + strings.ToLower(rand.Text())
		testkit.Exec(t, s.conn, "CREATE ROLE "+owner+" LOGIN PASSWORD 'service'")
		database := testkit.Value[string](t, s.conn, "SELECT current_database()")
		testkit.Exec(t, s.conn, "ALTER DATABASE "+database+" OWNER TO "+owner)
		t.Cleanup(func() {
			testkit.Exec(t, s.conn, "REASSIGN OWNED BY "+owner+" TO postgres; DROP OWNED BY "+owner+"; DROP ROLE "+owner)
		})
		dsn := testkit.As(t, s.dsn, owner)
		errs := atOnce([]func() error{
			func() error { return pgbaton.Migrate(t.Context(), dsn) },
			func() error { return pgbaton.Migrate(t.Context(), dsn) },
		})
		require.NoError(t, errors.Join(errs...))
		require.NoError(t, pgbaton.Migrate(t.Context(), s.dsn), "a superuser looks")
		// The stranger's own Migrate does nothing and says so.
		err := pgbaton.Migrate(t.Context(), testkit.As(t, s.dsn, s.name))
		requireServicesNeedNot(t, err, s.name)
	})
}

func migratedOn(t *testing.T, server *pgserver.Server) string {
	t.Helper()
	dsn := testkit.EmptyOn(t, server.URL())
	require.NoError(t, pgbaton.Migrate(t.Context(), dsn))
	return dsn
}
