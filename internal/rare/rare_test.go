package rare_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/rare"
)

func TestWhatIsMissingIsNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, string(rare.Fenced)), []byte("++"), 0o600))
	counts, err := rare.Read(dir)
	require.NoError(t, err)
	require.Equal(t, rare.Counts{rare.Fenced: 2}, counts)
	counts.Add(rare.Counts{rare.Fenced: 1, rare.Swept: 1})
	require.Equal(t, "commit-fenced 3, foreign-entries-swept 1", counts.String())
	require.Equal(t, []rare.Branch{rare.Halved, rare.SetAside}, counts.Missing([]rare.Branch{rare.SetAside, rare.Fenced, rare.Halved}))
	_, err = rare.Read(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// Only a build with the tag mutant counts, and every process in the same folder.
func TestProcessesOfOneBuildCountTogether(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run := func(tags string) {
		cmd := exec.CommandContext(t.Context(), "go", "run", "-tags", tags, "./testdata/count")
		cmd.Env = append(os.Environ(), rare.Env+"="+dir)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	run("")
	counts, err := rare.Read(dir)
	require.NoError(t, err)
	require.Empty(t, counts)
	run("mutant")
	run("mutant")
	counts, err = rare.Read(dir)
	require.NoError(t, err)
	require.Equal(t, rare.Counts{rare.Fenced: 2}, counts)
}
