package linear_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/fencelog"
	"github.com/trmtracking/processor/loadtest/linear"
)

// fleet returns a history that is right: shards pass from member to member, each
// commits under its epoch, and calls overlap.
func fleet() []fencelog.Op {
	var ops []fencelog.Op
	at := int64(0)
	op := func(register, kind, token, by string, number, lasts int64) {
		ops = append(ops, fencelog.Op{Register: register, Kind: kind, Token: token, Number: number, By: by, Call: at, Return: at + lasts})
		at += 10
	}
	for shard := range 4 {
		epoch, ack := fmt.Sprintf("epoch/%d", shard), fmt.Sprintf("acknowledge/%d", shard)
		for n := range int64(20) {
			by, e := fmt.Sprintf("i%d", n%3), fmt.Sprint(n+1)
			op(epoch, fencelog.Take, e, by, n+1, 15)
			op(ack, fencelog.Take, "t"+e, by, 0, 5)
			for range 5 {
				op(epoch, fencelog.Use, e, by, n+1, 9)
				op(ack, fencelog.Use, "t"+e, by, 0, 9)
			}
			if n%2 == 0 {
				op(epoch, fencelog.Give, e, by, n+1, 9)
			}
		}
	}
	for n := range 10 {
		op("dispatch lease", fencelog.Take, fmt.Sprint("l", n), "i1", 0, 9)
		op("dispatch lease", fencelog.Take, fmt.Sprint("l", n), "i1", 0, 9) // renewed
		op("dispatch lease", fencelog.Use, fmt.Sprint("l", n), "i1", 0, 9)
	}
	return ops
}

func TestEachStreamHasRegistersOfItsOwn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, stream := range []string{"a", "b", "b"} {
		r, err := fencelog.Open(dir, "i0", stream)
		require.NoError(t, err)
		for _, register := range []string{"epoch/1", "leader", "dispatch lease"} {
			token := stream + register
			r.Done(time.Now(), fencelog.Op{Register: register, Kind: fencelog.Take, Token: token, Number: 1})
		}
	}
	ops, err := fencelog.Read(dir)
	require.NoError(t, err)
	v := linear.Check(ops, time.Minute)
	require.Equal(t, 6, v.Registers)
	require.Equal(t, []string{"dispatch lease of b", "epoch/1 of b", "leader of b"}, v.Wrong, "what is a's is legal, and b's came twice")
}

func TestAHistoryThatIsRightIsAccepted(t *testing.T) {
	t.Parallel()
	v := linear.Check(fleet(), time.Minute)
	require.Empty(t, v.Wrong)
	require.Empty(t, v.Undecided)
	require.Equal(t, 9, v.Registers)
	path := filepath.Join(t.TempDir(), "history.html")
	require.NoError(t, v.Draw(path))
	page, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(page), "i1: take dispatch lease l9")
}

// A commit of an old owner that overlaps the taking of its shard may have come first.
func TestACommitThatOverlapsATakeOverIsAccepted(t *testing.T) {
	t.Parallel()
	ops := []fencelog.Op{
		{Register: "epoch/1", Kind: fencelog.Take, Token: "1", Number: 1, By: "a", Call: 0, Return: 1},
		{Register: "epoch/1", Kind: fencelog.Take, Token: "2", Number: 2, By: "b", Call: 10, Return: 30},
		{Register: "epoch/1", Kind: fencelog.Use, Token: "1", Number: 1, By: "a", Call: 15, Return: 40},
		{Register: "epoch/1", Kind: fencelog.Use, Token: "2", Number: 2, By: "b", Call: 35, Return: 50},
	}
	require.Empty(t, linear.Check(ops, time.Minute).Wrong)
	ops[2].Call = 31 // begun when the other had taken it
	v := linear.Check(ops, time.Minute)
	require.Equal(t, []string{"epoch/1"}, v.Wrong)
	require.NoError(t, v.Draw(filepath.Join(t.TempDir(), "history.html")))
}

func TestACorruptedHistoryIsRefused(t *testing.T) {
	t.Parallel()
	find := func(ops []fencelog.Op, register, kind, token string) *fencelog.Op {
		i := slices.IndexFunc(ops, func(o fencelog.Op) bool { return o.Register == register && o.Kind == kind && o.Token == token })
		require.GreaterOrEqual(t, i, 0)
		return &ops[i]
	}
	end := fleet()[len(fleet())-1].Return
	for name, tt := range map[string]struct {
		register string
		corrupt  func(ops []fencelog.Op) []fencelog.Op
	}{
		"a commit of an old epoch": {"epoch/2", func(ops []fencelog.Op) []fencelog.Op {
			return append(ops, fencelog.Op{Register: "epoch/2", Kind: fencelog.Use, Token: "7", Number: 7, By: "i0", Call: end, Return: end + 1})
		}},
		"a commit after the release": {"epoch/0", func(ops []fencelog.Op) []fencelog.Op {
			give := *find(ops, "epoch/0", fencelog.Give, "19")
			return append(ops, fencelog.Op{Register: "epoch/0", Kind: fencelog.Use, Token: "19", Number: 19, By: "i0", Call: give.Return + 1, Return: give.Return + 2})
		}},
		"an epoch that went back": {"epoch/1", func(ops []fencelog.Op) []fencelog.Op {
			o := find(ops, "epoch/1", fencelog.Take, "8")
			o.Number, o.Token = 3, "3"
			return ops
		}},
		"an epoch that two have": {"epoch/3", func(ops []fencelog.Op) []fencelog.Op {
			return append(ops, fencelog.Op{Register: "epoch/3", Kind: fencelog.Take, Token: "20", Number: 20, By: "i9", Call: end, Return: end + 1})
		}},
		"an acknowledgement of an earlier owner": {"acknowledge/3", func(ops []fencelog.Op) []fencelog.Op {
			o := find(ops, "acknowledge/3", fencelog.Use, "t9")
			o.Call, o.Return = end, end+1
			return ops
		}},
		"dispatching under a lease that was lost": {"dispatch lease", func(ops []fencelog.Op) []fencelog.Op {
			o := find(ops, "dispatch lease", fencelog.Use, "l3")
			o.Call, o.Return = end, end+1
			return ops
		}},
		"a commit under an epoch that nobody took": {"epoch/0", func(ops []fencelog.Op) []fencelog.Op {
			return slices.DeleteFunc(ops, func(o fencelog.Op) bool {
				return o.Register == "epoch/0" && o.Kind == fencelog.Take && o.Token == "5"
			})
		}},
	} {
		require.Equal(t, []string{tt.register}, linear.Check(tt.corrupt(fleet()), time.Minute).Wrong, name)
	}
}
