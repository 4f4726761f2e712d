package store

import (
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
)

// P7: what ends the session is an outage, whatever its code; a login that is refused is
// a matter of configuration.
func TestWhateverEndsTheSessionIsAnOutage(t *testing.T) {
	t.Parallel()
	ended := &pgconn.PgError{Severity: "FATAL", Code: "42710", Message: `"timescaledb" already loaded with a different version`}
	f, ok := errors.AsType[*protocol.Failure](failure("commit a batch", ended))
	require.True(t, ok)
	require.Equal(t, protocol.Unknown, f.Kind)
	ended.Severity = "ERROR"
	f, ok = errors.AsType[*protocol.Failure](failure("commit a batch", ended))
	require.True(t, ok)
	require.Equal(t, protocol.Misconfigured, f.Kind)
}

// P7: a table was altered while statements on it were prepared.
func TestAPlanThatIsOutdatedIsAnOutage(t *testing.T) {
	t.Parallel()
	require.Equal(t, protocol.Unavailable, KindOf(&pgconn.PgError{Code: "0A000", Routine: "RevalidateCachedQuery"}))
	require.Equal(t, protocol.Misconfigured, KindOf(&pgconn.PgError{Code: "0A000"}))
}

// P7: the server's own limits have the codes of a row's, and no row has to do with them.
func TestALimitOfTheServerIsAnOutage(t *testing.T) {
	t.Parallel()
	for _, routine := range []string{"PreCommit_Notify", "GetNewTransactionId", "GetNewMultiXactId"} {
		require.Equal(t, protocol.Unavailable, KindOf(&pgconn.PgError{Code: "54000", Routine: routine}), routine)
	}
	require.Equal(t, protocol.Rejected, KindOf(&pgconn.PgError{Code: "54000", Routine: "_bt_check_third_page"}))
}
