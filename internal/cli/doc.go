// Package cli is how the programs speak to people: output as text or JSON,
// tables, colours, numbers, and lines that fit a terminal.
package cli
