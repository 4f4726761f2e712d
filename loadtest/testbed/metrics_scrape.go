package testbed

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

// Figures is what the metrics of one instance said at one moment.
type Figures struct {
	Stored        int64
	duplicates    int64
	Fenced        int64
	Leader        bool
	DispatchLease bool
	shards        int
	RSS           float64 // bytes
	MaxRSS        float64 // the highest rss of all looks
	CPU           float64 // seconds
	Latency       Histogram
}

// Get asks an instance for a page; the caller closes the body.
func Get(ctx context.Context, url string) (*http.Response, error) {
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

// Scrape asks the instance for its metrics. One that does not answer keeps the
// figures of the last scrape.
func (in *Instance) Scrape(ctx context.Context) (Figures, error) {
	address, _ := in.Known()
	if address == "" {
		return Figures{}, fmt.Errorf("instance %s does not listen yet", in.Name)
	}
	resp, err := Get(ctx, "http://"+address+"/metrics")
	if err != nil {
		return Figures{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return Figures{}, fmt.Errorf("read the metrics of instance %s: %w", in.Name, err)
	}
	f := figuresOf(families)
	in.mu.Lock()
	defer in.mu.Unlock()
	f.MaxRSS = max(f.RSS, in.last.MaxRSS)
	in.last = f
	return f, nil
}

// LastScrape returns the figures of the last scrape that succeeded.
func (in *Instance) LastScrape() Figures {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.last
}

func figuresOf(families map[string]*dto.MetricFamily) Figures {
	var f Figures
	value := func(name string) (sum float64) { // over the streams
		for _, m := range families[name].GetMetric() {
			sum += m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue()
		}
		return sum
	}
	for _, m := range families["processor_pipeline_records_total"].GetMetric() {
		for _, label := range m.GetLabel() {
			switch label.GetValue() {
			case "stored":
				f.Stored += int64(m.GetCounter().GetValue())
			case "duplicate":
				f.duplicates += int64(m.GetCounter().GetValue())
			}
		}
	}
	f.Fenced = int64(value("processor_pipeline_fenced_commits_total"))
	f.Leader = value("processor_coordination_leader") > 0
	f.DispatchLease = value("processor_pipeline_dispatcher") > 0
	f.shards = int(value("processor_pipeline_owned_shards"))
	f.RSS = value("process_resident_memory_bytes")
	f.CPU = value("process_cpu_seconds_total")
	for _, m := range families["processor_pipeline_record_latency_seconds"].GetMetric() {
		f.Latency.Add(histogramOf(m.GetHistogram()), 1)
	}
	return f
}

// Histogram counts observations at or below each bound.
type Histogram struct {
	bounds []float64
	counts []float64
	total  float64
}

func histogramOf(h *dto.Histogram) Histogram {
	out := Histogram{total: float64(h.GetSampleCount())}
	for _, b := range h.GetBucket() {
		if !math.IsInf(b.GetUpperBound(), 1) {
			out.bounds = append(out.bounds, b.GetUpperBound())
			out.counts = append(out.counts, float64(b.GetCumulativeCount()))
		}
	}
	return out
}

// Add merges another histogram with the same bounds, sign -1 takes it away.
func (h *Histogram) Add(o Histogram, sign float64) {
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
func (h Histogram) quantile(q float64) (time.Duration, bool) {
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

// Milliseconds returns a quantile as it is shown, nil where there is none.
func (h Histogram) Milliseconds(q float64) *float64 {
	d, ok := h.quantile(q)
	if !ok {
		return nil
	}
	ms := float64(d.Microseconds()) / 1000
	return &ms
}
