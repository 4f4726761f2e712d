package stream

import (
	"context"
	"strconv"
	"strings"
)

// Bell is a hint that something may have happened. One that is missed costs a
// short wait, nothing else.
type Bell struct {
	Shards  []int // got something
	Turn    bool  // the turn was given back
	Leader  bool  // the leadership was given back
	Group   bool  // the group was made again: queues hold what they did not
	Again   bool  // what the shards got may lie before what was read
	Members bool  // a member has something new to say of itself
}

const (
	leaderBell  = "leader"  // rung by a leader that has resigned
	membersBell = "members" // rung by a member that is leaving
	againBell   = "again"   // before shards: their queues are to be read from the start
)

// Bells calls heard for every bell until ctx ends. The subscription comes back
// by itself after an outage.
func (g *Group) Bells(ctx context.Context, heard func(Bell)) {
	sub := g.client.Subscribe(ctx, g.names.Bell())
	defer func() { _ = sub.Close() }()
	messages := sub.Channel()
	for {
		select {
		case <-ctx.Done():
			return
		case m, ok := <-messages:
			if !ok {
				return
			}
			heard(parseBell(m.Payload))
		}
	}
}

// RingLeader says that the leadership is free.
func (g *Group) RingLeader(ctx context.Context) error {
	return failure("ring for a leader", g.client.Publish(ctx, g.names.Bell(), leaderBell).Err())
}

// RingMembers says that a member has something new to say of itself.
func (g *Group) RingMembers(ctx context.Context) error {
	return failure("ring for the members", g.client.Publish(ctx, g.names.Bell(), membersBell).Err())
}

func parseBell(text string) Bell {
	switch text {
	case "turn":
		return Bell{Turn: true}
	case "group":
		return Bell{Group: true}
	case leaderBell:
		return Bell{Leader: true}
	case membersBell:
		return Bell{Members: true}
	}
	var b Bell
	text, b.Again = strings.CutPrefix(text, againBell+" ")
	for _, field := range strings.Fields(text) {
		if n, err := strconv.Atoi(field); err == nil {
			b.Shards = append(b.Shards, n)
		}
	}
	return b
}
