package modules

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.uber.org/fx"
)

var registryModule = fx.Module("registry", fx.Provide(newRegistry, asRegisterer))

// newRegistry returns the service's own registry: two services in one process,
// as in tests, do not share metrics.
func newRegistry(b Build) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "processor_build_info", Help: "Always 1; the labels name the build.",
		ConstLabels: prometheus.Labels{"version": b.Version, "revision": b.Revision},
	})
	info.Set(1)
	// process_start_time_seconds is absent where /proc/stat is hidden, as by the systemd unit.
	started := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "processor_start_time_seconds", Help: "When the process started, in seconds since 1970.",
	})
	started.SetToCurrentTime()
	reg.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		info,
		started,
	)
	return reg
}

func asRegisterer(reg *prometheus.Registry) prometheus.Registerer { return reg }

// CountDroppedLogLines exports the number of log lines that read returns. Call it
// before Start.
func (s *Service) CountDroppedLogLines(read func() uint64) {
	promauto.With(s.metrics).NewCounterFunc(prometheus.CounterOpts{
		Name: "processor_log_dropped_lines_total",
		Help: "Log lines dropped since their reader stalled or is gone.",
	}, func() float64 { return float64(read()) })
}
