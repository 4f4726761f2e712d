package testenv

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
)

// AppendOnlyFile returns the path of the append-only file of a Redis that a test started,
// and how many bytes it has.
func AppendOnlyFile(tb testing.TB, redis *devenv.Server) (path string, size int) {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join(redis.Dir(), "data", "appendonlydir", "*.incr.aof"))
	require.NoError(tb, err)
	require.Len(tb, files, 1)
	info, err := os.Stat(files[0])
	require.NoError(tb, err)
	return files[0], int(info.Size())
}
