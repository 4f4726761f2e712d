package store

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
)

// P7: a login that was accepted once is refused while its password is rotated; one
// that never was, or that stays refused, is for a person to mend.
func TestP7ARefusedLoginIsAnOutageWhileItsFileMayFollow(t *testing.T) {
	t.Parallel()
	now := time.Now()
	r := &rotation{now: func() time.Time { return now }}
	refuse := func(code string) protocol.FailureKind {
		err := &pgconn.PgError{Severity: "FATAL", Code: code}
		r.judge(err)
		return KindOf(err)
	}
	require.Equal(t, protocol.Misconfigured, refuse("28P01"), "never accepted")
	require.NoError(t, r.after(t.Context(), nil))
	require.Equal(t, protocol.Unavailable, refuse("28P01"))
	require.Equal(t, protocol.Unavailable, refuse("28000"))
	require.Equal(t, protocol.Misconfigured, refuse("3D000"))
	now = now.Add(rotationGrace)
	require.Equal(t, protocol.Unavailable, refuse("28P01"))
	now = now.Add(time.Second)
	require.Equal(t, protocol.Misconfigured, refuse("28P01"), "it stays so")
	require.NoError(t, r.after(t.Context(), nil))
	require.Equal(t, protocol.Unavailable, refuse("28P01"), "the next rotation")
}
