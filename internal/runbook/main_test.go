// Package runbook_test executes OPERATIONS.md and docs/runbook and checks it, and what is in
// deploy/, against the service.
package runbook_test

import (
	"testing"

	"github.com/trmtracking/processor/internal/testenv/servicetest"
)

func TestMain(m *testing.M) { servicetest.Main(m, nil) }
