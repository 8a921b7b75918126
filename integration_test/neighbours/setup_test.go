// Package neighbours tests what roles that share a database with a service can do to it, and what they cannot, on every
// PostgreSQL at hand.
package neighbours

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/pgbaton/pgbaton/integration_test/internal/lab"
	"github.com/pgbaton/pgbaton/internal/testkit"
	"github.com/pgbaton/pgbaton/migrations"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(lab.Run{M: m})
}

// town is a database with the schema pgbaton, whose owner is no superuser, and roles that share it: two services,
// each a group with two logins, an operator, and a guest who may only connect.
type town struct {
	t     *testing.T
	admin string // URL of a superuser
	names map[string]string
}

const password = "hostile"

// roles are the logins of a town, with the groups that they are members of.
var roles = map[string]string{
	"owner": "", "operator": "", "guest": "", "ann": "anns", "abe": "anns", "bob": "bobs", "bea": "bobs",
}

// onEach runs a test in a town of its own on each server.
func onEach(t *testing.T, test func(t *testing.T, w *town)) {
	t.Helper()
	onServers(t, "", func(t *testing.T, server string) {
		w := newTown(t, server, upTo(t, ""))
		w.granted()
		test(t, w)
	})
}

// onServers runs a test on each server.
func onServers(t *testing.T, name string, test func(t *testing.T, server string)) {
	t.Helper()
	for _, server := range lab.Servers(t) {
		t.Run(strings.TrimSuffix(fmt.Sprint("PostgreSQL", server.Major(), "/", name), "/"), func(t *testing.T) {
			t.Parallel()
			test(t, server.URL())
		})
	}
}

// newTown makes a town; the files are run as its owner. Then the roles have the documented grants.
func newTown(t *testing.T, server, files string) *town {
	t.Helper()
	w := &town{t: t, names: map[string]string{}}
	suffix := `- "` + strings.ToLower(rand.Text())[:12] // such names have to be quoted
	var create, drop []string
	add := func(role, options string) {
		w.names[role] = pgx.Identifier{role + suffix}.Sanitize()
		create = append(create, "CREATE ROLE "+w.names[role]+options)
		drop = append(drop, "DROP ROLE IF EXISTS "+w.names[role])
	}
	add("anns", "")
	add("bobs", "")
	for login, group := range roles {
		options := " LOGIN PASSWORD '" + password + "'"
		if group != "" {
			options += " IN ROLE " + w.names[group]
		}
		add(login, options)
	}
	testkit.Run(t, server, strings.Join(create, ";"))
	t.Cleanup(func() { testkit.Run(t, server, strings.Join(drop, ";")) }) // after the database
	w.admin = testkit.EmptyOn(t, server)
	w.run("admin", "REVOKE TEMPORARY ON DATABASE "+pgx.Identifier{w.database()}.Sanitize()+" FROM PUBLIC; "+
		"GRANT CREATE ON DATABASE "+pgx.Identifier{w.database()}.Sanitize()+" TO "+w.names["owner"])
	w.run("owner", files)
	return w
}

// granted gives the roles of the town what the docs say.
func (w *town) granted() {
	w.t.Helper()
	w.run("owner", w.fill(`
SELECT pgbaton.grant_service('$anns'), pgbaton.grant_service('$bobs'), pgbaton.grant_operator('$operator')`))
}

func (w *town) database() string {
	u, err := url.Parse(w.admin)
	require.NoError(w.t, err)
	return strings.TrimPrefix(u.Path, "/")
}

// url is that of a role.
func (w *town) url(role string) string {
	if role == "admin" {
		return w.admin
	}
	u, err := url.Parse(w.admin)
	require.NoError(w.t, err)
	name := strings.ReplaceAll(strings.Trim(w.names[role], `"`), `""`, `"`)
	u.User = url.UserPassword(name, password)
	return u.String()
}

func (w *town) connect(role string) *pgx.Conn {
	w.t.Helper()
	return testkit.Connect(w.t, w.url(role))
}

func (w *town) run(role, sql string) {
	w.t.Helper()
	testkit.Run(w.t, w.url(role), sql)
}

var placeholder = regexp.MustCompile(`\$[a-z]+`)

// fill puts the names of roles in the place of $role, as they are written in SQL.
func (w *town) fill(sql string) string {
	return placeholder.ReplaceAllStringFunc(sql, func(role string) string {
		require.Contains(w.t, w.names, role[1:])
		return w.names[role[1:]]
	})
}

// refused runs a statement that must fail with a code.
func refused(t *testing.T, conn *pgx.Conn, code, sql string, args ...any) {
	t.Helper()
	require.Equal(t, code, refusal(t, conn, sql, args...).Code, sql)
}

// refusal is the error of a statement that must fail.
func refusal(t *testing.T, conn *pgx.Conn, sql string, args ...any) *pgconn.PgError {
	t.Helper()
	_, err := conn.Exec(context.Background(), sql, args...)
	var pgErr *pgconn.PgError
	require.ErrorAs(t, err, &pgErr, sql)
	return pgErr
}

// upTo is the migrations before the one with that number, or all.
func upTo(t *testing.T, end string) string {
	t.Helper()
	all, from := split(t, end)
	if end == "" {
		return all + from
	}
	return all
}

// split is the migrations before the one with that number, and those from it on.
func split(t *testing.T, at string) (before, from string) {
	t.Helper()
	entries, err := migrations.FS.ReadDir(".")
	require.NoError(t, err)
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".up.sql") {
			continue
		}
		sql, err := migrations.FS.ReadFile(entry.Name())
		require.NoError(t, err)
		if entry.Name() >= at {
			from += string(sql) + "\n"
		} else {
			before += string(sql) + "\n"
		}
	}
	return before, from
}
