package stream

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// made is a making of the group as the script notes it.
type made struct {
	At      int64  `json:"at"` // milliseconds since 1970
	Dealt   string `json:"dealt"`
	Entries int64  `json:"entries"`
	Removed int64  `json:"removed"`
	First   string `json:"first"`
	Last    string `json:"last"`
}

// Makings returns the makings of the group that nobody has settled yet, oldest first.
func (g *Group) Makings(ctx context.Context) ([]protocol.Making, error) {
	const op = "read the makings of the group"
	pipe := g.client.Pipeline()
	listed, clock := pipe.LRange(ctx, g.names.Made(), 0, -1), pipe.Time(ctx)
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, failure(op, err)
	}
	var makings []protocol.Making
	for _, text := range listed.Val() {
		var n made
		if err := json.Unmarshal([]byte(text), &n); err != nil {
			return nil, fmt.Errorf("%s: %q is none of ours: %w", op, text, err)
		}
		m := protocol.Making{Receipt: text, At: time.UnixMilli(n.At), Entries: n.Entries, Removed: n.Removed}
		m.Ago = clock.Val().Sub(m.At)
		for id, text := range map[*telemetry.EntryID]string{&m.Dealt: n.Dealt, &m.First: n.First, &m.Last: n.Last} {
			var err error
			if *id, err = telemetry.ParseEntryID(text); err != nil {
				return nil, failure(op, err)
			}
		}
		makings = append(makings, m)
	}
	return makings, nil
}

// Settled takes a making off the list. Doing it again does nothing.
func (g *Group) Settled(ctx context.Context, m *protocol.Making) error {
	return failure("settle a making of the group", g.client.LRem(ctx, g.names.Made(), 1, m.Receipt).Err())
}
