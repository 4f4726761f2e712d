//go:build crashtest

package pipeline

import (
	"fmt"
	"os"
	"runtime/debug"
	"syscall"

	"github.com/trmtracking/processor/internal/telemetry"
)

// beforeDecode dies on entries with a field called plant, in the way it says. It
// is built only into programs that test what becomes of such entries.
func beforeDecode(e *telemetry.Entry) {
	switch how, _ := e.Field("plant"); how {
	case "panic":
		panic(fmt.Sprintf("planted in entry %s", e.ID))
	case "stack":
		debug.SetMaxStack(16 << 20) // to be there sooner
		fmt.Println(descend(0))
	case "signal":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // until it arrives
	}
}

// descend needs more stack than there is.
func descend(n int) int {
	var room [1 << 10]int
	room[n%len(room)] = descend(n+1) + 1
	return room[(n+1)%len(room)]
}
