package equivalence_test

import (
	"testing"

	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/pipelinetest"
)

const shards = pipelinetest.Shards

type (
	bench    = pipelinetest.Bench
	instance = pipelinetest.Instance
	option   = pipelinetest.Option
)

func newBench(tb testing.TB, opts ...testenv.PostgresOption) *bench {
	tb.Helper()
	return pipelinetest.New(tb, opts...)
}

func TestMain(m *testing.M) { testenv.Main(m) }
