package console

import (
	"bytes"
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
		require.Equal(t, update{"a": "11", "b": "same"}, h.take(c).update)
		<-time.After(time.Second)
		require.Equal(t, update{"a": "12"}, h.take(c).update, "what did not change is not sent again")
		h.leave("page", c)
		synctest.Wait()
		<-time.After(5 * time.Second)
		require.Equal(t, 12, n)
	})
}

func TestWhatManyViewersGetIsEncodedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		n := 0
		join := func() *client {
			return h.join(t.Context(), "page", time.Second, func(context.Context) renderer {
				return func(context.Context) (update, error) {
					n++
					return update{"a": strconv.Itoa(n), "b": "<b>"}, nil
				}
			})
		}
		first := join()
		synctest.Wait() // else those who join while it is shown get it in two ways
		require.NotNil(t, h.take(first))
		var clients []*client
		for range maxClients - 1 {
			clients = append(clients, join())
		}
		require.Nil(t, join(), "one too many")
		for range 3 {
			frames := make(map[*event]bool)
			for _, c := range clients {
				if f := h.take(c); f != nil {
					frames[f] = true
				}
			}
			require.Len(t, frames, 1, "of %d viewers", len(clients))
			for f := range frames {
				require.Contains(t, string(f.encoded()), `data: {"a":"`)
				require.NotContains(t, string(f.encoded()[:len(f.encoded())-2]), "\n", "a line, whatever is in it")
				require.True(t, bytes.HasSuffix(f.encoded(), []byte("}\n\n")))
			}
			<-time.After(time.Second)
			synctest.Wait()
		}
		require.Equal(t, 4, n)
		for _, c := range append(clients, first) {
			h.leave("page", c)
		}
		synctest.Wait()
	})
}
