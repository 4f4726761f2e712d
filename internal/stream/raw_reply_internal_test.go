package stream

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestRawReplyHoldsWhatWasWrittenHoweverItArrives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := &rawReply{b: make([]byte, 0, rapid.IntRange(0, 64).Draw(t, "first size"))}
		var want []byte
		for _, part := range rapid.SliceOf(rapid.SliceOf(rapid.Byte())).Draw(t, "parts") {
			source := io.Reader(bytes.NewReader(append(bytes.Clone(part), "the next reply"...)))
			if rapid.Bool().Draw(t, "in pieces") {
				source = iotest.OneByteReader(source)
			}
			switch rapid.SampledFrom([]string{"written", "limited", "unlimited"}).Draw(t, "way") {
			case "written":
				_, err := raw.Write(part)
				require.NoError(t, err)
			case "limited":
				n, err := io.CopyN(raw, source, int64(len(part)))
				require.NoError(t, err)
				require.EqualValues(t, len(part), n)
				rest, err := io.ReadAll(source)
				require.NoError(t, err)
				require.Equal(t, "the next reply", string(rest), "no more is taken than the bulk string has")
			default:
				_, err := io.Copy(raw, iotest.OneByteReader(bytes.NewReader(part)))
				require.NoError(t, err)
			}
			want = append(want, part...)
		}
		require.Equal(t, string(want), string(raw.bytes()))
		require.Equal(t, len(want), raw.size())
		require.LessOrEqual(t, cap(raw.bytes()), max(2*len(want), 64), "memory that is not counted")
	})
}

func TestRawReplyThatEndsEarlyIsAnError(t *testing.T) {
	raw := &rawReply{}
	n, err := io.CopyN(raw, strings.NewReader("short"), 10)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.EqualValues(t, 5, n)
	_, err = io.CopyN(raw, iotest.ErrReader(errors.New("reset by peer")), 10)
	require.ErrorContains(t, err, "reset by peer")
}
