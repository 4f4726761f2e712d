package store

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/protocol"
)

// A look-up that hangs holds up who needs its answer and nobody else, and makes no
// batch smaller.
func TestALookUpThatHangsHoldsUpNoOtherWorker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newKnown[int]()
		ask := func(age time.Duration, read func() (int, error)) (int, error) {
			return k.get(t.Context(), age, read)
		}
		answer := func(n int) func() (int, error) { return func() (int, error) { return n, nil } }
		hang := make(chan struct{})
		hanging := func() (int, error) { <-hang; return 0, context.DeadlineExceeded }
		notRead := func() (int, error) { panic("read") }

		first := make(chan error)
		go func() { _, err := ask(time.Second, hanging); first <- err }()
		synctest.Wait()
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := k.get(short, time.Second, notRead)
		requireNotTooMuch(t, err, "nothing is known yet: the wait ends with its context")
		close(hang)
		requireNotTooMuch(t, <-first, "the reader's own limit")

		n, err := ask(time.Second, answer(1))
		require.NoError(t, err)
		require.Equal(t, 1, n)
		n, err = ask(time.Second, notRead)
		require.NoError(t, err)
		require.Equal(t, 1, n)

		time.Sleep(2 * time.Second) // of synctest: what is known is old now
		hang = make(chan struct{})
		go func() { _, err := ask(time.Second, hanging); first <- err }()
		synctest.Wait()
		n, err = ask(time.Second, notRead)
		require.NoError(t, err, "others go on with what was known")
		require.Equal(t, 1, n)
		second := make(chan int)
		go func() { n, _ := ask(0, answer(2)); second <- n }()
		synctest.Wait()
		close(hang)
		require.Error(t, <-first)
		require.Equal(t, 2, <-second, "who needs it new waits and reads")
	})
}

func requireNotTooMuch(t *testing.T, err error, why string) {
	t.Helper()
	f, ok := errors.AsType[*protocol.Failure](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, protocol.Unavailable, f.Kind, why)
	require.False(t, f.TooMuch, why)
}
