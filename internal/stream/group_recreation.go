package stream

import (
	"cmp"
	"context"
	"encoding/json"
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
// oldest first. What no script of this version wrote is in foreign, each a Receipt.
func (g *Group) GroupRecreations(ctx context.Context) (recreations []protocol.GroupRecreation, foreign []string, err error) {
	const op = "read the recreations of the group"
	listed, err := g.client.LRange(ctx, g.names.Recreations(), 0, -1).Result()
	if err != nil || len(listed) == 0 {
		return nil, nil, failure(op, err)
	}
	now, err := g.client.Time(ctx).Result()
	if err != nil {
		return nil, nil, failure(op, err)
	}
	for _, text := range listed {
		var n recreationNote
		bad := json.Unmarshal([]byte(text), &n)
		m := protocol.GroupRecreation{Receipt: text, At: time.UnixMilli(n.At), Entries: n.Entries, Removed: n.Removed}
		m.Ago = now.Sub(m.At)
		for id, text := range map[*telemetry.EntryID]string{&m.Dispatched: n.Dispatched, &m.First: n.First, &m.Last: n.Last} {
			var err error
			*id, err = telemetry.ParseEntryID(text)
			bad = cmp.Or(bad, err)
		}
		if bad != nil {
			foreign = append(foreign, text)
			continue
		}
		recreations = append(recreations, m)
	}
	return recreations, foreign, nil
}

// ResolveRecreation removes a recreation from the list. It is idempotent.
func (g *Group) ResolveRecreation(ctx context.Context, m *protocol.GroupRecreation) error {
	return failure("resolve a recreation of the group", g.client.LRem(ctx, g.names.Recreations(), 1, m.Receipt).Err())
}
