package stream

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/telemetry"
)

// recreationNote is a group recreation as recorded by the script.
type recreationNote struct {
	At         int64  `json:"at"` // milliseconds since 1970
	Dispatched string `json:"dispatched"`
	Entries    int64  `json:"entries"`
	Removed    int64  `json:"removed"`
	First      string `json:"first"`
	Last       string `json:"last"`
}

// GroupRecreations returns the group recreations that are not resolved yet,
// oldest first.
func (g *Group) GroupRecreations(ctx context.Context) ([]protocol.GroupRecreation, error) {
	const op = "read the recreations of the group"
	listed, err := g.client.LRange(ctx, g.names.Recreations(), 0, -1).Result()
	if err != nil || len(listed) == 0 {
		return nil, failure(op, err)
	}
	now, err := g.client.Time(ctx).Result()
	if err != nil {
		return nil, failure(op, err)
	}
	var recreations []protocol.GroupRecreation
	for _, text := range listed {
		var n recreationNote
		if err := json.Unmarshal([]byte(text), &n); err != nil {
			return nil, fmt.Errorf("%s: %q is none of ours: %w", op, text, err)
		}
		m := protocol.GroupRecreation{Receipt: text, At: time.UnixMilli(n.At), Entries: n.Entries, Removed: n.Removed}
		m.Ago = now.Sub(m.At)
		for id, text := range map[*telemetry.EntryID]string{&m.Dispatched: n.Dispatched, &m.First: n.First, &m.Last: n.Last} {
			var err error
			if *id, err = telemetry.ParseEntryID(text); err != nil {
				return nil, failure(op, err)
			}
		}
		recreations = append(recreations, m)
	}
	return recreations, nil
}

// ResolveRecreation removes a recreation from the list. It is idempotent.
func (g *Group) ResolveRecreation(ctx context.Context, m *protocol.GroupRecreation) error {
	return failure("resolve a recreation of the group", g.client.LRem(ctx, g.names.Recreations(), 1, m.Receipt).Err())
}
