package mutation_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv"
)

// mutant is one change and the tests that must fail with it.
type mutant struct {
	name     string
	file     string
	old, new string
	pkg, run string
}

// root is the module's folder.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	require.NoError(t, err)
	return dir
}

// overlay writes what the compiler is to read instead of the mutant's file.
func (m *mutant) overlay(t *testing.T) string {
	t.Helper()
	file := filepath.Join(root(t), m.file)
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(text), m.old), "%s: these lines are there once, or the list is out of date:\n%s", m.file, m.old)
	dir := t.TempDir()
	changed := filepath.Join(dir, filepath.Base(m.file))
	require.NoError(t, os.WriteFile(changed, []byte(strings.Replace(string(text), m.old, m.new, 1)), 0o600))
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{file: changed}})
	require.NoError(t, err)
	name := filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(name, replace, 0o600))
	return name
}

// The list follows the code, in short tests too.
func TestEveryMutationAppliesToTheCode(t *testing.T) {
	t.Parallel()
	for _, m := range slices.Concat(mutants, faults, rules) {
		t.Run(m.name, func(t *testing.T) { m.overlay(t) })
	}
}

func TestEveryMutationIsNoticed(t *testing.T) {
	testenv.Full(t)
	for _, m := range slices.Concat(mutants, faults, rules) {
		t.Run(m.name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-run", m.run, "./"+m.pkg)
			cmd.Dir = root(t)
			// Of tests that build the processor, too.
			cmd.Env = append(os.Environ(), "TEST_FULL=", "TEST_SLOW=1", "GOFLAGS="+os.Getenv("GOFLAGS")+" -overlay="+m.overlay(t), "PROCESSOR_TEST_FOLDER="+t.TempDir())
			out, err := cmd.CombinedOutput()
			require.Error(t, err, "survives:\n%s", out)
			require.Contains(t, string(out), "--- FAIL", "it has to compile and to fail")
		})
	}
}
