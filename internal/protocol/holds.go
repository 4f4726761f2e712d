package protocol

import (
	"slices"
	"time"
)

// Kinds of holds.
const (
	HoldFleet  = "fleet"  // nothing is dispatched
	HoldShard  = "shard"  // no member owns the shard; what is dispatched waits on its queue
	HoldMember = "member" // the member owns no shard
)

// Hold is something that an operator holds back.
type Hold struct {
	Kind    string    `json:"kind"`
	Subject string    `json:"subject"` // shard or identity of a member; "" for the fleet
	Reason  string    `json:"reason"`
	By      string    `json:"by"`
	Since   time.Time `json:"since"`
}

// Holds are all of a fleet.
type Holds []Hold

// Of returns the hold of a kind and subject, nil for none.
func (h Holds) Of(kind, subject string) *Hold {
	i := slices.IndexFunc(h, func(x Hold) bool { return x.Kind == kind && x.Subject == subject })
	if i < 0 {
		return nil
	}
	return &h[i]
}

// Drained reports whether a member, with its incarnation, is to own no shards.
func (h Holds) Drained(member string) bool {
	return h.Of(HoldMember, Identity(member)) != nil
}
