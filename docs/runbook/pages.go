// Package runbook holds the pages of the runbook, for the console.
package runbook

import "embed"

// Pages are the pages, NAME.md each.
//
//go:embed *.md
var Pages embed.FS
