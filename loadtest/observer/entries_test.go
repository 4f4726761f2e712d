package observer_test

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
	"github.com/trmtracking/processor/loadtest/observer"
)

// The judge keeps a class for each dead letter. A part of the page it was read
// with would keep the whole page.
func TestLettersKeepNoPage(t *testing.T) {
	t.Parallel()
	page := []byte("a page that ends with decode")
	class := telemetry.Class(unsafe.String(&page[len(page)-6], 6))
	all := func(yield func(telemetry.DeadLetter, error) bool) { yield(telemetry.DeadLetter{Class: class}, nil) }
	seen := 0
	for l, err := range observer.Letters(all) {
		require.NoError(t, err)
		require.Equal(t, "decode", l.Class)
		require.NotSame(t, unsafe.StringData(string(class)), unsafe.StringData(l.Class))
		seen++
	}
	require.Equal(t, 1, seen)
}
