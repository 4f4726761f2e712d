package devenv

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestServersAreInMemoryOnlyWhereThatIsAskedForAndHasRoom(t *testing.T) {
	t.Setenv("TMPDIR", "")
	require.NotEqual(t, "/dev/shm", Options{}.parent(), "what is measured writes to a disk")
	if hasRoom("/dev/shm") {
		require.Equal(t, "/dev/shm", Options{InMemory: true}.parent())
	}
	require.False(t, hasRoom("/no such folder"))
	named := t.TempDir()
	t.Setenv("TMPDIR", named)
	require.Equal(t, named, Options{InMemory: true}.parent())
}
