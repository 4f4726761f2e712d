package oracle

import (
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/stretchr/testify/require"
)

// The vectors are those that the authors of xxHash publish; the library is a
// second opinion on every length.
func TestHashIsThatOfTheSpecification(t *testing.T) {
	require.Equal(t, uint64(0xEF46DB3751D8E999), xxh64(nil))
	require.Equal(t, uint64(0x44BC2CF5AD770999), xxh64([]byte("abc")))
	for n := range 100 {
		text := strings.Repeat("3563070424410", n)[:n]
		require.Equal(t, xxhash.Sum64String(text), xxh64([]byte(text)), "%d bytes", n)
	}
}
