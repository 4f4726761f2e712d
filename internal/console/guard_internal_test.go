package console

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

// unsent is a body that the client has not sent.
type unsent struct{ read bool }

func (u *unsent) Read([]byte) (int, error) {
	u.read = true
	return 0, errors.New("it never comes")
}

func TestARefusedSignInIsNotRead(t *testing.T) {
	for name, try := range map[string]struct {
		auth   Auth
		header string
		want   error
	}{
		"of a console that changes nothing": {Auth{}, "", errReadOnly},
		"of another site":                   {Auth{Write: true, Token: "a token of sixteen"}, "cross-site", errForgery},
		"one of too many":                   {Auth{Write: true, Token: "a token of sixteen"}, "", errTooMany},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := newGuard(try.auth)
			require.NoError(t, err)
			for g.tries.Allow() { // the last one
			}
			body := new(unsent)
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, Root+"sign-in/", body)
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set("Sec-Fetch-Site", try.header)
			require.ErrorIs(t, g.signIn(httptest.NewRecorder(), r), try.want)
			require.False(t, body.read)
		})
	}
}
