//go:build crashtest

package pipeline

import (
	"fmt"
	"os"
	"runtime/debug"
	"syscall"

	"github.com/trmtracking/processor/internal/telemetry"
)

// beforeDecode crashes on entries with a field called plant, in the way its
// value names. It is only in programs that test how such entries are handled.
func beforeDecode(e *telemetry.Entry) {
	switch how, _ := e.Field("plant"); how {
	case "panic":
		panic(fmt.Sprintf("planted in entry %s", e.ID))
	case "stack":
		debug.SetMaxStack(16 << 20) // to overflow sooner
		fmt.Println(descend(0))
	case "signal":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // until it arrives
	}
}

// descend overflows the stack.
func descend(n int) int {
	var room [1 << 10]int
	room[n%len(room)] = descend(n+1) + 1
	return room[(n+1)%len(room)]
}
