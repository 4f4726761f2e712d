package pipeline_test

import (
	"flag"
	"runtime"
	"strconv"
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

// Most of these tests wait, for leases and delays: twice as many run at once as there are
// processors.
func TestMain(m *testing.M) {
	flag.Parse()
	if p := flag.Lookup("test.parallel"); p.Value.String() == p.DefValue {
		_ = flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0)))
	}
	testenv.Main(m)
}
