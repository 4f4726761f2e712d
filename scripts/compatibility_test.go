package scripts_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/stream"
)

// The table that users choose their servers by has been run: every cell is filled, a red
// one is explained below the table, and the oldest versions are those the service refuses below.
func TestTheTableOfServersHasBeenRun(t *testing.T) {
	page, err := os.ReadFile("../docs/reference/compatibility.md")
	require.NoError(t, err)
	text := string(page)
	require.Contains(t, text, fmt.Sprintf("| Redis | %d.0 |", stream.OldestServer))
	require.Contains(t, text, fmt.Sprintf("| Postgres | %d |", store.OldestServer))

	_, table, found := strings.Cut(text, "<!-- matrix -->\n")
	require.True(t, found)
	table, below, found := strings.Cut(table, "<!-- end of matrix -->")
	require.True(t, found)
	rows := strings.Split(strings.TrimSpace(table), "\n")
	require.Greater(t, len(rows), 3)
	row := regexp.MustCompile(`^\| ([^|]+) \| (\d[^|]*) \| (ok|\*\*FAILED\*\*) \| (ok: \d+ entries/s, p99 \d+ ms|\*\*FAILED\*\*) \| 20\d\d-\d\d-\d\d \|$`)
	for _, line := range rows[2:] {
		cells := row.FindStringSubmatch(line)
		require.NotNil(t, cells, "%s", line)
		if strings.Contains(line, "FAILED") {
			require.Contains(t, below, cells[1], "say below the table why it failed")
		}
	}
	for _, server := range []string{"Redis (installed)", "Postgres (installed)", "with TimescaleDB", "redis-7.2", "valkey-8"} {
		require.Contains(t, table, server)
	}
}
