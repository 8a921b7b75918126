package migrator

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/internal/lockerr"
)

// schema is what is there of the schema pgbaton.
type schema struct {
	exists  bool
	owner   string
	trusted bool     // the owner is
	mine    bool     // the migrating role may alter it: it is the owner, or both are superusers
	version int64    // 0 if it does not exist, -1 if it does not say
	objects []string // such as "table fence"
	foreign []string // objects that somebody else owns than its owner or a superuser
}

// look reads the schema from the catalogs. The version is in the text of a function that is made of constants.
func look(ctx context.Context, tx pgx.Tx) (schema, error) {
	const sqlLook = `
WITH objects AS (
    SELECT CASE c.relkind WHEN 'S' THEN 'sequence ' WHEN 'r' THEN 'table ' WHEN 'v' THEN 'view ' ELSE 'relation ' END || c.relname AS name,
           c.relnamespace AS schema, c.relowner AS owner
    FROM pg_class AS c WHERE c.relkind NOT IN ('i', 'I', 't')
    UNION ALL
    SELECT 'function ' || f.proname, f.pronamespace, f.proowner FROM pg_proc AS f
    UNION ALL
    SELECT 'type ' || y.typname, y.typnamespace, y.typowner FROM pg_type AS y WHERE y.typelem = 0 AND y.typrelid = 0
    UNION ALL
    SELECT 'operator ' || o.oprname, o.oprnamespace, o.oprowner FROM pg_operator AS o)
SELECT coalesce(r.rolname, ''),
       n.nspowner IN (` + sqlTrusted + `),
       coalesce(r.rolname = current_user OR r.rolsuper AND m.rolsuper, false),
       coalesce((SELECT pg_get_function_sqlbody(f.oid) FROM pg_proc AS f
                  WHERE f.pronamespace = n.oid AND f.proname = 'schema_version' AND f.pronargs = 0), ''),
       ARRAY(SELECT DISTINCT b.name FROM objects AS b WHERE b.schema = n.oid ORDER BY 1),
       ARRAY(SELECT DISTINCT b.name FROM objects AS b LEFT JOIN pg_roles AS w ON w.oid = b.owner
              WHERE b.schema = n.oid AND b.owner <> n.nspowner AND w.rolsuper IS NOT TRUE ORDER BY 1)
FROM pg_namespace AS n
JOIN pg_roles AS m ON m.rolname = current_user
LEFT JOIN pg_roles AS r ON r.oid = n.nspowner
WHERE n.nspname = 'pgbaton'`
	s := schema{exists: true, version: -1}
	var body string
	err := tx.QueryRow(ctx, sqlLook).Scan(&s.owner, &s.trusted, &s.mine, &body, &s.objects, &s.foreign)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return schema{}, nil
	case err != nil:
		return schema{}, fmt.Errorf("look at the schema pgbaton: %w", err)
	}
	if match := versionInBody.FindStringSubmatch(body); match != nil {
		s.version, err = strconv.ParseInt(match[1], 10, 64)
	}
	return s, err
}

var versionInBody = regexp.MustCompile(`^\s*BEGIN ATOMIC\s+SELECT (\d{1,9})(?: AS \w+)?,`)

// portable reports whether it is the schema of the portable set.
func (s schema) portable() bool { return slices.Contains(s.objects, "table portable") }

// judge reports why nothing should be done with what was found.
func judge(recorded row, found schema, files []migration, p place) error {
	switch {
	case !found.exists:
		return nil // whatever the row says
	case !found.trusted:
		return refuse(lockerr.Schema, "the schema pgbaton belongs to role %s, who is %s and could have put anything into it: if that role "+
			"should own it, migrate as that role; else see what is in it, and drop it", quote(found.owner), p.neither())
	case found.version < 0 && len(found.objects) == 0:
		return refuse(lockerr.Schema, "there is an empty schema pgbaton already, and the first migration makes it: DROP SCHEMA pgbaton")
	case found.version < 0:
		return refuse(lockerr.Schema, "the schema pgbaton is not what the migrations make: it has no function schema_version() that says a "+
			"version. Rename it if it is something else's; else restore it, or drop it, and migrate again")
	}
	whole := made(files, found.version)
	if missing := without(whole, found.objects); len(missing) > 0 && found.version <= newest(files) {
		return refuse(lockerr.Schema, "the schema pgbaton says version %d, but lacks %s: something dropped that, or restored the rest. "+
			"Restore it too; or DROP SCHEMA pgbaton CASCADE, which forgets semaphores, leaders, jobs and fences, and migrate again",
			found.version, strings.Join(missing, ", "))
	}
	if !recorded.dirty {
		return nil
	}
	reason := ""
	later := slices.DeleteFunc(made(files, newest(files)), func(name string) bool {
		return !slices.Contains(found.objects, name) || slices.Contains(whole, name)
	})
	switch {
	case max(recorded.version, found.version) > newest(files):
		reason = "this program does not know that version"
	case len(later) > 0:
		reason = "it has " + strings.Join(later, ", ") + " of a later version"
	default:
		return nil // a file is one transaction: what the schema says is whole
	}
	return refuse(lockerr.Schema, "version %d in %s is dirty: another tool began it and did not finish. The schema says version %d, but that "+
		"does not prove how much of the other one is there: %s. Complete or undo it by hand, and then set the row to the version "+
		"that is there and dirty to false (golang-migrate: force)",
		recorded.version, p.table(), found.version, reason)
}

// refuseToAlter reports why files may not be applied to the schema by the migrating role.
func (s schema) refuseToAlter(p place) error {
	switch {
	case !s.exists:
		return nil
	case !s.mine:
		return refuse(lockerr.Schema, "the schema pgbaton belongs to role %s, and what %s adds would run code of that role, or "+
			"belong to somebody else than the rest: migrate as %[1]s (SET ROLE)", quote(s.owner), quote(p.role))
	case len(s.foreign) > 0:
		return refuse(lockerr.Schema, "others than its owner %s own things in the schema pgbaton, and a migration could run their code: %s. "+
			"Drop them, or move them to another schema", quote(s.owner), strings.Join(s.foreign, ", "))
	}
	return nil
}

func newest(files []migration) int64 {
	if len(files) == 0 {
		return 0
	}
	return files[len(files)-1].version
}

var statement = regexp.MustCompile(`^ *(CREATE|DROP) (?:OR REPLACE )?(?:UNLOGGED )?(TABLE|SEQUENCE|FUNCTION|VIEW) (?:IF (?:NOT )?EXISTS )?pgbaton\.(\w+)`)

// made lists the tables, sequences, functions and views that the files up to a version make, read off their statements, which
// begin a line, and those of views stand indented in a function.
func made(files []migration, version int64) []string {
	var names []string
	for _, file := range files {
		if file.version > version {
			break
		}
		for line := range strings.Lines(file.sql) {
			match := statement.FindStringSubmatch(line)
			if match == nil {
				continue
			}
			name := strings.ToLower(match[2]) + " " + match[3]
			names = slices.DeleteFunc(names, func(n string) bool { return n == name })
			if match[1] == "CREATE" {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// without are the names that are not among the others.
func without(names, others []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(others, name) })
}
