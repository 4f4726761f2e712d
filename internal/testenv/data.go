package testenv

import (
	"os"
	"path/filepath"
	"testing"
)

// Data returns the path of a file in the folder of real data, which DATA names
// (`make test` sets it). The test skips, and says so, where there is none.
func Data(tb testing.TB, name string) string {
	tb.Helper()
	folder := os.Getenv("DATA")
	if folder == "" {
		tb.Skipf("needs %s of the real data: set DATA to its folder", name)
	}
	path := filepath.Join(folder, filepath.FromSlash(name))
	if _, err := os.Stat(path); err != nil {
		tb.Fatalf("DATA is set and lacks a file: %v", err)
	}
	return path
}

// Slow skips a test that takes long, and whose promise a shorter one keeps as well,
// unless TEST_SLOW is set (`make test-slow`), or long campaigns run.
func Slow(tb testing.TB) {
	tb.Helper()
	if !IsThorough() {
		tb.Skip("a slow test: make test-slow")
	}
}

// IsThorough reports whether slow tests run.
func IsThorough() bool { return os.Getenv("TEST_SLOW") != "" || IsFull() }

// Full skips a long campaign unless TEST_FULL is set (`make test-full`).
func Full(tb testing.TB) {
	tb.Helper()
	if !IsFull() {
		tb.Skip("a long campaign: make test-full")
	}
}

// IsFull reports whether long campaigns run.
func IsFull() bool { return os.Getenv("TEST_FULL") != "" }

// Size returns how much of something a test does: short in every run, full in
// long campaigns.
func Size(short, full int) int {
	if IsFull() {
		return full
	}
	return short
}
