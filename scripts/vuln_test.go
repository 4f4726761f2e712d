package scripts_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestVulnerabilitiesFailTheBuildAndASkippedSearchSaysWhy(t *testing.T) {
	scanner := func(script string) string {
		file := filepath.Join(t.TempDir(), "govulncheck")
		require.NoError(t, os.WriteFile(file, []byte("#!/bin/sh\n"+script), 0o755)) //nolint:gosec // it is run
		return file
	}
	const away = "govulncheck: fetching vulnerabilities: Get \"https://vuln.go.dev/index/modules.json.gz\": dial tcp: no such host"
	for name, tt := range map[string]struct {
		scanner, db string
		code        int
		says        string
	}{
		"nothing found":        {scanner: scanner("echo 'DB updated: 2026-11-20'; echo 'No vulnerabilities found.'"), says: "DB updated: 2026-11-20"},
		"found":                {scanner: scanner("echo 'Vulnerability #1: GO-2026-0001'; exit 3"), code: 3, says: "known to be vulnerable"},
		"database away":        {scanner: scanner("echo '" + away + "' >&2; exit 1"), says: "SKIPPED, nothing was searched: the database cannot be reached (Get \"https://vuln.go.dev"},
		"copy away":            {scanner: scanner("echo '" + away + "' >&2; exit 1"), db: "file:///none", code: 1, says: "FAILED"},
		"does not compile":     {scanner: scanner("echo 'govulncheck: loading packages: a.go:1: syntax error' >&2; exit 1"), code: 1, says: "FAILED, the search ended with code 1"},
		"scanner not built":    {scanner: filepath.Join(t.TempDir(), "none"), says: "SKIPPED, nothing was searched"},
		"the copy is asked":    {scanner: scanner(`[ "$1 $2" = "-db file:///copy" ] && echo asked the copy`), db: "file:///copy", says: "asked the copy"},
		"everything is looked": {scanner: scanner(`for last; do :; done; echo "searched $last"`), says: "searched ./..."},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "./vuln.sh", tt.scanner)
			cmd.Env = append(os.Environ(), "VULN_DB="+tt.db)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				err = nil
			}
			require.NoError(t, err)
			require.Equal(t, tt.code, cmd.ProcessState.ExitCode(), "%s", out)
			require.Contains(t, string(out), tt.says)
		})
	}
}

func TestTheBuildServerLooksForVulnerabilities(t *testing.T) {
	run, err := os.ReadFile("../.ci/run")
	require.NoError(t, err)
	require.Regexp(t, `(?m)^step ".*" make vuln$`, string(run))
}
