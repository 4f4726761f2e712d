package testbed

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestContainersSayThatTheyNeedAnEngine(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := OpenDocker(t.Context(), "any")
	require.ErrorIs(t, err, errNoDocker)
}

// A run that was killed leaves containers and a network; the next one removes them,
// and leaves those of a living run alone.
func TestLeftoversOfARunThatWasKilledAreRemoved(t *testing.T) {
	if _, err := dockerCommand(t.Context(), "version"); err != nil {
		t.Skipf("SKIPPED: there is no Docker engine: %v", err)
	}
	gone := exec.CommandContext(t.Context(), "true")
	require.NoError(t, gone.Run())
	dead := dockerLabel + "=" + strconv.Itoa(gone.Process.Pid)
	dir, image := t.TempDir(), "processor-loadtest-leftover:test"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY Dockerfile /\nCMD [\"/none\"]\n"), 0o600))
	t.Setenv("DOCKER_BUILDKIT", "0")
	_, err := dockerCommand(t.Context(), "build", "-q", "-t", image, dir)
	require.NoError(t, err)
	var ids []string
	for _, label := range []string{dead, ownLabel()} {
		network, err := dockerCommand(t.Context(), "network", "create", "--internal", "--label", label, "leftover-"+strconv.Itoa(len(ids)))
		require.NoError(t, err)
		container, err := dockerCommand(t.Context(), "create", "--label", label, "--network", network, image)
		require.NoError(t, err)
		ids = append(ids, container, network)
	}
	t.Cleanup(func() {
		for _, args := range [][]string{{"rm", "-f", ids[2]}, {"network", "rm", ids[3]}, {"image", "rm", "-f", image}} {
			_, err := dockerCommand(context.Background(), args...)
			require.NoError(t, err)
		}
	})
	removeLeftovers(t.Context())
	for i, id := range ids {
		_, err := dockerCommand(t.Context(), "inspect", id)
		require.Equal(t, i >= 2, err == nil, "%d: %v", i, err)
	}
}
