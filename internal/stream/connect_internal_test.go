package stream

import (
	"testing"

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
