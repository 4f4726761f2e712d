package scenarios

import (
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/loadtest/testbed"
)

// programs returns a run whose instances are a shell script.
func programs(t *testing.T, script string) *run {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\n"+script), 0o700))
	r := &run{line: &testbed.Cluster{Program: program, Dir: dir, Servers: &testbed.Servers{}}, log: slog.New(slog.DiscardHandler), began: time.Now()}
	t.Cleanup(func() { require.NoError(t, r.line.Close()) })
	return r
}

// Chance often chooses one that has ended by itself for its next act, and replaces it.
func TestInstancesThatEndedByThemselvesAreNamedThoughReplaced(t *testing.T) {
	t.Parallel()
	const works = `echo '{"address":"a","member":"m"}'; while :; do sleep .05; done`
	for name, tt := range map[string]struct {
		script, act string
		reported    bool
	}{
		"ended, then killed":                  {"exit 2", "SIGKILL", true},
		"ended, then terminated":              {"exit 2", "SIGTERM", true},
		"ended well, then terminated":         {"exit 0", "SIGTERM", true},
		"a panic while it drains":             {"trap 'exit 2' TERM; " + works, "SIGTERM", true},
		"killed while it drains":              {"trap 'kill -9 $$' TERM; " + works, "SIGTERM", true},
		"a drain that takes its whole budget": {"trap 'exit 1' TERM; " + works, "SIGTERM", false},
		"terminated":                          {"trap 'exit 0' TERM; " + works, "SIGTERM", false},
		"killed":                              {works, "SIGKILL", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := programs(t, tt.script)
			in, err := r.line.Start(0)
			require.NoError(t, err)
			require.Eventually(t, func() bool { return in.Gone() || in.Member() != "" }, testbed.ReadyWithin, time.Millisecond)
			acts := r.processActs()
			act := acts[slices.IndexFunc(acts, func(a act) bool { return a.name == tt.act })]
			require.NoError(t, act.do(t.Context(), rand.New(rand.NewPCG(1, 1))))
			_, err = in.Wait(t.Context())
			require.NoError(t, err)
			r.unexpectedExits()
			named := slices.ContainsFunc(r.missed, func(m string) bool { return strings.HasPrefix(m, "instance i1-1 ended by itself") })
			require.Equal(t, tt.reported, named, "%q", r.missed)
		})
	}
}
