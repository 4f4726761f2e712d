package mutation_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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

// test runs the tests of a mutant, with its overlay or with none.
func (m *mutant) test(t *testing.T, flags ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-v", "-run", m.run, "./"+m.pkg)
	cmd.Dir = root(t)
	// Of tests that build the processor, too.
	cmd.Env = append(os.Environ(), "TEST_FULL=", "TEST_SLOW=1", "PROCESSOR_TEST_FOLDER="+t.TempDir(),
		"GOFLAGS="+strings.Join(append([]string{os.Getenv("GOFLAGS")}, flags...), " "))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// ended reports whether one of the tests that the mutant names ended with PASS, FAIL or SKIP.
func (m *mutant) ended(with, out string) bool {
	tests, _, _ := strings.Cut(m.run, "/")
	return regexp.MustCompile("(?m)^--- " + with + ": (" + tests + ")").MatchString(out)
}

func TestAMutationIsNoticedByItsOwnTests(t *testing.T) {
	t.Parallel()
	m := mutant{run: "TestA|TestB/(x|y)$"}
	for out, want := range map[string]bool{
		"=== RUN TestA\n--- FAIL: TestAll (0.00s)\n": true, "--- FAIL: TestB (0.00s)\n    --- FAIL: TestB/x (0.00s)\n": true,
		"--- FAIL: TestC (0.00s)\n": false, "--- PASS: TestA (0.00s)\n": false, "    --- FAIL: TestA (0.00s)\n": false, "FAIL": false,
	} {
		require.Equal(t, want, m.ended("FAIL", out), out)
	}
}

func TestEveryMutationIsNoticed(t *testing.T) {
	testenv.Full(t)
	type tests struct{ pkg, run string }
	sound := make(map[tests]string) // what is wrong with them without any mutation
	for _, m := range slices.Concat(mutants, faults, rules) {
		t.Run(m.name, func(t *testing.T) {
			key := tests{m.pkg, m.run}
			wrong, known := sound[key]
			if !known {
				if out, err := m.test(t); err != nil || !m.ended("PASS", out) || m.ended("SKIP", out) {
					wrong = "they fail or are skipped without it too:\n" + out
				}
				sound[key] = wrong
			}
			require.Empty(t, wrong)
			out, err := m.test(t, "-overlay="+m.overlay(t))
			require.Error(t, err, "survives:\n%s", out)
			require.True(t, m.ended("FAIL", out), "it has to compile, and its test to fail:\n%s", out)
		})
	}
}
