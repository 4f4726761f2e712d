package testenv

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/telemetry"
)

//go:embed publisher.mjs
var publisher string

// Published is an entry of the Node.js publisher: its fields, and what it
// meant by them.
type Published struct {
	ID         string          `json:"id"`     // in the stream; "" where it was only printed
	Fields     []string        `json:"fields"` // where it was only printed
	Codec      string          `json:"codec"`
	DeviceID   string          `json:"device_id"`
	Timestamp  time.Time       `json:"timestamp"`
	Latitude   float64         `json:"latitude"`
	Longitude  float64         `json:"longitude"`
	Altitude   float32         `json:"altitude"`
	Angle      float32         `json:"angle"`
	Speed      float32         `json:"speed"`
	Satellites int16           `json:"satellites"`
	Priority   int16           `json:"priority"`
	Attributes json.RawMessage `json:"attributes"`
}

// Record returns what the entry has to become, without what its ID decides.
func (p *Published) Record() telemetry.Record {
	return telemetry.Record{
		DeviceID: p.DeviceID, Codec: p.Codec, TimeUS: p.Timestamp.UnixMicro(),
		Latitude: p.Latitude, Longitude: p.Longitude, Altitude: p.Altitude, Angle: p.Angle, Speed: p.Speed,
		Satellites: p.Satellites, Priority: p.Priority, Attributes: p.Attributes,
	}
}

// PublishWithNode runs a publisher that shares no code and no language with the
// service, like the platform's own publisher: with HOST PORT STREAM COUNT SEED, or with
// --print-only COUNT SEED. The test skips where there is no Node.js.
func PublishWithNode(tb testing.TB, args ...string) []Published {
	tb.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		tb.Skip("SKIPPED: Node.js is not installed, so nobody but ourselves has fed the service here")
	}
	cmd := exec.CommandContext(tb.Context(), node, append([]string{"--input-type=module", "-"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewBufferString(publisher), &stderr
	out, err := cmd.Output()
	require.NoError(tb, err, stderr.String())
	var all []Published
	for lines := json.NewDecoder(bytes.NewReader(out)); lines.More(); {
		var p Published
		require.NoError(tb, lines.Decode(&p))
		all = append(all, p)
	}
	return all
}
