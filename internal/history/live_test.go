package history_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/history"
)

func TestMovesAreReadAsTheyWereWritten(t *testing.T) {
	t.Parallel()
	sent := history.Moves{Dropped: 7}
	var want []string
	for _, device := range []string{"356307042441013", "", "two words", "a\nb", `"\"`, "\u202egnp.exe", "\x1b[31m", "\xff\xfe", strings.Repeat("x", 10_000)} {
		sent.Moves = append(sent.Moves, history.Move{Device: device, Lat: -48.123456, Lon: 179.5, At: 1_764_000_000_123, Speed: 50})
		want = append(want, device+"|-48.123456 179.500000 1764000000123 50")
	}
	read := func(text string) (got []string, dropped int) {
		dropped = history.ReadMoves(text, func(device, place string) { got = append(got, device+"|"+place) })
		return got, dropped
	}
	got, dropped := read(sent.Text())
	require.Equal(t, want, got)
	require.Equal(t, 7, dropped)
	got, dropped = read("")
	require.Empty(t, got)
	require.Zero(t, dropped)

	// What another program publishes is no move, or what browsers look at.
	got, _ = read("x\n1 2 3\n\"a\"\n1 2 3 4 a\n1 2 3 4 \"a\n1 2 3 4 \"a\"\n<b> \"c\"\n")
	require.Equal(t, []string{"a|1 2 3 4", "c|<b>"}, got)
	got, _ = read(strings.Repeat("1 2 3 4 \"a\"\n", history.LiveLimit+2))
	require.Len(t, got, history.LiveLimit)
}
