package scripts_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// repository is a small one that may be released as 1.0.0.
type repository struct {
	t   *testing.T
	dir string
}

func newRepository(t *testing.T) *repository {
	t.Helper()
	r := &repository{t: t, dir: t.TempDir()}
	r.git("init", "-q", "-b", "main")
	r.write("CHANGELOG.md", "# Changelog\n\n## [Unreleased]\n\n## [1.0.0] - 2026-12-01\n\n### Added\n\n- Everything.\n")
	r.write("migrations/0001_first.sql", "create table one ();\n")
	r.write("internal/protocol/messages.go", "package protocol\n\nconst Version = 1\n")
	r.write("docs/reference/compatibility.md", "| 1.0.0 | 0001 | 1 | none |\n")
	r.commit()
	return r
}

func (r *repository) git(args ...string) string {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), "git", append([]string{
		"-C", r.dir, "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null",
	}, args...)...)
	out, err := cmd.CombinedOutput()
	require.NoError(r.t, err, "%s", out)
	return string(out)
}

func (r *repository) write(name, text string) {
	r.t.Helper()
	file := filepath.Join(r.dir, name)
	require.NoError(r.t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(r.t, os.WriteFile(file, []byte(text), 0o600))
}

func (r *repository) commit() {
	r.t.Helper()
	r.git("add", "-A")
	r.git("commit", "-q", "-m", "step")
}

func (r *repository) release(version string) (string, error) {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), "./release.sh", r.dir, version)
	cmd.Env = append(os.Environ(), "GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@example.org", "GIT_CONFIG_GLOBAL=/dev/null")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// next prepares a release on top of 1.0.0, which is tagged.
func (r *repository) next(version, schema, protocol string) {
	r.t.Helper()
	r.write("CHANGELOG.md", "## ["+version+"] - 2026-12-02\n\n- More.\n\n## [1.0.0] - 2026-12-01\n\n- Everything.\n")
	r.write("docs/reference/compatibility.md", "| "+version+" | "+schema+" | "+protocol+" | 1.0.0 |\n| 1.0.0 | 0001 | 1 | none |\n")
}

func TestAReleaseIsTaggedWithItsSectionOfTheChangelog(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	out, err := r.release("1.0.0")
	require.NoError(t, err, out)
	require.Contains(t, out, "tagged v1.0.0 (schema 0001, protocol 1)")
	require.Contains(t, r.git("tag", "-l", "-n9", "v1.0.0"), "- Everything.")

	r.next("1.1.0", "0002", "1")
	r.write("migrations/0002_second.sql", "create table two ();\n")
	r.commit()
	out, err = r.release("1.1.0")
	require.NoError(t, err, out)
	require.NotContains(t, r.git("tag", "-l", "-n9", "v1.1.0"), "Everything")
}

func TestAPrereleaseComesBeforeItsRelease(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	r.write("CHANGELOG.md", "## [1.0.0] - 2026-12-01\n\n- Everything.\n\n## [1.0.0-rc.1] - 2026-11-30\n\n- Everything.\n")
	r.write("docs/reference/compatibility.md", "| 1.0.0 | 0001 | 1 | none |\n| 1.0.0-rc.1 | 0001 | 1 | none |\n")
	r.commit()
	for _, version := range []string{"1.0.0-rc.1", "1.0.0"} {
		out, err := r.release(version)
		require.NoError(t, err, out)
	}
	r.git("tag", "-d", "v1.0.0-rc.1")
	r.write("more", "")
	r.commit()
	out, err := r.release("1.0.0-rc.1")
	require.Error(t, err)
	require.Contains(t, out, "1.0.0-rc.1 is not newer than v1.0.0")
}

func TestWhatMayNotBeReleasedIsRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		version string
		spoil   func(r *repository)
		want    string
	}{
		"no version":     {"", func(*repository) {}, "which version?"},
		"malformed":      {"v1.0", func(*repository) {}, "which version?"},
		"dirty":          {"1.0.0", func(r *repository) { r.write("new", "") }, "not clean"},
		"another branch": {"1.0.0", func(r *repository) { r.git("checkout", "-q", "-b", "other") }, "HEAD is not main"},
		"tagged":         {"1.0.0", func(r *repository) { r.git("tag", "v1.0.0") }, "v1.0.0 exists"},
		"no section":     {"1.2.0", func(*repository) {}, "has no section"},
		"undated":        {"1.0.0", func(r *repository) { r.write("CHANGELOG.md", "## [1.0.0]\n\n- A.\n"); r.commit() }, "has no section"},
		"empty section": {"1.0.0", func(r *repository) {
			r.write("CHANGELOG.md", "## [1.0.0] - 2026-12-01\n\n## [0.9.0] - 2026-11-01\n\n- A.\n")
			r.commit()
		}, "lists nothing"},
		"no row": {"1.0.0", func(r *repository) { r.write("docs/reference/compatibility.md", "\n"); r.commit() }, "no row that begins '| 1.0.0 | 0001 | 1 |'"},
		"other protocol": {"1.0.0", func(r *repository) {
			r.write("internal/protocol/messages.go", "package protocol\n\nconst Version = 2\n")
			r.commit()
		}, "no row that begins '| 1.0.0 | 0001 | 2 |'"},
		"not newer": {"1.0.1", func(r *repository) { r.git("tag", "v1.1.0"); r.next("1.0.1", "0001", "1"); r.commit() }, "1.0.1 is not newer than v1.1.0"},
		"migration edited": {"1.1.0", func(r *repository) {
			r.git("tag", "v1.0.0")
			r.write("migrations/0001_first.sql", "create table uno ();\n")
			r.next("1.1.0", "0001", "1")
			r.commit()
		}, "migrations/0001_first.sql was changed since v1.0.0"},
		"migration gone": {"1.1.0", func(r *repository) {
			r.git("tag", "v1.0.0")
			r.git("mv", "migrations/0001_first.sql", "migrations/0002_first.sql")
			r.next("1.1.0", "0002", "1")
			r.commit()
		}, "migrations/0001_first.sql was changed since v1.0.0"},
		"minor protocol": {"1.1.0", func(r *repository) {
			r.git("tag", "v1.0.0")
			r.write("internal/protocol/messages.go", "package protocol\n\nconst Version = 2\n")
			r.next("1.1.0", "0001", "2")
			r.commit()
		}, "needs a new major version"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRepository(t)
			c.spoil(r)
			out, err := r.release(c.version)
			require.Error(t, err)
			require.Contains(t, out, c.want)
		})
	}
}
