package stream

import (
	"context"
	"strconv"
	"strings"
)

// Notification is a hint that something may have happened. Missing one costs a
// short poll interval, nothing else.
type Notification struct {
	Shards        []int // with new entries
	Again         []int // to be read from the start: entries may precede the cursor
	DispatchLease bool  // the dispatch lease was released
	Leader        bool  // the leadership was released
	Group         bool  // the group was recreated: all queues must be read from the start
	Members       bool  // a member's state changed
	Watch         bool  // the console shows the devices as they move, for some seconds
}

const (
	groupPayload   = "group"   // published when the group is created, and with entries that may precede cursors
	leaderPayload  = "leader"  // published by a leader that has resigned
	membersPayload = "members" // published by a member that is leaving
	watchPayload   = "watch"   // published every second by a console that shows the live map
	againPayload   = "again"   // precedes shards whose queues are to be read from the start
	newPayload     = "new"     // precedes, after those, shards with new entries
)

// Notifications calls heard for every notification until ctx ends. The
// subscription resumes after an outage.
func (g *Group) Notifications(ctx context.Context, heard func(Notification)) {
	g.subscribe(ctx, g.names.NotifyChannel(), func(text string) { heard(parseNotification(text)) })
}

func (g *Group) subscribe(ctx context.Context, channel string, heard func(text string)) {
	sub := g.client.Subscribe(ctx, channel)
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
			heard(m.Payload)
		}
	}
}

// NotifyLeadership announces that the leadership is free.
func (g *Group) NotifyLeadership(ctx context.Context) error {
	return failure("notify of a free leadership", g.client.Publish(ctx, g.names.NotifyChannel(), leaderPayload).Err())
}

// Watch asks the members to publish what they commit, for some seconds.
func (g *Group) Watch(ctx context.Context) error {
	return failure("ask for what is committed", g.client.Publish(ctx, g.names.NotifyChannel(), watchPayload).Err())
}

// PublishLive publishes what was committed, for the live map.
func (g *Group) PublishLive(ctx context.Context, text string) error {
	return failure("publish what is committed", g.client.Publish(ctx, g.names.LiveChannel(), text).Err())
}

// Live calls heard for what the members publish until ctx ends. What arrives while
// heard is at work for long is dropped.
func (g *Group) Live(ctx context.Context, heard func(text string)) {
	g.subscribe(ctx, g.names.LiveChannel(), heard)
}

// NotifyMembers announces that a member's state changed.
func (g *Group) NotifyMembers(ctx context.Context) error {
	return failure("notify the members", g.client.Publish(ctx, g.names.NotifyChannel(), membersPayload).Err())
}

func parseNotification(text string) Notification {
	switch text {
	case "lease":
		return Notification{DispatchLease: true}
	case groupPayload:
		return Notification{Group: true}
	case leaderPayload:
		return Notification{Leader: true}
	case watchPayload:
		return Notification{Watch: true}
	case membersPayload:
		return Notification{Members: true}
	}
	var b Notification
	to := &b.Shards
	for _, field := range strings.Fields(text) {
		switch n, err := strconv.Atoi(field); {
		case field == againPayload:
			to = &b.Again
		case field == newPayload:
			to = &b.Shards
		case err == nil:
			*to = append(*to, n)
		}
	}
	return b
}
