package demo

import (
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/trmtracking/processor/internal/cli"
)

// Snapshot is how far a demo is.
type Snapshot struct {
	Elapsed time.Duration
	Entries int64 // to be sent in all
	Sent    int64
	Stored  int64
	Again   int64         // finished as duplicates
	Rate    *float64      // records stored a second, since the last snapshot; nil for the first
	Backlog int64         // entries not finished
	Known   bool          // whether backlog is
	P99     time.Duration // latency from stream time to commit, since the last snapshot
	Timed   bool          // whether there was any
}

// String returns the snapshot on one line.
func (s Snapshot) String() string {
	rate, outstanding, p99 := "-", "unknown", "-"
	if s.Rate != nil {
		rate = cli.Thousands(int64(*s.Rate)) + "/s"
	}
	if s.Known {
		outstanding = cli.Thousands(s.Backlog)
	}
	if s.Timed {
		p99 = Milliseconds(s.P99)
	}
	return fmt.Sprintf("in %s  stored %s  %s  duplicates %s  backlog %s  p99 %s",
		cli.Thousands(s.Sent), cli.Thousands(s.Stored), rate, cli.Thousands(s.Again), outstanding, p99)
}

// Lines shows progress as plain lines, one every few seconds.
func Lines(w io.Writer) func(Snapshot) {
	return func(s Snapshot) {
		_, _ = fmt.Fprintf(w, "%5.1fs  %s\n", s.Elapsed.Seconds(), s)
	}
}

// Bar shows progress on a terminal, on one line that is drawn again.
func Bar(w io.Writer, entries int64) func(Snapshot) {
	bar := progressbar.NewOptions64(entries,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetWidth(20),
		progressbar.OptionSetPredictTime(false),
		progressbar.OptionSetElapsedTime(false),
		progressbar.OptionClearOnFinish(),
		progressbar.OptionSetTheme(progressbar.Theme{Saucer: "=", SaucerHead: ">", SaucerPadding: " ", BarStart: "[", BarEnd: "]"}),
	)
	return func(s Snapshot) {
		bar.Describe(s.String())
		if done := s.Sent - s.Backlog; s.Known {
			_ = bar.Set64(max(0, min(done, entries)))
		}
	}
}

// Milliseconds shows a duration in a way that columns stay narrow.
func Milliseconds(d time.Duration) string {
	if d < 10*time.Second {
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	}
	return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s"
}
