package store

import (
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
)

// P7: the server's own limits have the codes of a row's, and no row has to do with them.
func TestALimitOfTheServerIsAnOutage(t *testing.T) {
	t.Parallel()
	for _, routine := range []string{"PreCommit_Notify", "GetNewTransactionId", "GetNewMultiXactId"} {
		require.Equal(t, protocol.Unavailable, KindOf(&pgconn.PgError{Code: "54000", Routine: routine}), routine)
	}
	require.Equal(t, protocol.Rejected, KindOf(&pgconn.PgError{Code: "54000", Routine: "_bt_check_third_page"}))
}
