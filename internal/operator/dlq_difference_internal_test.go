package operator

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// An edit changes the text of one member and nothing else, and its difference
// shows that member only.
func TestAnEditKeepsTheOrderOfMembersAndShowsOnlyWhatChanged(t *testing.T) {
	const payload = `{"timestamp": "2026-01-01T00:00:00Z","longitude":1.50,"latitude":91,"io":{"z":{"__bigint":"18446744073709551615"},"a":[1, 2]},"latitude":92 }`
	fields := []string{"ts", "1", "device_id", "d", "payload", payload}
	for _, tt := range []struct{ name, value, text, diff string }{
		{"payload.latitude", "42.5", strings.Replace(payload, "92", "42.5", 1), "- payload.latitude=92\n+ payload.latitude=42.5"},
		{"payload.io.a", "[1,3]", strings.Replace(payload, "[1, 2]", "[1,3]", 1), "- payload.io.a=[1, 2]\n+ payload.io.a=[1,3]"},
		{"payload.io.b.c", `"x"`, strings.Replace(payload, "[1, 2]", `[1, 2],"b":{"c":"x"}`, 1), `+ payload.io.b={"c":"x"}`},
		{"payload.speed", "7", strings.Replace(payload, "92 ", `92,"speed":7 `, 1), "+ payload.speed=7"},
		{
			"payload", `{"latitude":92,"longitude":1.50,"timestamp":"2026-01-01T00:00:00Z"}`, "",
			`- payload.io={"z":{"__bigint":"18446744073709551615"},"a":[1, 2]}`,
		},
		{"payload", strings.ReplaceAll(payload, " ", ""), "", "~ payload: only spaces or the order of its members"},
		{"device_id", "e", payload, "- device_id=d\n+ device_id=e"},
		{"more", "x", payload, "+ more=x"},
	} {
		changed, err := SetField(fields, tt.name, tt.value)
		require.NoError(t, err, tt.name)
		if tt.text != "" {
			require.Equal(t, tt.text, changed[5], tt.name)
		}
		require.Equal(t, tt.diff, difference(fields, changed), tt.name)
	}
	require.Equal(t, payload, fields[5])
	require.Equal(t, "- ts=1", difference(fields, fields[2:]))
	require.Equal(t, "- payload=7\n+ payload=8", difference([]string{"payload", "7"}, []string{"payload", "8"}))
	for name, value := range map[string]string{"payload.latitude": "north", "payload.longitude.x": "1"} {
		_, err := SetField(fields, name, value)
		require.Error(t, err, name)
	}
	empty, err := SetField([]string{"ts", "1"}, "payload.a", "1")
	require.NoError(t, err)
	require.Equal(t, []string{"ts", "1", "payload", `{"a":1}`}, empty)
}
