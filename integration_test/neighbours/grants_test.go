package neighbours

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/testkit"
)

func list(t *testing.T, conn *pgx.Conn, sql string, args ...any) []string {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql, args...)
	require.NoError(t, err)
	texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return texts
}

// Every function of the schema is in one set, and in the docs in the same.
func TestFunctionSets(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		owner := w.connect("owner")
		require.Empty(t, list(t, owner, `
SELECT p.proname::text || ' is in ' || count(DISTINCT f.set) || ' sets' FROM pg_proc AS p
LEFT JOIN pgbaton.function_sets() AS f ON f.name = p.proname
WHERE p.pronamespace = 'pgbaton'::regnamespace GROUP BY p.proname HAVING count(DISTINCT f.set) <> 1`))
		require.Empty(t, list(t, owner, "SELECT name || ' is named twice' FROM pgbaton.function_sets() GROUP BY name HAVING count(*) > 1"))

		page, err := os.ReadFile("../../docs/security.md")
		require.NoError(t, err)
		_, table, found := strings.Cut(string(page), "## Which function is whose")
		require.True(t, found)
		for _, set := range []string{"everybody", "service", "operator", "internal"} {
			line := regexp.MustCompile(`(?m)^\| \*\*` + set + `\*\*.*$`).FindString(table)
			var documented []string
			for _, name := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(line, -1) {
				documented = append(documented, name[1])
			}
			slices.Sort(documented)
			require.Equal(t, list(t, owner, `SELECT name FROM pgbaton.function_sets() WHERE set = $1 ORDER BY name COLLATE "C"`, set),
				documented, "docs/security.md, %s", set)
		}
	})
}

// Where the installation gives rights to others by default, as some do, they get none in this schema.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	onServers(t, "", func(t *testing.T, server string) {
		w := newTown(t, server, "SELECT")
		w.run("owner", w.fill(`
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO $bobs, $guest, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO $bobs WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO $bobs WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO $guest, $bobs WITH GRANT OPTION;`)+upTo(t, "000013"))
		w.run("bob", w.fill("SELECT; "+`
DO $$ BEGIN IF has_schema_privilege('pgbaton', 'USAGE') THEN GRANT EXECUTE ON FUNCTION pgbaton.present(bigint) TO $abe; END IF; END $$`))
		_, last := split(t, "000013")
		w.run("owner", last)
		w.granted()
		w.run("owner", "SELECT pgbaton.apply_grants()")
		w.holds(map[string][]string{
			"ann": {"everybody", "service"}, "abe": {"everybody", "service"}, "bob": {"everybody", "service"},
			"operator": {"everybody", "service", "operator"},
			"guest":    {"everybody", "service"}, // for it had the use of the schema when the grants came
		})
		w.run("owner", w.fill("SELECT pgbaton.revoke_grants('$guest'), pgbaton.revoke_grants('$bobs')"))
		w.holds(map[string][]string{"ann": {"everybody", "service"}, "guest": {"everybody"}, "bob": {"everybody"}})
		for _, role := range []string{"guest", "bob"} {
			refused(t, w.connect(role), "42501", "SELECT pgbaton.schema_version()")
			refused(t, w.connect(role), "42501", "SELECT FROM pgbaton.fence")
		}
	})
}

// holds makes sure that the functions that roles may call are those of their sets, and that they have no other rights in
// the schema than to look at tables.
func (w *town) holds(sets map[string][]string) {
	w.t.Helper()
	owner := w.connect("owner")
	for role, want := range sets {
		name := testkit.Value[string](w.t, w.connect(role), "SELECT session_user::text")
		require.Empty(w.t, list(w.t, owner, `
SELECT p.oid::regprocedure::text FROM pg_proc AS p LEFT JOIN pgbaton.function_sets() AS f ON f.name = p.proname
WHERE p.pronamespace = 'pgbaton'::regnamespace
  AND has_function_privilege($1, p.oid, 'EXECUTE') <> coalesce(f.set = ANY ($2), false)`, name, want), role)
		require.Empty(w.t, list(w.t, owner, `
SELECT c.relname || ' ' || p FROM pg_class AS c, unnest('{INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) AS p
WHERE c.relnamespace = 'pgbaton'::regnamespace AND c.relkind = 'r' AND has_table_privilege($1, c.oid, p)
UNION ALL SELECT 'may create' WHERE has_schema_privilege($1, 'pgbaton', 'CREATE')
UNION ALL SELECT 'may set tokens' WHERE has_sequence_privilege($1, 'pgbaton.token', 'UPDATE')
UNION ALL SELECT 'may draw past the clock' WHERE has_sequence_privilege($1, 'pgbaton.token', 'USAGE')`, name), role)
	}
}

// Roles that had the use of the schema before there were services go on, and what there is belongs to them if it can only
// be theirs.
func TestGrants_Upgrade(t *testing.T) {
	t.Parallel()
	const before = `GRANT USAGE ON SCHEMA pgbaton TO $role; GRANT USAGE ON SEQUENCE pgbaton.token TO $role;`
	const work = `SELECT pgbaton.next_token(), pgbaton.fence('ledger', 5), pgbaton.begin_run('nightly', '1 day', 5)`
	for name, c := range map[string]struct {
		had    []string // the use of the schema
		open   bool     // to others, what was made before
		served []string // roles that are served at once
	}{
		"OneService":  {[]string{"$anns"}, false, []string{"ann", "abe"}},
		"TwoServices": {[]string{"$anns", "$bobs"}, true, []string{"ann", "abe", "bob", "bea"}},
		"Public":      {[]string{"PUBLIC"}, true, []string{"ann", "bob", "guest"}},
		"OwnerAlone":  {nil, false, []string{"owner"}},
	} {
		onServers(t, name, func(t *testing.T, server string) {
			old, rest := split(t, "000008")
			w := newTown(t, server, old)
			for _, role := range c.had {
				w.run("owner", w.fill(strings.ReplaceAll(before, "$role", role)))
			}
			first := w.connect(c.served[0])
			testkit.Exec(t, first, work)
			running := w.connect(c.served[len(c.served)-1]) // over the migration
			testkit.Exec(t, running, "SELECT pgbaton.fence('ledger', 6)")
			w.run("owner", rest)
			for _, conn := range []*pgx.Conn{first, running} {
				testkit.Exec(t, conn, "SELECT pgbaton.fence('ledger', 7), nextval('pgbaton.token')")
			}
			for i, role := range c.served {
				fences(t, w.connect(role), 8+i)
				testkit.Exec(t, w.connect(role), "SELECT pgbaton.begin_run('nightly', '1 day', NULL)")
			}
			if c.had == nil || c.had[0] != "PUBLIC" {
				refused(t, w.connect("guest"), "42501", "SELECT pgbaton.fence('ledger', 20)")
			}
			w.granted()
			if c.open {
				fences(t, w.connect("bob"), 20)
				testkit.Exec(t, w.connect("operator"), w.fill("SELECT pgbaton.reassign(NULL, '$anns')"))
			}
			if c.had != nil {
				fences(t, w.connect("ann"), 20)
			}
			refused(t, w.connect("bob"), "42501", "SELECT pgbaton.fence('ledger', 20)")
			refused(t, w.connect("bob"), "42501", "SELECT pgbaton.begin_run('nightly', '1 day', NULL)")
			w.run("owner", "SELECT pgbaton.apply_grants()") // when the last client of before is gone
			if c.had != nil {
				refused(t, first, "42501", "SELECT nextval('pgbaton.token')")
			}
		})
	}
}

// A service of roles that come and go is their group.
func TestService_RolesThatComeAndGo(t *testing.T) {
	t.Parallel()
	onEach(t, func(t *testing.T, w *town) {
		fences(t, w.connect("ann"), 5)
		w.run("admin", w.fill("DROP OWNED BY $ann; DROP ROLE $ann"))
		fences(t, w.connect("abe"), 6)
		// A service whose role is gone leaves everybody what it had.
		refused(t, w.connect("bob"), "42501", "SELECT pgbaton.fence('ledger', 7)")
		w.run("admin", w.fill("DROP OWNED BY $anns; DROP ROLE $anns"))
		fences(t, w.connect("bob"), 7)
		refused(t, w.connect("abe"), "42501", "SELECT pgbaton.fence('ledger', 8)")
		w.run("owner", "SELECT pgbaton.apply_grants()")
		require.Equal(t, int64(2), testkit.Value[int64](t, w.connect("owner"), "SELECT count(*) FROM pgbaton.grantee"))
		refused(t, w.connect("owner"), "42704", "SELECT pgbaton.grant_service('nobody_here')")
		refused(t, w.connect("owner"), "42704", "SELECT pgbaton.grant_service(NULL)")
	})
}
