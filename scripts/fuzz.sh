#!/bin/sh
# Runs every fuzz target of the module for a while: scripts/fuzz.sh 30s
# `go test -fuzz` takes one package and one target at a time.
set -eu
cd "$(dirname "$0")/.."
time=${1:-30s}
for package in $(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...); do
	# -short: listing must not start servers.
	for target in $(go test -short -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
		echo "fuzzing $package $target for $time"
		go test -short -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package"
	done
done
