package store_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
	"github.com/trmtracking/processor/internal/store"
	"github.com/trmtracking/processor/internal/telemetry"
)

// A dry run is refused what a commit would be: also what is checked at its end.
func TestADryRunTriesWhatIsDueAtTheEnd(t *testing.T) {
	t.Parallel()
	s := newSink(t)
	s.exec(t, `create function refuse() returns trigger language plpgsql as 'begin raise exception ''not this one''; end'`)
	s.exec(t, "create constraint trigger refuses after insert on positions deferrable initially deferred for each row execute function refuse()")
	rules := protocol.Rules{Fences: &protocol.Fences{}, Eligibility: telemetry.Eligibility{MaxFutureSkew: time.Minute}, MaxGap: time.Minute}
	stored, rejected, err := store.NewDeadLetters(s.pool, s.scope, 5*time.Second).Try(t.Context(), record(1, `{}`), rules)
	require.NoError(t, err)
	require.ErrorContains(t, rejected, "not this one")
	require.False(t, stored)
}
