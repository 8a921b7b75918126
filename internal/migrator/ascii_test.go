package migrator

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var notASCII = regexp.MustCompile(`[^\x00-\x7f]`)

// looksLikeSQL is what a statement or a piece of one has.
var looksLikeSQL = regexp.MustCompile(`(?s)^\s*(--[^\n]*\n\s*)*(SELECT|WITH|INSERT|UPDATE|DELETE|CREATE|DROP|ALTER|SET|SHOW|LOCK|GRANT|REVOKE|BEGIN|COMMIT|LISTEN|NOTIFY|DO|CALL|VALUES|FROM|WHERE|JOIN)\s.*`)

// A database may have an encoding that lacks a character, be it in a comment: there is nothing but ASCII in what is sent.
func TestSQL_ASCII(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	statements, files := 0, 0
	require.NoError(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata" || entry.Name() == "bin"):
			return fs.SkipDir
		case strings.HasSuffix(path, ".sql"):
			files++
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NotRegexp(t, notASCII, string(text), path)
		case strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go"):
			statements += requireASCII(t, path)
		}
		return nil
	}))
	require.Greater(t, files, 10)
	require.Greater(t, statements, 50, "statements were not recognised")
}

func requireASCII(t *testing.T, path string) (statements int) {
	t.Helper()
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, path, nil, 0)
	require.NoError(t, err)
	ast.Inspect(file, func(node ast.Node) bool {
		literal, ok := node.(*ast.BasicLit)
		if !ok || literal.Kind != token.STRING {
			return true
		}
		text, err := strconv.Unquote(literal.Value)
		require.NoError(t, err)
		if looksLikeSQL.MatchString(text) {
			statements++
			require.NotRegexp(t, notASCII, text, fset.Position(literal.Pos()).String())
		}
		return true
	})
	return statements
}
