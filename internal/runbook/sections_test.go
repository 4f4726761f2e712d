package runbook_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// constants is the text constants of a file whose names begin with a prefix.
func constants(t *testing.T, path, prefix string) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	require.NoError(t, err)
	found := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, prefix) || len(spec.Values) != 1 {
			return true
		}
		if lit, ok := spec.Values[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
			found[spec.Names[0].Name], err = strconv.Unquote(lit.Value)
			require.NoError(t, err)
		}
		return true
	})
	require.NotEmpty(t, found)
	return found
}

func TestEachFindingAndIncidentLeadsToAPage(t *testing.T) {
	b := readBook(t)
	for name, page := range constants(t, "../operator/doctor_sections.go", "section") {
		require.Contains(t, b.text, pagePath(page), "%s leads to a page that does not exist", name)
	}
	for name, kind := range constants(t, "../../internal/protocol/incident.go", "") {
		require.Contains(t, b.text["docs/reference/incidents.md"], "| `"+kind+"` |", name)
	}
	for name, state := range constants(t, "../../internal/protocol/wait.go", "Wait") {
		require.Contains(t, b.text["docs/reference/waits.md"], "| `"+state+"` |", name)
	}
}

// Whatever opens an incident takes its kind from the list, or was handed it.
func TestNoIncidentIsOpenedOutsideTheList(t *testing.T) {
	kinds := constants(t, "../../internal/protocol/incident.go", "")
	seen := map[string]bool{}
	for _, dir := range []string{"coordination", "coordination/tasks", "internal/store", "pipeline", "modules"} {
		files, err := filepath.Glob("../../" + dir + "/*.go")
		require.NoError(t, err)
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, path, nil, 0)
			require.NoError(t, err)
			ast.Inspect(file, func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok && kinds[sel.Sel.Name] != "" {
					seen[sel.Sel.Name] = true
				}
				call, ok := n.(*ast.CallExpr)
				if !ok || len(call.Args) != 4 {
					return true
				}
				sel, ok := call.Fun.(*ast.SelectorExpr)
				if !ok || sel.Sel.Name != "Open" && sel.Sel.Name != "incident" {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "operator" { // it opens a fleet
					return true
				}
				if sel, ok := call.Fun.(*ast.SelectorExpr); ok && fmt.Sprint(sel.X) == "operator" {
					return true // opens a fleet
				}
				where := set.Position(call.Pos())
				switch kind := call.Args[1].(type) {
				case *ast.SelectorExpr:
					require.Contains(t, kinds, kind.Sel.Name, "%s", where)
				case *ast.Ident:
					require.Equal(t, "kind", kind.Name, "%s: an incident of a kind that protocol/incident.go does not list", where)
				default:
					require.Fail(t, "an incident of a kind that protocol/incident.go does not list", "%s", where)
				}
				return true
			})
		}
	}
	require.NotEmpty(t, seen)
	for name := range kinds {
		require.True(t, seen[name] || strings.HasPrefix(name, "Group") || name == "RedisLost", "nobody opens %s", name)
	}
}
