package history_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/history"
)

func TestMovesAreReadAsTheyWereWritten(t *testing.T) {
	t.Parallel()
	want := history.Moves{Dropped: 7}
	for _, device := range []string{"356307042441013", "", "two words", "a\nb", `"\"`, "\u202egnp.exe", "\x1b[31m", "\xff\xfe", strings.Repeat("x", 10_000)} {
		want.Moves = append(want.Moves, history.Move{Device: device, Lat: -48.123456, Lon: 179.5, At: 1_764_000_000_123, Speed: 50})
	}
	require.Equal(t, want, history.ParseMoves(want.Text()))
	require.Equal(t, history.Moves{}, history.ParseMoves(""))

	// What another program publishes is no move, or one that a map can show.
	got := history.ParseMoves("x\n1 2 3\nNaN 0 0 0 \"a\"\n91 0 0 0 \"a\"\n1 2 3 Inf \"a\"\n1 2 3 4 a\n1 2 3 4 \"a\"\n" + (&history.Moves{Moves: []history.Move{{Lat: math.NaN()}}}).Text())
	require.Equal(t, []history.Move{{Device: "a", Lat: 1, Lon: 2, At: 3, Speed: 4}}, got.Moves)
	require.Len(t, history.ParseMoves(strings.Repeat("1 2 3 4 \"a\"\n", history.LiveLimit+2)).Moves, history.LiveLimit)
}

func TestAMoveIsJSONWhateverItsDeviceIsCalled(t *testing.T) {
	t.Parallel()
	for _, device := range []string{"a", `"],[`, "\\", "\n", "<script>"} {
		m := history.Move{Device: device, Lat: 1.5, Lon: -2.25, At: 3, Speed: 4.4}
		var read []any
		require.NoError(t, json.Unmarshal(m.AppendJSON(nil, device), &read))
		require.Equal(t, []any{device, 1.5, -2.25, 3.0, 4.0}, read)
	}
}
