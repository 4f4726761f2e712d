package archtest_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/trmtracking/processor/"

// rule says who may import what.
type rule struct {
	imports []string // import paths, with all below them
	by      []string // folders, with all below them, or files
	tests   bool     // _test.go files are bound by it as well
	remedy  string
}

func rules() []rule {
	return []rule{
		{
			imports: []string{"go.uber.org/fx", "go.uber.org/dig"},
			by:      []string{"modules", "cmd"},
			tests:   true,
			remedy:  "take what you need as constructor parameters; modules/ wires",
		},
		{
			imports: []string{"github.com/redis/go-redis"},
			by: []string{
				"internal/stream", "internal/devenv", "internal/testenv", "modules",
				"coordination/lock.go", "coordination/membership.go", "loadtest/fleet/publisher.go",
			},
			remedy: "declare a small interface; internal/stream speaks to Redis",
		},
		{
			imports: []string{"github.com/bsm/redislock"},
			by:      []string{"coordination/lock.go", "modules"},
			remedy:  "declare a small interface; coordination/lock.go holds the lock",
		},
		{
			imports: []string{"github.com/pressly/goose", "database/sql"},
			by:      []string{"internal/store/schema", "internal/devenv", "internal/testenv"},
			remedy:  "internal/store/schema is the only place that migrates",
		},
		{
			imports: []string{"github.com/jackc/pgx"},
			by:      []string{"internal/store", "internal/devenv", "internal/testenv", "internal/fault", "internal/operator", "modules", "loadtest/ceiling", "loadtest/observer"},
			remedy:  "add a method to internal/store, the only place that writes SQL",
		},
		{
			imports: []string{module + "internal/testenv"},
			by:      []string{"internal/testenv"},
			remedy:  "testenv is for _test.go files; internal/devenv starts servers for programs",
		},
		{
			imports: []string{module + "modules"},
			by:      []string{"modules", "cmd"},
			remedy:  "nothing imports the wiring but cmd/",
		},
	}
}

// closed lists packages that no driver may reach, however indirectly.
func closed() map[string][]string {
	redis, postgres := "github.com/redis/go-redis", "github.com/jackc/pgx"
	return map[string][]string{
		"internal/telemetry":  {redis, postgres, "github.com/prometheus/client_golang"},
		"internal/geofence":   {redis, postgres},
		"internal/httpserver": {redis, postgres},
		"internal/stream":     {postgres},
		"internal/store":      {redis},
		"pipeline":            {redis, postgres},
		"coordination":        {postgres},
	}
}

// equipment is what only tests and load tests need; programs that serve do not
// link it.
func equipment() []string {
	return []string{"loadtest", "internal/devenv", "internal/testenv", "internal/protocol/sim"}
}

// foreign lists the files of the oracle, and of the second derivation that it has in
// common with `processor device verify`, that import more of this module than these
// two and what was sent: what they judge must not judge itself.
func foreign(all []source) []string {
	allowed := map[string][]string{"loadtest/oracle": {"loadtest/fleet", "internal/recheck"}, "internal/recheck": nil}
	var found []string
	for _, s := range all {
		for _, imported := range s.imports {
			own, ok := strings.CutPrefix(imported, module)
			for place, may := range allowed {
				if ok && !s.isTest() && within(s.file, place) && !slices.Contains(may, own) {
					found = append(found, s.file+" imports "+imported+": what checks the service knows the rules from the documents, write it again")
				}
			}
		}
	}
	return found
}

// source is one Go file of the module.
type source struct {
	file    string // with slashes, from the module's root
	imports []string
}

func (s source) isTest() bool { return strings.HasSuffix(s.file, "_test.go") }

// sources reads the imports of every Go file below root.
func sources(t *testing.T, root string) []source {
	t.Helper()
	var all []source
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if skipped := strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata" || entry.Name() == "bin"; entry.IsDir() && skipped && name != root {
			return filepath.SkipDir
		}
		if entry.IsDir() || filepath.Ext(name) != ".go" {
			return nil
		}
		parsed, err := parser.ParseFile(fset, name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		s := source{file: filepath.ToSlash(rel)}
		for _, spec := range parsed.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, imported)
		}
		all = append(all, s)
		return nil
	})
	require.NoError(t, err)
	return all
}

// within tells whether name is the place or lies below it.
func within(name, place string) bool {
	return name == place || strings.HasPrefix(name, place+"/")
}

func broken(all []source) []string {
	var found []string
	for _, s := range all {
		for _, r := range rules() {
			allowed := slices.ContainsFunc(r.by, func(place string) bool { return within(s.file, place) })
			if allowed || s.isTest() && !r.tests {
				continue
			}
			for _, imported := range s.imports {
				if slices.ContainsFunc(r.imports, func(banned string) bool { return within(imported, banned) }) {
					found = append(found, s.file+" imports "+imported+": "+r.remedy)
				}
			}
		}
	}
	return found
}

// reaching lists, for each closed package, the way to a package it must not
// depend on.
func reaching(all []source) []string {
	graph := make(map[string][]string) // imports by folder, tests left out
	for _, s := range all {
		if !s.isTest() {
			graph[path.Dir(s.file)] = append(graph[path.Dir(s.file)], s.imports...)
		}
	}
	var found []string
	for place, banned := range closed() {
		for folder := range graph {
			if !within(folder, place) {
				continue
			}
			seen := map[string]bool{}
			var walk func(folder, way string)
			walk = func(folder, way string) {
				if seen[folder] {
					return
				}
				seen[folder] = true
				for _, imported := range graph[folder] {
					if own, ok := strings.CutPrefix(imported, module); ok {
						walk(own, way+" -> "+own)
					} else if slices.ContainsFunc(banned, func(b string) bool { return within(imported, b) }) {
						found = append(found, way+" -> "+imported)
					}
				}
			}
			walk(folder, folder)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// linked lists the ways on which a program comes to a package that it must not link.
func linked(all []source, program string, banned []string) []string {
	graph := make(map[string][]string) // imports within the module, by folder, tests left out
	for _, s := range all {
		for _, imported := range s.imports {
			if own, ok := strings.CutPrefix(imported, module); ok && !s.isTest() {
				graph[path.Dir(s.file)] = append(graph[path.Dir(s.file)], own)
			}
		}
	}
	var found []string
	seen := map[string]bool{}
	var walk func(folder, way string)
	walk = func(folder, way string) {
		if seen[folder] {
			return
		}
		seen[folder] = true
		if slices.ContainsFunc(banned, func(b string) bool { return within(folder, b) }) {
			found = append(found, way)
			return
		}
		for _, own := range graph[folder] {
			walk(own, way+" -> "+own)
		}
	}
	walk(program, program)
	slices.Sort(found)
	return found
}

// Promises 1, 2 and 4.
func TestEachImportIsAllowedWhereItIs(t *testing.T) {
	t.Parallel()
	require.Empty(t, broken(thisModule(t)))
}

// Promise 3.
func TestNoDriverReachesTheDomainThroughAnotherPackage(t *testing.T) {
	t.Parallel()
	require.Empty(t, reaching(thisModule(t)))
}

// Promise 6.
func TestTheServiceLinksNoTestEquipment(t *testing.T) {
	t.Parallel()
	all := thisModule(t)
	require.Empty(t, linked(all, "cmd/processor", equipment()))
	require.NotEmpty(t, linked(all, "cmd/loadtest", equipment()), "the load test does, or the search finds nothing")
	require.Equal(t, []string{"cmd/processor -> internal/cli -> loadtest/demo"}, linked([]source{
		{file: "cmd/processor/main.go", imports: []string{module + "internal/cli", "context"}},
		{file: "cmd/processor/main_test.go", imports: []string{module + "internal/testenv"}},
		{file: "internal/cli/cli.go", imports: []string{module + "loadtest/demo"}},
	}, "cmd/processor", equipment()))
}

// Promise 7.
func TestTheOracleSharesNoCodeWithWhatItJudges(t *testing.T) {
	t.Parallel()
	require.Empty(t, foreign(thisModule(t)))
	require.Len(t, foreign([]source{
		{file: "loadtest/oracle/a.go", imports: []string{module + "internal/geofence", module + "loadtest/fleet", "math/big"}},
		{file: "loadtest/oracle/a_test.go", imports: []string{module + "internal/telemetry"}},
		{file: "loadtest/oracle/below/a.go", imports: []string{module + "internal/store"}},
		{file: "loadtest/a.go", imports: []string{module + "internal/store"}},
		{file: "loadtest/oracle/b.go", imports: []string{module + "internal/recheck"}},
		{file: "internal/recheck/a.go", imports: []string{module + "internal/geofence", "math/big"}},
		{file: "internal/recheck/b.go", imports: []string{module + "loadtest/fleet"}},
		{file: "internal/store/a.go", imports: []string{module + "internal/recheck"}},
	}), 4)
}

func TestRulesFindWhatTheyForbid(t *testing.T) {
	t.Parallel()
	require.Len(t, broken([]source{
		{file: "pipeline/a.go", imports: []string{"github.com/redis/go-redis/v9", "context"}},
		{file: "coordination/members.go", imports: []string{"github.com/redis/go-redis/v9"}},
		{file: "pipeline/a_test.go", imports: []string{"go.uber.org/fx/fxtest"}},
		{file: "loadtest/a.go", imports: []string{"github.com/jackc/pgx/v5/pgxpool"}},
		{file: "loadtest/b.go", imports: []string{module + "internal/testenv"}},
	}), 5)
	require.Empty(t, broken([]source{
		{file: "coordination/lock.go", imports: []string{"github.com/redis/go-redis/v9"}},
		{file: "modules/app.go", imports: []string{"go.uber.org/fx", "github.com/jackc/pgx/v5"}},
		{file: "pipeline/a_test.go", imports: []string{"github.com/jackc/pgx/v5", module + "internal/testenv"}},
	}))
	require.Equal(t, []string{"pipeline -> internal/config -> internal/store -> github.com/jackc/pgx/v5"}, reaching([]source{
		{file: "pipeline/a.go", imports: []string{module + "internal/config"}},
		{file: "internal/config/a.go", imports: []string{module + "internal/store"}},
		{file: "internal/store/a.go", imports: []string{"github.com/jackc/pgx/v5"}},
	}))
}

// thisModule reads this module; a run that finds no files proves nothing.
func thisModule(t *testing.T) []source {
	t.Helper()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	_, err = os.Stat(filepath.Join(root, "go.mod"))
	require.NoError(t, err)
	all := sources(t, root)
	require.Greater(t, len(all), 20)
	return all
}
