package deploy_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/fault"
	"github.com/trmtracking/processor/internal/testenv"
)

// command runs a program and returns what it printed.
func command(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	require.NoError(t, err, "%s %s: %s%s", name, strings.Join(args, " "), out, errs.String())
	return strings.TrimSpace(string(out))
}

// A clone and the tarball of git archive make the same bytes, which know their commit.
func TestTheProgramOfTheImageIsTheSameFromACloneAndFromATarball(t *testing.T) {
	testenv.Slow(t)
	if testing.Short() {
		t.Skip("builds the program twice")
	}
	if exec.CommandContext(t.Context(), "git", "-C", "..", "rev-parse", "HEAD").Run() != nil {
		t.Skip("SKIPPED: this is no clone, so what a clone and a tarball make was not compared")
	}
	commit := command(t, "..", "git", "rev-parse", "HEAD")
	clone, tarball := filepath.Join(t.TempDir(), "clone"), t.TempDir()
	command(t, "..", "git", "clone", "-q", "--shared", "--no-checkout", absolute(t, ".."), clone)
	command(t, clone, "git", "checkout", "-q", commit)
	command(t, tarball, "sh", "-c", `git -C "$0" archive "$1" | tar x`, absolute(t, ".."), commit)
	var sums [][sha256.Size]byte
	for _, dir := range []string{clone, tarball} {
		out := filepath.Join(dir, "out", "image")
		require.NoError(t, os.Mkdir(filepath.Dir(out), 0o755))
		command(t, dir, "scripts/build-static.sh", out)
		program, err := os.ReadFile(filepath.Join(out, "processor"))
		require.NoError(t, err)
		sums = append(sums, sha256.Sum256(program))
		var build struct{ Version, Revision, Time string }
		require.NoError(t, json.Unmarshal([]byte(command(t, dir, filepath.Join(out, "processor"), "version", "--json")), &build))
		require.Equal(t, commit, build.Revision, dir)
		require.NotEmpty(t, build.Time)
		require.NotEqual(t, "devel", build.Version)
	}
	require.Equal(t, sums[0], sums[1], "different bytes from the same sources")
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	full, err := filepath.Abs(path)
	require.NoError(t, err)
	return full
}

// The image as it is built, by the engine that is here.
func TestTheImageRunsWithoutRootOnAReadOnlyFileSystem(t *testing.T) {
	testenv.Slow(t)
	if testing.Short() {
		t.Skip("builds the image")
	}
	if out, err := exec.CommandContext(t.Context(), "docker", "info", "--format", "{{.ServerVersion}}").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: there is no Docker engine, so the image was not built: %s", out)
	}
	tag := "processor-test:" + strings.ToLower(rand.Text()[:10])
	t.Log(command(t, "..", "scripts/image.sh", tag))
	t.Cleanup(func() {
		if out, err := exec.CommandContext(context.Background(), "docker", "image", "rm", "-f", tag).CombinedOutput(); err != nil {
			t.Errorf("remove the image: %s", out)
		}
	})
	var image []struct {
		Size   int64
		Config struct {
			User        string
			Labels      map[string]string
			Healthcheck struct{ Test []string }
			Volumes     map[string]any
		}
	}
	require.NoError(t, json.Unmarshal([]byte(command(t, ".", "docker", "image", "inspect", tag)), &image))
	require.Less(t, image[0].Size, int64(40_000_000), "bytes; the renderer of the runbook is 1.2 MB of them")
	require.Equal(t, "65532:65532", image[0].Config.User)
	require.Equal(t, []string{"CMD", "/processor", "health"}, image[0].Config.Healthcheck.Test)
	require.NotEqual(t, "devel", image[0].Config.Labels["org.opencontainers.image.version"])

	run := func(args ...string) string {
		return command(t, ".", "docker", append([]string{
			"run", "--rm", "--read-only", "--user", "65532", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none",
			"-e", "TZ=Europe/Zurich", tag,
		}, args...)...)
	}
	var build struct{ Version, Revision string }
	require.NoError(t, json.Unmarshal([]byte(run("version", "--json")), &build))
	require.Equal(t, build.Revision, image[0].Config.Labels["org.opencontainers.image.revision"])

	// The collector knows the container's limit: nine tenths of it.
	limited := exec.CommandContext(t.Context(), "docker", "run", "--rm", "--network", "none", "--memory", "200m",
		"-e", "REDIS_URL=redis://127.0.0.1:1", "-e", "POSTGRES_URL=postgres://nobody@127.0.0.1:1/none", "-e", "START_TIMEOUT=1s", "-e", "LOG_FORMAT=json", tag)
	out, err := limited.CombinedOutput()
	require.Error(t, err, "no servers")
	require.Equal(t, fault.Dependency, limited.ProcessState.ExitCode(), "%s", out)
	require.Contains(t, string(out), `"go_memory_limit_bytes":188743680`)

	// What is inside: the program, its bill of materials and the place for dumps.
	container := command(t, ".", "docker", "create", tag)
	t.Cleanup(func() { _ = exec.CommandContext(context.Background(), "docker", "rm", "-v", container).Run() })
	sbom := command(t, ".", "sh", "-c", "docker cp "+container+":/sbom.json - | tar xO")
	var bom struct {
		BOMFormat  string
		Components []struct{ Name, Version string }
	}
	require.NoError(t, json.Unmarshal([]byte(sbom), &bom))
	require.Equal(t, "CycloneDX", bom.BOMFormat)
	names := map[string]bool{}
	for _, c := range bom.Components {
		names[c.Name] = c.Version != ""
	}
	for _, name := range []string{"std", "github.com/jackc/pgx/v5", "github.com/redis/go-redis/v9"} {
		require.True(t, names[name], name)
	}
	require.Regexp(t, `(?m)^drwx\S+ 65532/65532 .* dumps/$`, command(t, ".", "sh", "-c", "docker cp "+container+":/dumps - | tar tv --numeric-owner"))
}
