package pipeline_test

import (
	"testing"

	"github.com/trmtracking/processor/internal/testenv"
	"github.com/trmtracking/processor/internal/testenv/pipelinetest"
)

const shards = pipelinetest.Shards

type (
	bench    struct{ *pipelinetest.Bench }
	instance struct{ *pipelinetest.Instance }
	option   = pipelinetest.Option
)

func newBench(tb testing.TB, opts ...testenv.PostgresOption) *bench {
	tb.Helper()
	return &bench{pipelinetest.New(tb, opts...)}
}

func (b *bench) Start(member string, opts ...option) *instance {
	return &instance{b.Bench.Start(member, opts...)}
}

func (b *bench) AcquireAll(in *instance) { b.Bench.AcquireAll(in.Instance) }

func TestMain(m *testing.M) { testenv.Main(m) }
