package scenarios_test

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/loadtest/scenarios"
)

// build makes the service, with the mutants inside.
func build(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "processor")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-tags", "mutant", "-o", program,
		"github.com/trmtracking/processor/cmd/processor").CombinedOutput()
	require.NoError(t, err, string(out))
	return program
}

func runScenario(t *testing.T, name, program, mutant string, plan scenarios.Plan) *scenarios.Result {
	t.Helper()
	s, err := scenarios.ByName(name)
	require.NoError(t, err)
	r, err := scenarios.Run(t.Context(), s, scenarios.Config{
		Processor: program, Env: []string{"MUTANT=" + mutant}, Plan: plan, Seed: 1, Slack: 3,
		Dir: t.TempDir(), Rare: t.TempDir(), Log: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	return r
}

// refused reports whether the history of epochs is among what was missed.
func refused(missed []string) bool {
	return slices.ContainsFunc(missed, func(m string) bool { return strings.Contains(m, "under a fencing token") })
}

// A judge that finds nothing wrong says nothing unless it finds what is.
func TestMutantsOfTheServiceAreCaught(t *testing.T) {
	testenv.Full(t)
	program := build(t)
	short := scenarios.Plan{Rate: 2000, Duration: 10 * time.Second, Profile: "incidents"}

	r := runScenario(t, "split", program, "none", short)
	require.Empty(t, r.Missed, "without a mutation everything is well")
	require.Positive(t, r.Crossings)
	r = runScenario(t, "wake", program, "none", scenarios.Plan{})
	require.Empty(t, r.Missed, "nor with a batch that is held back")

	for _, tt := range []struct {
		mutant, scenario string
		plan             scenarios.Plan
		caught           func(r *scenarios.Result) bool
	}{
		{"drop:100000", "split", scenarios.Plan{Rate: 10_000, Duration: 25 * time.Second}, func(r *scenarios.Result) bool { return r.Lost > 0 }},
		{"early_ack", "split", short, func(r *scenarios.Result) bool { return r.Early != nil && *r.Early > 0 }},
		{"double_crossing", "split", short, func(r *scenarios.Result) bool { return r.Oracle == "different" }},
		{"unfenced", "wake", scenarios.Plan{}, func(r *scenarios.Result) bool { return *r.Stale > 0 && refused(r.Missed) }},
	} {
		t.Run(tt.mutant, func(t *testing.T) {
			r := runScenario(t, tt.scenario, program, tt.mutant, tt.plan)
			require.NotEmpty(t, r.Missed)
			require.True(t, tt.caught(r), "missed for another reason: %q", r.Missed)
		})
	}
}

// The tests of the store see it in every form of a commit.
func TestACommitWithoutTheCheckOfEpochsIsCaught(t *testing.T) {
	testenv.Full(t)
	test := func(mutant string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "go", "test", "-tags", "mutant", "-count=1", "-run", "TestP4",
			"github.com/trmtracking/processor/internal/store")
		cmd.Env = append(os.Environ(), "MUTANT="+mutant)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := test("none")
	require.NoError(t, err, out)
	out, err = test("unfenced")
	require.Error(t, err)
	for _, way := range []string{"in_one_round_trip", "with_late_records", "with_marks"} {
		require.Contains(t, out, "--- FAIL: TestP4ACommitUnderARaisedEpochIsRefusedAndNamesTheShards/"+way)
	}
}
