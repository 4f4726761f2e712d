// Package migrations holds the database schema as numbered SQL files and
// nothing else.
//
// Files are never edited after a release and only ever go forward; the way
// back is a comment at the head of each. Every statement can be run again
// without harm, so that a platform whose schema another service owns may
// apply the printed SQL at any time, and may later let the processor migrate.
package migrations

import "embed"

// FS holds the migrations in the form that goose reads.
//
//go:embed *.sql
var FS embed.FS
