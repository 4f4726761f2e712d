package coordination

import (
	"errors"
	"fmt"
	"time"
)

// Config is how a member takes part in the fleet. Every field is needed.
type Config struct {
	Instance       string // identity, unique among live members
	Version        string // of the program, shown to operators
	Shards         int
	MemberTTL      time.Duration // silence after which a member is gone
	LeaderTTL      time.Duration // how long the leader's lock outlives its holder
	HandoffBudget  time.Duration // how long an owner may take to release a shard
	DrainTimeout   time.Duration // how long one that is shutting down may take
	SinkGrace      time.Duration // how long a member may be without Postgres while others have it
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

// beatEvery leaves room for several beats to be lost within one TTL.
func (c Config) beatEvery() time.Duration { return c.MemberTTL / 5 }

// renewEvery leaves room for two renewals to fail.
func (c Config) renewEvery() time.Duration { return c.LeaderTTL / 4 }
