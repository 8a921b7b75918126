package sqltext_test

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/pgbaton/pgbaton/internal/sqltext"
)

// quoted is PostgreSQL's delimited identifier: any characters between quotes, a quote inside is doubled.
var quoted = regexp.MustCompile(`"(?:[^"]|"")+"`)

// skeleton splits a statement into the names that a server would read in it and the rest.
func skeleton(text string) (names []string, rest string) {
	for _, name := range quoted.FindAllString(text, -1) {
		names = append(names, strings.ReplaceAll(name[1:len(name)-1], `""`, `"`))
	}
	return names, quoted.ReplaceAllString(text, "@")
}

func FuzzTable(f *testing.F) {
	f.Add("public", "accounts")
	f.Add(`a"b`, `"; DROP TABLE x; --`)
	f.Add("a.b", "Ünï\u2028")
	f.Add("", "x")
	f.Add("a\x00b", "\xff")
	f.Fuzz(func(t *testing.T, schema, table string) {
		text, err := sqltext.Table(pgx.Identifier{schema, table})
		if sqltext.CheckName(schema) != nil || sqltext.CheckName(table) != nil {
			require.Error(t, err)
			return
		}
		require.NoError(t, err)
		names, rest := skeleton(text)
		require.Equal(t, []string{schema, table}, names)
		require.Equal(t, "@.@", rest)
		one, err := sqltext.Table(pgx.Identifier{table})
		require.NoError(t, err)
		require.Equal(t, pgx.Identifier{table}.Sanitize(), one)
	})
}

func FuzzConditions(f *testing.F) {
	f.Add("id", "tenant", "1", "2")
	f.Add(`a"b`, `x" = 1 OR "y`, "' OR true --", `$1`)
	f.Add("a", "a", "", "\x00")
	f.Add("$1", "/*", "*/", ";")
	f.Add("", "b", "x", "y")
	f.Fuzz(func(t *testing.T, a, b, x, y string) {
		first := map[string]any{a: x, b: y}
		columns, err := sqltext.KeyColumns(first)
		if sqltext.CheckName(a) != nil || sqltext.CheckName(b) != nil {
			require.Error(t, err)
			return
		}
		require.NoError(t, err)
		require.True(t, slices.IsSorted(columns))
		one := "@ = $1"
		const begin, end = "ROWS FROM (", ") WITH ORDINALITY AS pgbaton_keys ("
		two := begin + "pg_catalog.unnest(ARRAY[(SELECT @ FROM t LIMIT 0), $1, $2, $3, $4])" + end + "c0, n)"
		set := "@ = $1"
		if a != b {
			one = "@ = $1 AND @ = $2"
			two = begin + "pg_catalog.unnest(ARRAY[(SELECT @ FROM t LIMIT 0), $1, $2, $3, $4]), " +
				"pg_catalog.unnest(ARRAY[(SELECT @ FROM t LIMIT 0), $5, $6, $7, $8])" + end + "c0, c1, n)"
			set = "@ = $1, @ = $2"
		}

		check := func(want string, build func(args *sqltext.Args) (string, error)) {
			var args sqltext.Args
			text, err := build(&args)
			require.NoError(t, err)
			names, rest := skeleton(text)
			require.Equal(t, columns, names)
			require.Equal(t, want, rest)
			require.Equal(t, first[columns[0]], args.Values()[0])
		}
		check(one, func(args *sqltext.Args) (string, error) { return sqltext.KeyEquals(args, columns, first) })
		check(set, func(args *sqltext.Args) (string, error) {
			setColumns, err := sqltext.SetColumns(first)
			require.NoError(t, err)
			return sqltext.Equations(setColumns, 1, ", "), args.AddAll(setColumns, first)
		})
		require.Equal(t, a == b, string(sqltext.AppendKey(nil, a, b)) == string(sqltext.AppendKey(nil, b, a)))
		check(two, func(args *sqltext.Args) (string, error) {
			return sqltext.Keys(args, "t", columns, []map[string]any{first, first, first})
		})
	})
}

func FuzzPlaceholders(f *testing.F) {
	f.Add("state = $1 AND $tag$ $2 $tag$ = 'a' /* /* */ $3 */ -- $4", 1)
	f.Add(`E'\'`, 0)
	f.Add("$", 0)
	f.Add("$a", 0)
	f.Fuzz(func(t *testing.T, sql string, args int) {
		_ = sqltext.CheckPlaceholders(sql, min(max(args, 0), 100)) // returns
	})
}

func FuzzAtPosition(f *testing.F) {
	f.Add(`SELECT "a""b"."c" FROM "d"`, 8)
	f.Add(`"`, 1)
	f.Add("x", -1)
	f.Fuzz(func(t *testing.T, text string, position int) {
		token := sqltext.AtPosition(text, position)
		require.True(t, token == "" || strings.HasPrefix(token, `"`))
	})
}

func TestArgs(t *testing.T) {
	t.Parallel()
	t.Run("RefusesOptionsOfPgx", func(t *testing.T) {
		t.Parallel()
		options := []any{
			pgx.NamedArgs{"a": 1},
			pgx.StrictNamedArgs{},
			pgx.QueryExecModeSimpleProtocol,
			pgx.QueryResultFormats{1},
			pgx.QueryResultFormatsByOID{1: 1},
		}
		for _, value := range options {
			var args sqltext.Args
			_, err := args.Add(value)
			require.ErrorContains(t, err, "is an option of a query")
		}
	})
	t.Run("RefusesTooMany", func(t *testing.T) {
		t.Parallel()
		var args sqltext.Args
		for i := range 65535 {
			placeholder, err := args.Add(i)
			require.NoError(t, err)
			require.Equal(t, "$"+strconv.Itoa(i+1), placeholder)
		}
		_, err := args.Add(0)
		require.ErrorContains(t, err, "more than 65535 values")
	})
}

func TestCache(t *testing.T) {
	t.Parallel()
	var cache sqltext.Cache[int]
	for i := range 5000 {
		cache.Put(sqltext.AppendKey(nil, strconv.Itoa(i)), i)
	}
	value, ok := cache.Get(sqltext.AppendKey(nil, "4999"))
	require.True(t, ok)
	require.Equal(t, 4999, value)
	kept := 0
	for i := range 5000 {
		if _, ok = cache.Get(sqltext.AppendKey(nil, strconv.Itoa(i))); ok {
			kept++
		}
	}
	require.Equal(t, 1000, kept, "it is bounded")
	cache.Delete(sqltext.AppendKey(nil, "4999"))
	_, ok = cache.Get(sqltext.AppendKey(nil, "4999"))
	require.False(t, ok)
	require.NotEqual(t, sqltext.AppendKey(nil, "a", "b"), sqltext.AppendKey(sqltext.AppendKey(nil, "a"), "b"))
}

func TestAtPosition(t *testing.T) {
	t.Parallel()
	require.Equal(t, `"a""b"."c"`, sqltext.AtPosition(`SELECT "ö"`+"\n"+`FROM "a""b"."c" WHERE`, 17))
	require.Empty(t, sqltext.AtPosition(`SELECT 1`, 8))
	require.Empty(t, sqltext.AtPosition(`SELECT 1`, 99))
}

func TestCheckPlaceholders(t *testing.T) {
	t.Parallel()
	t.Run("Fit", func(t *testing.T) {
		t.Parallel()
		for sql, args := range map[string]int{
			"":                         0,
			"a = $1 OR b = $2 OR $1":   2,
			"'$2' = $1":                1,
			"'it''s $2' = $1":          1,
			`E'it\'s $2' = $1`:         1,
			`E'it''s $2' = $1`:         1,
			`"$2" = $1`:                1,
			"a = $1 -- $2":             1,
			"a -- $2\n = $1":           1,
			"/* $2 /* $3 */ $4 */ $1":  1,
			"$$ $2 $$ = $1":            1,
			"$t1$ $2 $$ $t1$ = $1":     1,
			"a$2 = $1":                 1,
			"price$ > $1":              1,
			"ARRAY[$1,$2][1] = 3 + $3": 3,
			"état$2 = $1":              1,
			"`$1":                      1,
		} {
			require.NoError(t, sqltext.CheckPlaceholders(sql, args), sql)
		}
	})
	t.Run("DoNotFit", func(t *testing.T) {
		t.Parallel()
		for sql, text := range map[string]string{
			"a = $1 AND b = $2":       "$2 is used, and there are 1 arguments",
			"a = 1":                   "argument 1 is given, and $1 is not used",
			"'$1' = a":                "$1 is not used",
			"$1 = $0":                 "$0 is no placeholder",
			"$1 = $99999999999999999": "is used, and there are 1 arguments",
		} {
			require.ErrorContains(t, sqltext.CheckPlaceholders(sql, 1), text, sql)
		}
	})
}

func TestCheckName(t *testing.T) {
	t.Parallel()
	require.NoError(t, sqltext.CheckName(strings.Repeat("a", 63)))
	require.ErrorContains(t, sqltext.CheckName(strings.Repeat("a", 64)), "has 64 bytes: PostgreSQL would cut it off after 63")
	require.ErrorContains(t, sqltext.CheckName(strings.Repeat("\u00fc", 32)), "has 64 bytes")
	_, err := sqltext.Table(pgx.Identifier{"public", strings.Repeat("a", 64)})
	require.ErrorContains(t, err, "has 64 bytes")
}
