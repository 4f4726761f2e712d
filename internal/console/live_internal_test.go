package console

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// pipe is a listener for one connection without buffers.
type pipe struct {
	conns chan net.Conn
	once  sync.Once
}

func (p *pipe) Accept() (net.Conn, error) {
	conn, ok := <-p.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}
func (p *pipe) Close() error   { p.once.Do(func() { close(p.conns) }); return nil }
func (p *pipe) Addr() net.Addr { return &net.TCPAddr{} }

func TestAViewerThatDoesNotReadIsDroppedAndHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		rendered := 0
		dropped := make(chan error, 1)
		server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c := h.join(r.Context(), "page", time.Second, func(context.Context) renderer {
				return func(context.Context) (update, error) {
					rendered++
					return update{"part": strconv.Itoa(rendered), "still": "x"}, nil
				}
			})
			defer h.leave("page", c)
			dropped <- h.stream(w, r, c)
		})}
		listener := &pipe{conns: make(chan net.Conn, 1)}
		go func() { _ = server.Serve(listener) }()
		client, conn := net.Pipe()
		listener.conns <- conn
		began := time.Now()
		_, err := client.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
		require.NoError(t, err)
		synctest.Wait()
		require.Equal(t, 1, h.count())
		require.ErrorContains(t, <-dropped, "timeout")
		require.Equal(t, writeFor, time.Since(began), "it was given %v", writeFor)
		synctest.Wait()
		require.Zero(t, h.count())
		require.Empty(t, h.topics, "nothing runs when nobody watches")
		require.LessOrEqual(t, rendered, int(writeFor/time.Second)+1)
		require.NoError(t, server.Close())
		require.NoError(t, client.Close())
	})
}

func TestASlowViewerGetsTheNewestStateOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		n := 0
		c := h.join(t.Context(), "page", time.Second, func(context.Context) renderer {
			return func(context.Context) (update, error) {
				n++
				return update{"a": strconv.Itoa(n), "b": "same"}, nil
			}
		})
		<-time.After(10500 * time.Millisecond)
		require.Equal(t, update{"a": "11", "b": "same"}, h.take(c))
		<-time.After(time.Second)
		require.Equal(t, update{"a": "12"}, h.take(c), "what did not change is not sent again")
		h.leave("page", c)
		synctest.Wait()
		<-time.After(5 * time.Second)
		require.Equal(t, 12, n)
	})
}
