package oracle

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNumbersAreComparedByAllTheirDigits(t *testing.T) {
	for _, same := range [][2]string{
		{"1", "1.0"},
		{"100", "1e2"},
		{"0.05", "5E-2"},
		{"-0", "0"},
		{"0e9", "0.00"},
		{"18446744073709551615", "18446744073709551615.000"},
		{"1.5e+1", "15"},
	} {
		require.True(t, sameNumber(same[0], same[1]), "%v", same)
	}
	for _, other := range [][2]string{
		{"9007199254740993", "9007199254740992"}, // the same double
		{"1", "-1"},
		{"1", "10"},
		{"0.1", "0.10000000000000000001"},
		{"1e999999999999999999999", "1e999999999999999999998"},
		{"12", "1"},
	} {
		require.False(t, sameNumber(other[0], other[1]), "%v", other)
	}
}

func TestJSONIsComparedByValue(t *testing.T) {
	want := `{"16":1.50,"78":"18446744073709551615","x":[1,{"a":null}],"b":true}`
	for _, same := range []string{
		want,
		`{"x": [1, {"a": null}], "b": true, "78": "18446744073709551615", "16": 1.5}`,
		`{"x":[1.0,{"a":null}],"b":true,"78":"18446744073709551615","16":15e-1}`,
	} {
		require.True(t, sameJSON(t, want, same), same)
	}
	for _, other := range []string{
		``, `null`, `{}`, `{"16":1.50}`, want + `1`,
		`{"16":1.50,"78":18446744073709551615,"x":[1,{"a":null}],"b":true}`,
		`{"16":1.50,"78":"18446744073709551615","x":[1,{"a":0}],"b":true}`,
		`{"16":1.50,"78":"18446744073709551615","x":[1],"b":true}`,
		`{"16":1.50,"78":"18446744073709551615","x":{"0":1},"b":true}`,
		`{"16":1.50,"78":"18446744073709551615","x":[1,{"a":null}],"b":"true"}`,
		`{"16":1.50,"78":"18446744073709551616","x":[1,{"a":null}],"b":true}`,
		`{"16":1.50,"79":"18446744073709551615","x":[1,{"a":null}],"b":true}`,
	} {
		require.False(t, sameJSON(t, want, other), other)
	}
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	want, err := parseJSON([]byte(a))
	require.NoError(t, err)
	return sameAttributes(want.(map[string]any), []byte(b))
}
