package protocol

import (
	"slices"
	"strconv"
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

// HeldAsAssigned returns what is held back as far as the assignments tell, for one who cannot
// read it: a shard that nobody is assigned, and a member that is assigned none, may be. Where all
// members are assigned none that says nothing of them.
func HeldAsAssigned(assigned, members []string) Holds {
	var held Holds
	for shard, member := range assigned {
		if member == "" {
			held = append(held, Hold{Kind: HoldShard, Subject: strconv.Itoa(shard)})
		}
	}
	has := func(m string) bool { return slices.Contains(assigned, m) }
	if !slices.ContainsFunc(members, has) {
		return held
	}
	for _, m := range members {
		if !has(m) {
			held = append(held, Hold{Kind: HoldMember, Subject: Identity(m)})
		}
	}
	return held
}
