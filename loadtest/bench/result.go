package bench

import (
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/trmtracking/processor/internal/cli"
)

// Series is one figure of several rounds.
type Series struct {
	Median float64   `json:"median"`
	Spread float64   `json:"spread"` // highest less lowest, as a share of the median
	Values []float64 `json:"values"`
}

func (s *Series) add(v float64) {
	digits := 3
	if v >= 1000 {
		digits = 0
	}
	s.Values = append(s.Values, cli.Round(v, digits))
	sorted := slices.Sorted(slices.Values(s.Values))
	n := len(sorted)
	s.Median = cli.Round((sorted[(n-1)/2]+sorted[n/2])/2, digits)
	if s.Median > 0 {
		s.Spread = cli.Round((sorted[n-1]-sorted[0])/s.Median, 3)
	}
}

// Result is everything measured. The first keys are those that commits are
// compared by; the others hold each round.
type Result struct {
	CopyCeiling     float64 `json:"copy_ceiling"`   // rows a second
	InsertCeiling   float64 `json:"insert_ceiling"` // rows a second
	BacklogOne      float64 `json:"backlog_one"`    // records a second, one instance
	BacklogTwo      float64 `json:"backlog_two"`
	RatioOne        float64 `json:"ratio_one"` // to the ceiling, median of the rounds
	RatioTwo        float64 `json:"ratio_two"`
	P50At5000       float64 `json:"p50_ms_5000"`
	P99At5000       float64 `json:"p99_ms_5000"`
	CPU             float64 `json:"cpu_us_per_record"` // of the service, which is seconds a million records
	CPURedis        float64 `json:"redis_us_per_record"`
	CPUPostgres     float64 `json:"postgres_us_per_record"`
	AllocsPerRecord float64 `json:"allocs_per_record"`
	PeakRSS         float64 `json:"peak_rss_mb"`
	StartToCommit   float64 `json:"start_to_commit_s"`

	Entries         int      `json:"entries"`
	Devices         int      `json:"devices"`
	Seed            uint64   `json:"seed"`
	Cores           int      `json:"cores"`
	Load            string   `json:"load_average"` // of the machine, before and after
	Seconds         float64  `json:"seconds"`
	CopyConnections []int    `json:"copy_connections"` // the best number of each round
	Copy            Series   `json:"copy"`
	CopyCPU         Series   `json:"copy_cpu"` // of Postgres, microseconds a row
	Insert          Series   `json:"insert"`
	ReadAck         Series   `json:"read_ack"` // entries a second
	Decode          Series   `json:"decode"`   // records a second on one core
	One             Series   `json:"one"`
	Two             Series   `json:"two"`
	TwoJoining      Series   `json:"two_joining"` // that start with the backlog
	OneNewest       Series   `json:"one_newest_first"`
	TwoNewest       Series   `json:"two_newest_first"`
	OwnCPU          Series   `json:"own_cpu"`
	RedisCPU        Series   `json:"redis_cpu"`
	PostgresCPU     Series   `json:"postgres_cpu"`
	PerCommit       Series   `json:"records_per_commit"`
	Allocs          Series   `json:"allocs"`
	Peak            Series   `json:"peak"`
	FirstCommit     Series   `json:"first_commit"`
	ToCopyOne       Series   `json:"one_to_copy"`
	ToCopyTwo       Series   `json:"two_to_copy"`
	Steady          []Steady `json:"steady"`

	// Streams is measured instead of the rest, where it was asked for.
	Streams []StreamsResult `json:"streams,omitempty"`
}

func newResult(cfg Config) *Result {
	return &Result{
		Entries: cfg.Entries, Devices: cfg.Devices, Seed: cfg.Seed, Cores: runtime.NumCPU(), Load: loadAverage(),
	}
}

// finish fills in what follows from the rounds.
func (r *Result) finish(took time.Duration) {
	for i, ceiling := range r.Copy.Values {
		r.ToCopyOne.add(r.One.Values[i] / ceiling)
		r.ToCopyTwo.add(r.Two.Values[i] / ceiling)
	}
	r.CopyCeiling, r.InsertCeiling = r.Copy.Median, r.Insert.Median
	r.BacklogOne, r.BacklogTwo = r.One.Median, r.Two.Median
	r.RatioOne, r.RatioTwo = r.ToCopyOne.Median, r.ToCopyTwo.Median
	r.CPU, r.CPURedis, r.CPUPostgres = r.OwnCPU.Median, r.RedisCPU.Median, r.PostgresCPU.Median
	r.AllocsPerRecord, r.PeakRSS, r.StartToCommit = r.Allocs.Median, r.Peak.Median, r.FirstCommit.Median
	if s, ok := r.At(5000); ok {
		r.P50At5000, r.P99At5000 = s.P50, s.P99
	}
	r.Load += ", then " + loadAverage()
	r.Seconds = cli.Round(took.Seconds(), 0)
}

// At returns the result of one rate of the steady load.
func (r *Result) At(rate float64) (Steady, bool) {
	i := slices.IndexFunc(r.Steady, func(s Steady) bool { return s.Rate == rate })
	if i < 0 {
		return Steady{}, false
	}
	return r.Steady[i], true
}

// loadAverage returns that of the last minute, empty where the system does not tell.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	one, _, _ := strings.Cut(string(text), " ")
	return one
}

// Target is a figure beside what we aim at and what is the least we accept.
type Target struct {
	What  string
	Value float64
	Aim   float64
	Bound float64
	Least bool // more is better
}

// Verdict returns "aim", "bound" or "missed".
func (t Target) Verdict() string {
	reached := func(limit float64) bool {
		if t.Least {
			return t.Value >= limit
		}
		return t.Value <= limit
	}
	switch {
	case reached(t.Aim):
		return "aim"
	case reached(t.Bound):
		return "bound"
	}
	return "missed"
}

// Targets returns those of a machine with two cores that carries everything.
func (r *Result) Targets() []Target {
	if len(r.Streams) > 0 {
		return r.streamTargets()
	}
	targets := []Target{
		{"backlog, one instance, to the COPY ceiling", r.RatioOne, .72, .62, true},
		{"backlog, two instances, to the COPY ceiling", r.RatioTwo, .60, .52, true},
	}
	if s, ok := r.At(5000); ok {
		targets = append(targets,
			Target{"p50 at 5,000 records/s, ms", s.P50, 15, 20, false},
			Target{"p99 at 5,000 records/s, ms", s.P99, 30, 60, false})
	}
	if s, ok := r.At(20000); ok {
		targets = append(targets, Target{"p99 at 20,000 records/s, ms", s.P99, 45, 80, false})
	}
	return append(targets,
		Target{"CPU of the service a record, us", r.CPU, 3.2, 5.5, false},
		Target{"CPU of Redis a record, us", r.CPURedis, 4.5, 6, false},
		Target{"allocations of the service a record", r.AllocsPerRecord, 2, 10, false}, // nine are the driver's
		Target{"peak memory, MB", r.PeakRSS, 180, 300, false},
		Target{"start to first commit, s", r.StartToCommit, .4, 1, false})
}
