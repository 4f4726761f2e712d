package operator

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/config"
	"github.com/trmtracking/processor/internal/protocol"
	storeadmin "github.com/trmtracking/processor/internal/store/admin"
	streamadmin "github.com/trmtracking/processor/internal/stream/admin"
)

func TestEachIncidentHasAGuide(t *testing.T) {
	file, err := os.ReadFile("../protocol/incident.go")
	require.NoError(t, err)
	var kinds []string
	for _, m := range regexp.MustCompile(`(?m)^\t\w+ += "(\w+)"`).FindAllStringSubmatch(string(file), -1) {
		kinds = append(kinds, m[1])
	}
	require.ElementsMatch(t, kinds, slices.Collect(maps.Keys(incidentGuides)))
	for kind, g := range incidentGuides {
		require.NotEmpty(t, g.section, kind)
		require.NotEmpty(t, g.remedy, kind)
	}
}

func TestTheDoctorSaysThatADatabaseBelongsToAnotherStream(t *testing.T) {
	d := &Diagnosis{}
	d.fleet(config.Config{}, &storeadmin.FleetStatus{Fleet: "stream a, group b", Foreign: true})
	require.Equal(t, LevelError, levelOf(d, "this database belongs to stream a, group b"))
}

func TestTheDoctorDistinguishesForeignConsumers(t *testing.T) {
	d := &Diagnosis{}
	d.stream(config.Redis{Group: "g"}, &streamadmin.ServerStatus{Foreign: []protocol.Consumer{
		{Name: "a", Pending: 3, Idle: time.Second},
		{Name: "b", Idle: time.Second},
		{Name: "c", Pending: 3, Idle: time.Hour},
		{Name: "d", Idle: time.Hour},
	}})
	for _, tt := range []struct{ what, level, remedy string }{
		{`"a" reads in our group, and holds 3 entries that it did not finish`, LevelError, "ProcessorForeignConsumer"},
		{`"b" reads in our group, and holds nothing`, LevelError, "ProcessorForeignConsumer"},
		{`"c" is silent for 1h0m0s, and holds 3 entries`, LevelWarning, "ProcessorForeignConsumer"},
		{`"d" is silent for 1h0m0s, and holds nothing`, LevelWarning, "the leader removes it"},
	} {
		require.Equal(t, tt.level, levelOf(d, tt.what))
		require.Contains(t, remedyOf(d, tt.what), tt.remedy)
	}
}

// about returns the first finding that contains a text.
func about(d *Diagnosis, text string) Finding {
	i := slices.IndexFunc(d.Findings, func(f Finding) bool { return strings.Contains(f.About+": "+f.What, text) })
	if i < 0 {
		return Finding{Level: "none", Remedy: "no such finding"}
	}
	return d.Findings[i]
}

func levelOf(d *Diagnosis, text string) string  { return about(d, text).Level }
func remedyOf(d *Diagnosis, text string) string { return about(d, text).Remedy }
