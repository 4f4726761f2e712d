package console_test

import (
	"testing"

	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

func TestMain(m *testing.M) { servicetest.Main(m, nil) }
