package tasks

import (
	"context"
	"errors"

	"github.com/trmtracking/processor/coordination"
	"github.com/trmtracking/processor/internal/protocol"
)

// StreamType is the leader's task that reports a key which is no stream: nothing of it
// can be read, and those of other streams go on.
type StreamType struct {
	look   func(ctx context.Context) error
	name   string
	ledger coordination.Ledger
	wrong  bool // an incident may be open
}

// NewStreamType returns the task; look reads something of the stream.
func NewStreamType(look func(ctx context.Context) error, name string, ledger coordination.Ledger) *StreamType {
	return &StreamType{look: look, name: name, ledger: ledger, wrong: true}
}

// Pass opens an incident, or closes it.
func (s *StreamType) Pass(ctx context.Context) error {
	err := s.look(ctx)
	if f, ok := errors.AsType[*protocol.Failure](err); ok && f.Code == "WRONGTYPE" {
		s.wrong = true
		return s.ledger.Open(ctx, protocol.NotAStream, s.name, map[string]any{"error": err.Error()})
	}
	if err != nil || !s.wrong {
		return err
	}
	if err = s.ledger.Close(ctx, protocol.NotAStream, s.name); err == nil {
		s.wrong = false
	}
	return err
}
