package coordination

import (
	"errors"
	"fmt"
	"time"

	"github.com/trmtracking/processor/internal/protocol"
)

// Config holds the settings of a member. Every field is required.
type Config struct {
	Instance       string // identity, unique among live members
	Incarnation    string // of this process; "" makes one
	Version        string // of the program, shown to operators
	Deploy         string // what started it, the same for all members of one deploy; "" if unknown
	Several        bool   // the process serves other streams, too: it waits where this one's key is no stream
	Shards         int
	MemberTTL      time.Duration // silence after which a member is gone
	LeaderTTL      time.Duration // how long the leader's lock outlives the leader
	HandoffBudget  time.Duration // how long an owner may take to release a shard
	DrainTimeout   time.Duration // how long an owner that is shutting down may take
	SinkGrace      time.Duration // how long a member may be without Postgres while another member reaches it
	ClaimInterval  time.Duration
	ClaimThreshold time.Duration
}

func (c Config) check() error {
	var errs []error
	if c.Instance == "" {
		errs = append(errs, errors.New("coordination: an instance needs an identity"))
	}
	if c.Shards < 1 {
		errs = append(errs, fmt.Errorf("coordination: %d shards", c.Shards))
	}
	for name, d := range map[string]time.Duration{
		"MemberTTL": c.MemberTTL, "LeaderTTL": c.LeaderTTL, "HandoffBudget": c.HandoffBudget,
		"DrainTimeout": c.DrainTimeout, "SinkGrace": c.SinkGrace,
		"ClaimInterval": c.ClaimInterval, "ClaimThreshold": c.ClaimThreshold,
	} {
		if d <= 0 {
			errs = append(errs, fmt.Errorf("coordination: %s is %v, want more than 0", name, d))
		}
	}
	return errors.Join(errs...)
}

// oftenEnough is often enough for members whose TTL is another one, as while it is being changed:
// each judges the others by its own.
const oftenEnough = time.Second

// beatEvery allows several heartbeats to be lost within one TTL.
func (c Config) beatEvery() time.Duration { return min(c.MemberTTL/5, oftenEnough) }

// renewEvery allows two renewals to fail.
func (c Config) renewEvery() time.Duration { return min(c.LeaderTTL/4, oftenEnough) }

func (c Config) budgets() protocol.Budgets {
	return protocol.Budgets{HandOff: c.HandoffBudget, Drain: c.DrainTimeout}
}
