package observer_test

import (
	"testing"

	"github.com/trmtracking/processor/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
