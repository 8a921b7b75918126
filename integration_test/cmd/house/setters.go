package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"strings"
)

// setters finds exported fields with which one package could be told of another after it was made.
func setters(plan *plan, packages map[string]*pkg) []error {
	var wrong []error
	for name, p := range sorted(packages) {
		if p.door {
			continue // its types are the users'
		}
		files, err := parse(p)
		if err != nil {
			return append(wrong, err)
		}
		interfaces := interfacesOf(files)
		for _, file := range files {
			for spec, fields := range structs(file) {
				typeName := path.Base(name) + "." + spec.Name.Name
				if strings.HasSuffix(spec.Name.Name, "Config") || plan.values[typeName] {
					continue
				}
				for _, field := range fields {
					for _, ident := range field.Names {
						if ident.IsExported() && holdsCode(field.Type, interfaces) {
							wrong = append(wrong, fmt.Errorf("%s.%s in package %s is a setter: give it when the value is made",
								spec.Name.Name, ident.Name, name))
						}
					}
				}
			}
		}
	}
	return wrong
}

func parse(p *pkg) ([]*ast.File, error) {
	var files []*ast.File
	for _, name := range p.files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

// types calls yield for each type that a file declares at its top level.
func types(file *ast.File, yield func(*ast.TypeSpec)) {
	for _, decl := range file.Decls {
		if gen, ok := decl.(*ast.GenDecl); ok && gen.Tok == token.TYPE {
			for _, spec := range gen.Specs {
				if t, ok := spec.(*ast.TypeSpec); ok {
					yield(t)
				}
			}
		}
	}
}

func interfacesOf(files []*ast.File) map[string]bool {
	found := map[string]bool{}
	for _, file := range files {
		types(file, func(t *ast.TypeSpec) {
			if _, ok := t.Type.(*ast.InterfaceType); ok {
				found[t.Name.Name] = true
			}
		})
	}
	return found
}

func structs(file *ast.File) map[*ast.TypeSpec][]*ast.Field {
	found := map[*ast.TypeSpec][]*ast.Field{}
	types(file, func(t *ast.TypeSpec) {
		if s, ok := t.Type.(*ast.StructType); ok && t.Name.IsExported() {
			found[t] = s.Fields.List
		}
	})
	return found
}

// holdsCode reports whether a field of this type leads to code of another package: it is a func, or one of the package's
// own interfaces, which others implement.
func holdsCode(t ast.Expr, interfaces map[string]bool) bool {
	switch t := t.(type) {
	case *ast.FuncType, *ast.InterfaceType:
		return true
	case *ast.Ident:
		return interfaces[t.Name]
	}
	return false
}
