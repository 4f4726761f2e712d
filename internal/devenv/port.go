package devenv

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"syscall"
)

// Ports are taken from below the range that kernels use for outgoing
// connections (32768 and up on Linux, 49152 and up on macOS). A server that is
// stopped for a while must get its port back, and a client that tries a dead
// port of that range can, by a quirk of TCP, end up connected to itself.
const (
	lowestPort  = 12000
	highestPort = 32000
)

// FreePort finds a loopback port that is free at the moment.
func FreePort() (int, error) {
	const tries = 200
	var last error
	for range tries {
		port := lowestPort + rand.IntN(highestPort-lowestPort)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			last = err
			if errors.Is(err, syscall.EADDRINUSE) {
				continue
			}
			break
		}
		if err := l.Close(); err != nil {
			return 0, fmt.Errorf("release port %d: %w", port, err)
		}
		return port, nil
	}
	return 0, fmt.Errorf("find a free port: %w", last)
}
