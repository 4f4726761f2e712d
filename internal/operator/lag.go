package operator

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

// Lag is what is not done yet, and what went wrong of late. Nil is unknown.
type Lag struct {
	Stream           string   `json:"stream"`
	Group            string   `json:"group"`
	StreamExists     bool     `json:"stream_exists"`
	GroupExists      bool     `json:"group_exists"`
	Length           int64    `json:"length"`
	Lag              *int64   `json:"lag"`     // not dispatched yet
	Pending          int64    `json:"pending"` // dispatched, not acknowledged
	Deferred         *int64   `json:"deferred"`
	Backlog          *int64   `json:"backlog"` // the sum of the three above
	Lost             *int64   `json:"lost"`    // entries in the ledger
	OldestKnown      bool     `json:"oldest_known"`
	OldestEntry      *string  `json:"oldest_entry"`       // null if there is none, or it is unknown
	OldestAgeSeconds *float64 `json:"oldest_age_seconds"` // null also while its ID is ahead of the clock
	OldestAhead      *float64 `json:"oldest_ahead_seconds"`
	// LossForecast is the time until trimming reaches the oldest entry, if that
	// entry stays and the stream is trimmed as fast as it was filled.
	LossForecast *float64 `json:"loss_forecast_seconds"`

	Losses    []Loss     `json:"losses"`    // of the last 24 hours, newest first; null when unknown
	Incidents []Incident `json:"incidents"` // of the last 24 hours, open ones first; null when unknown

	// More: there are more losses, or more incidents, than recentRows.
	More bool `json:"more"`

	// Unanswered says why what Postgres knows is unknown; nil if it is known.
	Unanswered error `json:"-"`
}

// Loss is an entry of the ledger of losses.
type Loss struct {
	Cause    string    `json:"cause"`
	First    *string   `json:"first"`
	Last     *string   `json:"last"`
	Entries  *int64    `json:"entries"`
	Shard    *int      `json:"shard"` // null for several
	Detected time.Time `json:"detected"`
}

// Incident is something that the leader noticed.
type Incident struct {
	Kind    string          `json:"kind"`
	Subject string          `json:"subject"`
	Opened  time.Time       `json:"opened"`
	Closed  *time.Time      `json:"closed"` // null while it is open
	Detail  json.RawMessage `json:"detail"`
}

// How much of the ledger is shown.
const (
	recentTime = 24 * time.Hour
	recentRows = 1000 // of losses and of incidents; Lag tells that there are more
)

// Lag returns the backlog and the ledger of the last 24 hours. It needs Redis;
// without Postgres what that knows is unknown.
func (f *Fleet) Lag(ctx context.Context) (Lag, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	l := Lag{Stream: f.scope.Stream, Group: f.scope.Group}
	group, err := f.redis(ctx, 1)
	if err != nil {
		return l, err
	}
	info, err := group.Info(ctx)
	if err != nil {
		return l, err
	}
	l.StreamExists, l.GroupExists, l.Length = info.Exists, info.GroupExists, info.Length
	backlog, err := group.Backlog(ctx)
	if err != nil {
		return l, err
	}
	l.Pending = backlog.Pending
	if backlog.LagKnown {
		l.Lag = &backlog.Lag
	}
	l.OldestKnown = backlog.OldestKnown
	if backlog.OldestKnown && !backlog.Oldest.IsZero() {
		text := backlog.Oldest.String()
		l.OldestEntry = &text
		l.OldestAgeSeconds, l.OldestAhead = ageOf(backlog.Oldest)
		if margin, known := info.TrimPoint().Margin(backlog.Oldest); known {
			left := margin.Seconds()
			l.LossForecast = &left
		}
	}
	l.Unanswered = f.lagInPostgres(ctx, &l)
	return l, nil
}

// ageOf returns the age of an entry in seconds, or by how much its ID is ahead of
// the clock.
func ageOf(id telemetry.EntryID) (age, ahead *float64) {
	old, by := id.Age(time.Now())
	if by > 0 {
		return nil, &by
	}
	seconds := old.Seconds()
	return &seconds, nil
}

// AheadText says by how much IDs are ahead of the clock.
func AheadText(seconds float64) string {
	const year = 365.25 * 24 * 3600
	if seconds >= year {
		return fmt.Sprintf("IDs are ahead of the clock by %.0f years", seconds/year)
	}
	return "IDs are ahead of the clock by " + time.Duration(seconds*float64(time.Second)).Round(time.Second).String()
}

// lagInPostgres adds what Postgres knows.
func (f *Fleet) lagInPostgres(ctx context.Context, l *Lag) error {
	if _, err := f.postgres(ctx); err != nil {
		return err
	}
	deferred, err := store.NewDeferred(f.pool, f.scope, "", f.cfg.Postgres.StatementTimeout).Count(ctx)
	if err != nil {
		return f.explained(err)
	}
	l.Deferred = &deferred
	if l.Lag != nil {
		backlog := *l.Lag + l.Pending + deferred
		l.Backlog = &backlog
	}
	lost, unknown, err := f.ledger().TotalLost(ctx)
	if err != nil {
		return f.explained(err)
	}
	if !unknown {
		l.Lost = &lost
	}
	losses, incidents, err := f.ledger().Recent(ctx, recentTime, recentRows)
	if err != nil {
		return f.explained(err)
	}
	l.More = len(losses) == recentRows || len(incidents) == recentRows
	l.Losses, l.Incidents = []Loss{}, []Incident{}
	for _, r := range losses {
		l.Losses = append(l.Losses, Loss(r))
	}
	for _, r := range incidents {
		l.Incidents = append(l.Incidents, Incident(r))
	}
	return nil
}
