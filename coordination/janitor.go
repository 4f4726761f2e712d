package coordination

import "context"

// Janitor processes dead letters while this member leads.
type Janitor interface {
	// Pass does a bounded part of the work.
	Pass(ctx context.Context) error
	// Deferring returns how many entries wait for another attempt; known is
	// false if that was not counted recently.
	Deferring() (n int64, known bool)
}

// noJanitor is for a fleet without dead letters: nothing is ever deferred.
type noJanitor struct{}

// Pass implements Janitor.
func (noJanitor) Pass(context.Context) error { return nil }

// Deferring implements Janitor.
func (noJanitor) Deferring() (n int64, known bool) { return 0, true }
