package fencelog_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trmtracking/processor/internal/fencelog"
)

func TestTheHistoriesOfProcessesAreReadTogether(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	began := time.Now().Add(-time.Second)
	for _, member := range []string{"a.1", "b.1"} {
		r, err := fencelog.Open(dir, member, "s")
		require.NoError(t, err)
		r.Done(began, fencelog.Op{Register: "epoch/3", Kind: fencelog.Take, Token: "7", Number: 7}, fencelog.Op{Register: "epoch/4", Kind: fencelog.Use, Token: "8"})
	}
	// One was killed while it wrote.
	file, err := os.OpenFile(filepath.Join(dir, "b.1.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = file.WriteString(`{"register":"epo`)
	require.NoError(t, err)
	require.NoError(t, file.Close())
	ops, err := fencelog.Read(dir)
	require.NoError(t, err)
	require.Len(t, ops, 4)
	require.Equal(t, "a.1", ops[0].By)
	require.Equal(t, "b.1", ops[3].By)
	require.Equal(t, began.UnixNano(), ops[0].Call)
	require.Greater(t, ops[0].Return, ops[0].Call)
	var none *fencelog.Recorder
	none.Done(began, fencelog.Op{})
}
