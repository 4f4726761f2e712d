#!/bin/sh
# Builds programs into bin/ and shows how far it is: scripts/build.sh ./cmd/...
#
# From nothing this takes more than a minute on two cores: the compiler needs 20 s for
# the Redis client alone, and nothing that speaks to Redis can be built before it.
set -eu
cd "$(dirname "$0")/.."
if ! [ -t 2 ]; then
	[ -d bin ] || echo 'building; the first time takes a minute' >&2
	exec go build -o bin/ "$@"
fi
all=$(go list -deps "$@" 2>/dev/null | wc -l)
status=$(mktemp)
trap 'rm -f "$status"' EXIT
# -v names each package that has to be compiled; what else is said is an error.
{ go build -v -o bin/ "$@" 2>&1 || echo "$?" >"$status"; } | awk -v all="$all" '
	/^[^ #:]+$/ { printf "\rbuilding: %d of about %d packages ", ++n, all; fflush(); next }
	{ printf "\r\033[K%s\n", $0 }
	END { printf "\r\033[K" }' >&2
[ ! -s "$status" ] || exit "$(cat "$status")"
