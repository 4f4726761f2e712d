package stream

import (
	_ "embed"
	"strings"

	"github.com/redis/go-redis/v9"
)

//go:embed prelude.lua
var prelude string

// withPrelude is a script that begins with what several scripts share. Its first
// line names the engine and the flags, and must remain the first.
func withPrelude(source string) *redis.Script {
	first, rest, _ := strings.Cut(source, "\n")
	return redis.NewScript(first + "\n" + prelude + rest)
}
