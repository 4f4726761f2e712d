package demo

import (
	"fmt"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// The metrics of the service that are shown.
const (
	recordsMetric = "processor_pipeline_records_total"
	latencyMetric = "processor_pipeline_record_latency_seconds"
)

// figures is what the service's metrics said at one moment.
type figures struct {
	stored  int64
	again   int64 // duplicates
	latency histogram
}

func gather(g prometheus.Gatherer) (figures, error) {
	families, err := g.Gather()
	if err != nil {
		return figures{}, fmt.Errorf("read the service's metrics: %w", err)
	}
	var f figures
	for _, family := range families {
		switch family.GetName() {
		case recordsMetric:
			for _, m := range family.GetMetric() {
				for _, label := range m.GetLabel() {
					switch n := int64(m.GetCounter().GetValue()); {
					case label.GetName() != "outcome":
					case label.GetValue() == "stored":
						f.stored += n
					case label.GetValue() == "duplicate":
						f.again += n
					}
				}
			}
		case latencyMetric:
			for _, m := range family.GetMetric() {
				f.latency = histogramOf(m.GetHistogram())
			}
		}
	}
	return f, nil
}

// histogram counts observations at or below each bound.
type histogram struct {
	bounds []float64
	counts []uint64
	total  uint64
}

func histogramOf(h *dto.Histogram) histogram {
	out := histogram{total: h.GetSampleCount()}
	for _, b := range h.GetBucket() {
		out.bounds = append(out.bounds, b.GetUpperBound())
		out.counts = append(out.counts, b.GetCumulativeCount())
	}
	return out
}

// since returns what came since an earlier scrape.
func (h histogram) since(before histogram) histogram {
	out := histogram{bounds: h.bounds, counts: append([]uint64(nil), h.counts...), total: h.total - before.total}
	for i := range before.counts {
		out.counts[i] -= before.counts[i]
	}
	return out
}

// quantile returns the value below which the share q of observations lies, false
// where there are none. Beyond the last bound it is that bound.
func (h histogram) quantile(q float64) (time.Duration, bool) {
	if h.total == 0 {
		return 0, false
	}
	rank := q * float64(h.total)
	lower, below := 0.0, 0.0
	for i, bound := range h.bounds {
		if count := float64(h.counts[i]); count >= rank && !math.IsInf(bound, 1) {
			share := 1.0
			if count > below {
				share = (rank - below) / (count - below)
			}
			return time.Duration((lower + (bound-lower)*share) * float64(time.Second)), true
		}
		lower, below = bound, float64(h.counts[i])
	}
	return time.Duration(lower * float64(time.Second)), true
}
