package protocol_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
)

func TestWhatPostgresMayHaveLostIsRedelivered(t *testing.T) {
	id := ids(1, 2, 3, 4, 5, 6)
	tests := []struct {
		name        string
		marks       protocol.Marks
		again       bool
		after, upTo uint64
	}{
		{"nothing was acknowledged beyond the mark", protocol.Marks{Applied: id[3], Acked: id[3], AckedKnown: true, Delivered: id[5]}, false, 0, 0},
		{"acknowledged beyond the mark", protocol.Marks{Applied: id[1], Acked: id[3], AckedKnown: true, Delivered: id[5]}, true, 2, 4},
		{"no mark in Postgres", protocol.Marks{Acked: id[3], AckedKnown: true, Delivered: id[5]}, true, 0, 4},
		{"the acked mark is lost", protocol.Marks{Applied: id[1], Delivered: id[5]}, true, 2, 6},
		{"the group was recreated and has not come so far", protocol.Marks{Applied: id[1], Acked: id[5], AckedKnown: true, Delivered: id[2]}, true, 2, 6},
		{"the group was recreated just now", protocol.Marks{Applied: id[1], Acked: id[5], AckedKnown: true}, true, 2, 6},
		{"both are lost", protocol.Marks{Applied: id[1]}, false, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			after, upTo, ok := protocol.RangeToRedeliver(tt.marks)
			require.Equal(t, tt.again, ok)
			if ok {
				require.Equal(t, tt.after, after.Seq)
				require.Equal(t, tt.upTo, upTo.Seq)
			}
		})
	}
}
