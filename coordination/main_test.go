package coordination

import (
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/trmtracking/processor/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func someMetrics() *metrics { return newMetrics(prometheus.NewRegistry()) }

func realRedis(t *testing.T) *testenv.RedisCorner {
	t.Helper()
	return testenv.Redis(t)
}
