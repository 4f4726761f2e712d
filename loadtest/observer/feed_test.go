package observer

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The reader knows what the documentation says, and nothing else.
func TestTheFeedIsReadAsItIsDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/reference/timing-feed.md")
	require.NoError(t, err)
	documented := map[string]string{}
	for _, block := range regexp.MustCompile("(?s)```sql feed=(\\w+)\n(.*?)\n   ```").FindAllStringSubmatch(string(page), -1) {
		documented[block[1]] = strings.ReplaceAll(strings.TrimPrefix(block[2], "   "), "\n   ", "\n")
	}
	require.Equal(t, map[string]string{"zone": feedZone, "start": feedStart, "copy": feedCopy, "page": feedPage}, documented)
	require.Equal(t, feedLast, strings.Replace(feedPage, "timing_feed", "timing_changes", 1))
}
