package stream

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What the servers say of themselves: nodes of a Cluster are several, and a sentinel is no
// server of the stream.
func TestTheModeIsKnownFromRedisAndFromValkey(t *testing.T) {
	for info, want := range map[string]string{
		"# Server\r\nredis_version:7.0.15\r\nredis_mode:cluster\r\nrun_id:ab\r\n":                                               "cluster",
		"# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\nserver_mode:cluster\r\nrun_id:ab\r\n": "cluster",
		"# Server\r\nserver_name:valkey\r\nserver_mode:sentinel\r\n":                                                            "sentinel",
		"# Server\r\nredis_mode:standalone\r\n":                                                                                 "standalone",
		"":                                                                                                                      unknownServer,
	} {
		require.Equal(t, want, serverMode(info), "%q", info)
	}
}

// P1: what is decided for one server is not sent to another, over whichever of the
// connections that are made while the change is noticed.
func TestNoConnectionPassesAChangeOfTheServerThatIsBeingNoticed(t *testing.T) {
	s := &servers{nodes: make(map[string]bool)}
	require.NoError(t, s.notice("standalone", "first", s.noticed()))
	const n = 5
	answers, begin := make(chan error, n), make(chan struct{})
	called := 0
	s.onChange(func() {
		called++
		close(begin)
		select {
		case err := <-answers:
			t.Errorf("a connection passes while the change is being noticed: %v", err)
		case <-time.After(100 * time.Millisecond): // they had time to
		}
	})
	before := s.noticed()
	for range n - 1 {
		go func() {
			<-begin
			answers <- s.notice("standalone", "second", before)
		}()
	}
	require.ErrorIs(t, s.notice("standalone", "second", before), errServerChanged)
	for range n - 1 {
		require.ErrorIs(t, <-answers, errServerChanged, "what waits for it was decided for the server before")
	}
	require.Equal(t, 1, called)
	require.NoError(t, s.notice("standalone", "second", s.noticed()))
}
