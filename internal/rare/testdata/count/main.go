// Command count reaches a branch once.
package main

import "github.com/trmtracking/processor/internal/rare"

func main() { rare.Reached(rare.Fenced) }
