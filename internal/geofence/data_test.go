package geofence_test

import (
	"bufio"
	"compress/gzip"
	"encoding/csv"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/geofence"
)

// dataFile opens a file of the real data, unpacked. The folder is DATA, or
// shared/data beside the module.
func dataFile(t testing.TB, name string) io.Reader {
	t.Helper()
	dir := os.Getenv("DATA")
	if dir == "" {
		root, err := os.Getwd()
		require.NoError(t, err)
		for !exists(filepath.Join(root, "go.mod")) {
			require.NotEqual(t, root, filepath.Dir(root), "no go.mod above the test")
			root = filepath.Dir(root)
		}
		dir = filepath.Join(root, "..", "shared", "data")
	}
	if !exists(dir) {
		t.Skipf("real data not found at %s: set DATA to its folder", dir)
	}
	file, err := os.Open(filepath.Join(dir, name))
	require.NoError(t, err)
	t.Cleanup(func() { _ = file.Close() })
	if !strings.HasSuffix(name, ".gz") {
		return file
	}
	unpacked, err := gzip.NewReader(file)
	require.NoError(t, err)
	return unpacked
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// lines decodes a file of one JSON value a line.
func lines[T any](t testing.TB, name string) []T {
	t.Helper()
	var values []T
	scanner := bufio.NewScanner(dataFile(t, name))
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		var v T
		require.NoError(t, json.Unmarshal(scanner.Bytes(), &v))
		values = append(values, v)
	}
	require.NoError(t, scanner.Err())
	require.NotEmpty(t, values)
	return values
}

// row is a line of a track; fix rows of a device are sorted by the caller.
type row struct {
	device string
	fix    geofence.Fix
}

// track reads a file of tracks/ in its order.
func track(t testing.TB, name string) []row {
	t.Helper()
	reader := csv.NewReader(dataFile(t, filepath.Join("tracks", name)))
	records, err := reader.ReadAll()
	require.NoError(t, err)
	rows := make([]row, 0, len(records)-1)
	for _, r := range records[1:] {
		fix := geofence.Fix{TimeUS: us(t, r[1]), Latitude: number(t, r[2]), Longitude: number(t, r[3])}
		if r[6] != "" {
			fix.Speed = geofence.WholeKMH(float32(number(t, r[6])))
		}
		rows = append(rows, row{r[0], fix})
	}
	return rows
}

// fixesOf returns the fixes of a device as the service keeps them: without
// (0, 0), ordered by time, the first of several with one time.
func fixesOf(rows []row, device string) []geofence.Fix {
	var fixes []geofence.Fix
	for _, r := range rows {
		if r.device == device && (r.fix.Latitude != 0 || r.fix.Longitude != 0) {
			fixes = append(fixes, r.fix)
		}
	}
	return inOrder(fixes)
}

func us(t testing.TB, ts string) int64 {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, ts)
	require.NoError(t, err)
	return at.UnixMicro()
}

func number(t testing.TB, s string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(s, 64)
	require.NoError(t, err)
	return v
}
