package console

import (
	"context"
	"sync"
	"time"

	"github.com/trmtracking/processor/internal/operator"
)

// Glance is the overview as data, for the terminal. Nil is unknown.
type Glance struct {
	Stream  string         `json:"stream,omitempty"` // of several
	At      time.Time      `json:"at"`
	Level   string         `json:"level"` // ok, warn or bad
	Verdict string         `json:"verdict"`
	Do      string         `json:"do,omitempty"`
	Page    string         `json:"page,omitempty"` // of docs/runbook
	Silent  []string       `json:"silent"`         // servers that do not answer, and why
	Backlog *int64         `json:"backlog"`
	Lag     *int64         `json:"lag"`
	Pending *int64         `json:"pending"`
	Wait    *int64         `json:"deferred"`
	Letters *int64         `json:"dead_letters"`
	Lost    *int64         `json:"lost"`
	Age     string         `json:"age"` // of the oldest entry of the backlog
	Rate    *float64       `json:"finished_per_second"`
	Number  int            `json:"shards"`
	Waiting int            `json:"shards_waiting"`
	Members []glanceMember `json:"members"`
	Hot     []string       `json:"hot_devices"` // and what they cost
	Open    []string       `json:"open_incidents"`
	// In is the entries per second that came in over the last hour, a value for
	// each minute; negative is unknown.
	In []float64 `json:"in_per_second"`
}

// glanceMember is a member in a Glance.
type glanceMember struct {
	Name       string  `json:"member"`
	State      string  `json:"state"`
	Level      string  `json:"level"`
	Leads      bool    `json:"leads"`
	Dispatches bool    `json:"dispatches"`
	Shards     int     `json:"shards"`
	Rate       float64 `json:"rate"`
	CPU        float64 `json:"cpu"`
	Memory     uint64  `json:"memory"`
	Version    string  `json:"version"`
}

// Look asks both servers and returns the overview. The last one is shown for a
// server that does not answer; nil for none.
func Look(ctx context.Context, f *operator.Fleet, last *View) (Glance, *View) {
	v := &View{}
	if last != nil {
		*v = *last
	}
	var asked sync.WaitGroup
	asked.Go(func() {
		shards := v.Postgres.Value.Number
		if shards == 0 {
			shards = maxShards
		}
		if value, err := f.RedisView(ctx, shards); err != nil {
			v.Redis.Err = err
		} else {
			v.Redis = reading[operator.RedisView]{Value: value, At: time.Now()}
		}
		if past, err := f.History(ctx); err == nil {
			v.History = past
		}
	})
	postgres := v.Postgres
	asked.Go(func() {
		if value, err := f.PostgresView(ctx); err != nil {
			postgres.Err = err
		} else {
			postgres = reading[operator.PostgresView]{Value: value, At: time.Now()}
		}
	})
	asked.Wait()
	v.Postgres, v.Now = postgres, time.Now()
	return v.glance(), v
}

// View is what both servers know.
type View = view

func (v view) glance() Glance {
	verdict := v.Verdict()
	g := Glance{
		At: v.Now, Level: verdict.Level, Verdict: verdict.What, Do: verdict.Do, Page: verdict.Page, Silent: []string{}, Open: []string{},
		Backlog: v.Backlog(), Lag: v.Lag(), Pending: v.Pending(), Wait: v.Deferred(), Letters: v.Letters(), Lost: v.Lost(), Age: v.Age(), Rate: v.Rate(),
		Number: v.Postgres.Value.Number, Members: []glanceMember{}, Hot: v.Hot(),
	}
	for _, s := range v.Silent() {
		g.Silent = append(g.Silent, s.Server+": "+s.Err.Error())
	}
	for _, s := range v.Postgres.Value.Shards {
		if v.Postgres.Value.WaitingFor(s) != "" {
			g.Waiting++
		}
	}
	for _, m := range v.Members() {
		g.Members = append(g.Members, glanceMember{
			Name: m.Name(), State: m.State, Level: m.Level, Leads: m.Leads, Dispatches: m.Dispatches, Shards: m.Owned,
			Rate: m.Member.Rate, CPU: m.CPU, Memory: m.Memory, Version: m.Version,
		})
	}
	for _, i := range v.Incidents() {
		g.Open = append(g.Open, i.Kind+about(i.Subject))
	}
	in, _ := v.History.Rates()
	const minutes = 60
	sums, counts := make([]float64, minutes), make([]int, minutes)
	for _, p := range in {
		if at := minutes - 1 - int(v.Now.Sub(time.UnixMilli(p.At))/time.Minute); p.Known && at >= 0 && at < minutes {
			sums[at] += p.Value
			counts[at]++
		}
	}
	for i := range sums {
		if counts[i] == 0 {
			g.In = append(g.In, -1)
			continue
		}
		g.In = append(g.In, sums[i]/float64(counts[i]))
	}
	return g
}
