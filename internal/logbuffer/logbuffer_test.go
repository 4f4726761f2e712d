package logbuffer_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/logbuffer"
)

// gate is an output that takes nothing while it is shut.
type gate struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.all.Write(p)
}

func TestLinesArriveInOrder(t *testing.T) {
	var out gate
	w := logbuffer.New(&out, 1<<20)
	var want strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&want, "line %d\n", i)
		_, err := fmt.Fprintf(w, "line %d\n", i)
		require.NoError(t, err)
	}
	w.Flush(10 * time.Second)
	require.Equal(t, want.String(), out.all.String())
	require.Zero(t, w.Dropped())
}

func TestAStalledReaderStallsNoWriter(t *testing.T) {
	var out gate
	out.mu.Lock() // as a full pipe
	w := logbuffer.New(&out, 100)
	for range 50 {
		_, err := w.Write([]byte("0123456789"))
		require.NoError(t, err)
	}
	require.Equal(t, uint64(40), w.Dropped(), "what does not fit is counted")
	w.Flush(time.Millisecond) // gives up
	out.mu.Unlock()
	w.Flush(10 * time.Second)
	require.Equal(t, strings.Repeat("0123456789", 10), out.all.String(), "what fits arrives later")
	_, err := w.Write([]byte("again\n"))
	require.NoError(t, err)
	w.Flush(10 * time.Second)
	require.True(t, strings.HasSuffix(out.all.String(), "again\n"))
}

type closed struct{}

func (closed) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

var _ io.Writer = closed{}

func TestAReaderThatIsGoneIsNoError(t *testing.T) {
	w := logbuffer.New(closed{}, 100)
	_, err := w.Write([]byte("0123456789"))
	require.NoError(t, err)
	w.Flush(10 * time.Second)
	require.Equal(t, uint64(1), w.Dropped())
}

func TestFlushEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, p := io.Pipe()
		w := logbuffer.New(p, 100)
		_, err := w.Write([]byte("0123456789"))
		require.NoError(t, err)
		began := time.Now()
		w.Flush(time.Second)
		require.Equal(t, time.Second, time.Since(began))
		require.NoError(t, r.Close())
		w.Flush(time.Second)
		w.Close()
	})
}
