package modules

import (
	"os"
	"testing"

	"github.com/trmtracking/processor/internal/testenv"
)

// stuckChild is set in the process in which a test leaves an instance behind
// that cannot be stopped: only its process could end it.
const stuckChild = "TEST_STUCK_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(stuckChild) != "" {
		os.Exit(m.Run())
	}
	testenv.Main(m)
}
