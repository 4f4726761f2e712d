package stream

import (
	"context"
	"strconv"
	"strings"
)

// Notification is a hint that something may have happened. One that is missed costs a
// short wait, nothing else.
type Notification struct {
	Shards        []int // got something
	DispatchLease bool  // the dispatch lease was given back
	Leader        bool  // the leadership was given back
	Group         bool  // the group was recreated: queues hold what they did not
	Again         bool  // what the shards got may lie before what was read
	Members       bool  // a member has something new to say of itself
}

const (
	leaderPayload  = "leader"  // rung by a leader that has resigned
	membersPayload = "members" // rung by a member that is leaving
	againPayload   = "again"   // before shards: their queues are to be read from the start
)

// Notifications calls heard for every bell until ctx ends. The subscription comes back
// by itself after an outage.
func (g *Group) Notifications(ctx context.Context, heard func(Notification)) {
	sub := g.client.Subscribe(ctx, g.names.NotifyChannel())
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
			heard(parseNotification(m.Payload))
		}
	}
}

// NotifyLeadership says that the leadership is free.
func (g *Group) NotifyLeadership(ctx context.Context) error {
	return failure("notify of a free leadership", g.client.Publish(ctx, g.names.NotifyChannel(), leaderPayload).Err())
}

// NotifyMembers says that a member has something new to say of itself.
func (g *Group) NotifyMembers(ctx context.Context) error {
	return failure("notify the members", g.client.Publish(ctx, g.names.NotifyChannel(), membersPayload).Err())
}

func parseNotification(text string) Notification {
	switch text {
	case "lease":
		return Notification{DispatchLease: true}
	case "group":
		return Notification{Group: true}
	case leaderPayload:
		return Notification{Leader: true}
	case membersPayload:
		return Notification{Members: true}
	}
	var b Notification
	text, b.Again = strings.CutPrefix(text, againPayload+" ")
	for _, field := range strings.Fields(text) {
		if n, err := strconv.Atoi(field); err == nil {
			b.Shards = append(b.Shards, n)
		}
	}
	return b
}
