package devenv_test

import (
	"bufio"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/devenv"
)

// echo answers every line with the same line and reports it to heard.
func echo(t *testing.T) (addr string, heard chan string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	heard = make(chan string, 16)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for lines := bufio.NewReader(conn); ; {
					line, err := lines.ReadString('\n')
					if err != nil {
						return
					}
					heard <- line
					if _, err := io.WriteString(conn, line); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String(), heard
}

func proxyTo(t *testing.T, upstream string) *devenv.Proxy {
	t.Helper()
	p, err := devenv.NewProxy(upstream)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

func dial(t *testing.T, p *devenv.Proxy) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func say(t *testing.T, conn net.Conn, line string) {
	t.Helper()
	_, err := io.WriteString(conn, line)
	require.NoError(t, err)
}

func requireReply(t *testing.T, conn net.Conn, line string) {
	t.Helper()
	got := make([]byte, len(line))
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	_, err := io.ReadFull(conn, got)
	require.NoError(t, err)
	require.Equal(t, line, string(got))
}

func requireSilence(t *testing.T, conn net.Conn) {
	t.Helper()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	_, err := conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func requireReset(t *testing.T, conn net.Conn) {
	t.Helper()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	_, err := conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestProxyRefusesThenServesAgainOnItsPort(t *testing.T) {
	t.Parallel()
	upstream, _ := echo(t)
	p := proxyTo(t, upstream)
	conn := dial(t, p)
	say(t, conn, "one\n")
	requireReply(t, conn, "one\n")

	require.NoError(t, p.Refuse())
	requireReset(t, conn)
	_, err := net.Dial("tcp", p.Addr())
	require.ErrorIs(t, err, syscall.ECONNREFUSED)

	require.NoError(t, p.Resume())
	conn = dial(t, p)
	say(t, conn, "two\n")
	requireReply(t, conn, "two\n")
}

func TestStalledProxyDeliversLaterEvenForASenderWhoLeft(t *testing.T) {
	t.Parallel()
	upstream, heard := echo(t)
	p := proxyTo(t, upstream)
	stays, leaves := dial(t, p), dial(t, p)
	require.NoError(t, p.Stall())
	say(t, stays, "stays\n")
	requireSilence(t, stays)
	say(t, leaves, "leaves\n")
	require.NoError(t, leaves.Close())
	require.Empty(t, heard)

	require.NoError(t, p.Resume())
	requireReply(t, stays, "stays\n")
	require.ElementsMatch(t, []string{"stays\n", "leaves\n"}, []string{<-heard, <-heard})
}

func TestDroppedReplyMeansExecutedAndUnheard(t *testing.T) {
	t.Parallel()
	upstream, heard := echo(t)
	p := proxyTo(t, upstream)
	lost, idle := dial(t, p), dial(t, p)
	require.NoError(t, p.DropReplies())
	say(t, lost, "lost\n")
	require.Equal(t, "lost\n", <-heard)
	requireSilence(t, lost)

	require.NoError(t, p.Resume())
	requireReset(t, lost)
	say(t, idle, "idle\n")
	requireReply(t, idle, "idle\n")
}

func TestCutResetsConnectionsAndAcceptsNewOnes(t *testing.T) {
	t.Parallel()
	upstream, heard := echo(t)
	p := proxyTo(t, upstream)
	held := dial(t, p)
	require.NoError(t, p.Stall())
	say(t, held, "never delivered\n")
	requireSilence(t, held)
	p.Cut()
	requireReset(t, held)
	require.NoError(t, p.Resume())
	conn := dial(t, p)
	say(t, conn, "next\n")
	requireReply(t, conn, "next\n")
	require.Equal(t, "next\n", <-heard)
}

func TestProxyTakesTheServersPlaceInAURL(t *testing.T) {
	t.Parallel()
	p := proxyTo(t, "127.0.0.1:1")
	got, err := p.URL("postgres://user@127.0.0.1:5432/db?sslmode=disable")
	require.NoError(t, err)
	require.Equal(t, "postgres://user@"+p.Addr()+"/db?sslmode=disable", got)
}
