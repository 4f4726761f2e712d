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
		raw := &rawReply{size: rapid.IntRange(0, 64).Draw(t, "expected size")}
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
		require.LessOrEqual(t, cap(raw.bytes()), len(want)+max(len(want)/4, 64), "memory that is not counted")
	})
}

// A reply with one huge entry takes little more memory than it has bytes.
func TestRawReplyOfAHugeEntryIsNotDoubled(t *testing.T) {
	raw := &rawReply{}
	entry := make([]byte, 64<<20)
	_, err := io.CopyN(raw, bytes.NewReader(entry), int64(len(entry)))
	require.NoError(t, err)
	_, err = raw.Write([]byte("*2\r\n"))
	require.NoError(t, err)
	require.LessOrEqual(t, cap(raw.b), len(entry)+2*replyBytes)
}

// A reply larger than any that is aimed at makes no room for the next one.
func TestABufferIsNoLargerThanAReplyShouldBe(t *testing.T) {
	var p readPace
	p.passed(1, 200<<20, true, 0)
	require.Equal(t, replyBytes, p.buffer(1).size)
	require.Equal(t, replyBytes/4, p.buffer(4).size)
}

func TestRawReplyThatEndsEarlyIsAnError(t *testing.T) {
	raw := &rawReply{}
	n, err := io.CopyN(raw, strings.NewReader("short"), 10)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.EqualValues(t, 5, n)
	_, err = io.CopyN(raw, iotest.ErrReader(errors.New("reset by peer")), 10)
	require.ErrorContains(t, err, "reset by peer")
}
