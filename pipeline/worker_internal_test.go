package pipeline

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestABatchOfABacklogMayWaitLonger(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for _, tt := range []struct{ age, want time.Duration }{
		{0, 20 * ms},
		{100 * ms, 20 * ms},
		{800 * ms, 100 * ms},
		{time.Hour, 200 * ms},
		{-time.Hour, 20 * ms}, // the clock of Redis is ahead of ours
	} {
		require.Equal(t, tt.want, maxBatchWait(tt.age, 20*ms), "of entries that are %s old", tt.age)
	}
}
