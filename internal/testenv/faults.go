package testenv

import (
	"testing"

	"github.com/trmtracking/processor/internal/devenv"
)

// Proxy puts a proxy that makes network faults before a server. It is closed
// when the test ends.
func Proxy(tb testing.TB, upstream string) *devenv.Proxy {
	tb.Helper()
	p, err := devenv.NewProxy(upstream)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := p.Close(); err != nil {
			tb.Errorf("close proxy: %v", err)
		}
	})
	return p
}
