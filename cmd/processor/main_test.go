package main

import (
	"os"
	"testing"

	"github.com/trmtracking/processor/internal/testenv/servicetest"
	"github.com/trmtracking/processor/modules"
)

func TestMain(m *testing.M) {
	servicetest.Main(m, func() int {
		modules.QuietDrivers()
		return run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	})
}
