package loadtest

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// figures is what the metrics of one instance said at one moment.
type figures struct {
	stored     int64
	duplicates int64
	fenced     int64
	leader     bool
	turn       bool
	shards     int
	rss        float64 // bytes
	most       float64 // the highest rss of all looks
	cpu        float64 // seconds
	latency    histogram
}

func get(ctx context.Context, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("ask an instance: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask an instance: %w", err)
	}
	return resp, nil
}

// scrape asks the instance for its metrics. One that does not answer keeps the
// figures of the last scrape.
func (in *instance) scrape(ctx context.Context) (figures, error) {
	address, _ := in.known()
	if address == "" {
		return figures{}, fmt.Errorf("instance %s does not listen yet", in.name)
	}
	resp, err := get(ctx, "http://"+address+"/metrics")
	if err != nil {
		return figures{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return figures{}, fmt.Errorf("read the metrics of instance %s: %w", in.name, err)
	}
	f := figuresOf(families)
	in.mu.Lock()
	defer in.mu.Unlock()
	f.most = max(f.rss, in.last.most)
	in.last = f
	return f, nil
}

// lastScrape returns the figures of the last scrape that succeeded.
func (in *instance) lastScrape() figures {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.last
}

func figuresOf(families map[string]*dto.MetricFamily) figures {
	var f figures
	value := func(name string) float64 {
		for _, m := range families[name].GetMetric() {
			return m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue()
		}
		return 0
	}
	for _, m := range families["processor_pipeline_records_total"].GetMetric() {
		for _, label := range m.GetLabel() {
			switch label.GetValue() {
			case "stored":
				f.stored = int64(m.GetCounter().GetValue())
			case "duplicate":
				f.duplicates = int64(m.GetCounter().GetValue())
			}
		}
	}
	f.fenced = int64(value("processor_pipeline_fenced_commits_total"))
	f.leader = value("processor_coordination_leader") == 1
	f.turn = value("processor_pipeline_dispatcher") == 1
	f.shards = int(value("processor_pipeline_owned_shards"))
	f.rss = value("process_resident_memory_bytes")
	f.cpu = value("process_cpu_seconds_total")
	for _, m := range families["processor_pipeline_record_latency_seconds"].GetMetric() {
		f.latency = histogramOf(m.GetHistogram())
	}
	return f
}

// histogram counts observations at or below each bound.
type histogram struct {
	bounds []float64
	counts []float64
	total  float64
}

func histogramOf(h *dto.Histogram) histogram {
	out := histogram{total: float64(h.GetSampleCount())}
	for _, b := range h.GetBucket() {
		if !math.IsInf(b.GetUpperBound(), 1) {
			out.bounds = append(out.bounds, b.GetUpperBound())
			out.counts = append(out.counts, float64(b.GetCumulativeCount()))
		}
	}
	return out
}

// add merges another histogram with the same bounds, sign -1 takes it away.
func (h *histogram) add(o histogram, sign float64) {
	if h.bounds == nil {
		h.bounds, h.counts = o.bounds, make([]float64, len(o.bounds))
	}
	for i := range o.counts {
		if i < len(h.counts) {
			h.counts[i] += sign * o.counts[i]
		}
	}
	h.total += sign * o.total
}

// quantile returns the value below which the share q of observations lies, false
// where there are none. Beyond the last bound it is that bound.
func (h histogram) quantile(q float64) (time.Duration, bool) {
	if h.total <= 0 {
		return 0, false
	}
	rank := q * h.total
	lower, below := 0.0, 0.0
	for i, bound := range h.bounds {
		if h.counts[i] >= rank {
			part := 1.0
			if h.counts[i] > below {
				part = (rank - below) / (h.counts[i] - below)
			}
			return time.Duration((lower + (bound-lower)*part) * float64(time.Second)), true
		}
		lower, below = bound, h.counts[i]
	}
	return time.Duration(lower * float64(time.Second)), true
}
