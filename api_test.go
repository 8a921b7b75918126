package pgbaton_test

import (
	"bytes"
	"flag"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var updateAPI = flag.Bool("update-api", false, "write the exported surface to testdata/api.txt")

// TestAPI pins the exported surface: a change of it is meant, and goes into CHANGELOG.md. To accept one:
//
//	go test -run TestAPI -update-api .
func TestAPI(t *testing.T) {
	t.Parallel()
	const golden = "testdata/api.txt"
	surface := strings.Join(exported(t), "\n") + "\n"
	if *updateAPI {
		require.NoError(t, os.WriteFile(golden, []byte(surface), 0o600))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), surface)
	require.LessOrEqual(t, strings.Count(surface, "\n"), mostExported, "a surface that nobody can keep in mind")
}

// mostExported bounds the surface: functions, methods, types, constants and sentinels.
const mostExported = 120

// TestAPI_Examples holds that everything exported is shown by an example, a struct by its name or by one of its fields.
func TestAPI_Examples(t *testing.T) {
	t.Parallel()
	fset := token.NewFileSet()
	shown := map[string]bool{}
	paths, err := filepath.Glob("example*_test.go")
	require.NoError(t, err)
	for _, path := range paths {
		file, err := parser.ParseFile(fset, path, nil, 0)
		require.NoError(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			if ident, ok := n.(*ast.Ident); ok {
				shown[ident.Name] = true
			}
			return true
		})
	}
	unshown := []string{}
	for _, line := range exported(t) {
		name := exportedName.FindStringSubmatch(line)[1]
		fields := exportedField.FindAllStringSubmatch(line, -1)
		if !shown[name] && !slices.ContainsFunc(fields, func(field []string) bool { return shown[field[1]] }) {
			unshown = append(unshown, line)
		}
	}
	require.Empty(t, unshown)
}

// exportedName finds the name in a line of exported.
var exportedName = regexp.MustCompile(`^(?:func|type|var|const) (?:\([^)]*\) )?(\w+)`)

// exportedField finds the fields of a struct in a line of exported.
var exportedField = regexp.MustCompile(`([A-Z]\w*) [\w.*\[\]]+(?: |$)`)

// TestAPI_HandlesAreCovered holds that every exported function and method that takes a Tx or a Querier is called by the
// conformance suite, which is run over every handle: what works with pgx's types need not with lib/pq's.
func TestAPI_HandlesAreCovered(t *testing.T) {
	t.Parallel()
	fset := token.NewFileSet()
	called := map[string]bool{}
	for _, file := range parse(t, fset, "internal/testkit/rowtest/*.go") {
		ast.Inspect(file, func(n ast.Node) bool {
			if selector, ok := n.(*ast.SelectorExpr); ok {
				called[selector.Sel.Name] = true
			}
			return true
		})
	}
	handles := 0
	for _, file := range parse(t, fset, "*.go") {
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Name.IsExported() && takesHandle(f) {
				handles++
				require.True(t, called[f.Name.Name], "internal/testkit/rowtest does not call %s", f.Name.Name)
			}
		}
	}
	require.GreaterOrEqual(t, handles, 10)
}

// takesHandle says whether a function has a parameter of the type Tx or Querier.
func takesHandle(f *ast.FuncDecl) bool {
	for _, param := range f.Type.Params.List {
		if name, ok := param.Type.(*ast.Ident); ok && (name.Name == "Tx" || name.Name == "Querier") {
			return true
		}
	}
	return false
}

// parse parses the files of a pattern, but for tests.
func parse(t *testing.T, fset *token.FileSet, pattern string) []*ast.File {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	require.NoError(t, err)
	var files []*ast.File
	for _, path := range paths {
		if !strings.HasSuffix(path, "_test.go") {
			file, err := parser.ParseFile(fset, path, nil, 0)
			require.NoError(t, err)
			files = append(files, file)
		}
	}
	return files
}

// exported lists the package's exported declarations, each on a line.
func exported(t *testing.T) []string {
	t.Helper()
	fset := token.NewFileSet()
	files := parse(t, fset, "*.go")
	pkg, err := doc.NewFromFiles(fset, files, "github.com/pgbaton/pgbaton")
	require.NoError(t, err)
	var lines []string
	add := func(decl ast.Node) {
		var text bytes.Buffer
		require.NoError(t, printer.Fprint(&text, fset, decl))
		lines = append(lines, strings.Join(strings.Fields(text.String()), " "))
	}
	functions := func(all []*doc.Func) {
		for _, f := range all {
			add(f.Decl)
		}
	}
	values := func(all []*doc.Value) {
		for _, v := range all {
			for _, name := range v.Names {
				if ast.IsExported(name) {
					lines = append(lines, v.Decl.Tok.String()+" "+name)
				}
			}
		}
	}
	functions(pkg.Funcs)
	values(pkg.Vars)
	values(pkg.Consts)
	for _, typ := range pkg.Types {
		add(typ.Decl)
		functions(typ.Funcs)
		functions(typ.Methods)
		values(typ.Consts)
		values(typ.Vars)
	}
	slices.Sort(lines)
	return lines
}
