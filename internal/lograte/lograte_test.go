package lograte

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOneLinePerIntervalIsPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var quiet Limit
		passed := 0
		for range 21 {
			if quiet.Pass() {
				passed++
			}
			<-time.After(time.Second)
		}
		require.Equal(t, 3, passed, "at 0, 10 and 20 s")
	})
}
