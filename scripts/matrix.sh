#!/bin/sh
# Tries the service with every server below MATRIX_DIR and with those installed, and
# writes the table in docs/reference/compatibility.md: scripts/matrix.sh
#
# A folder there is one server: NAME/bin has redis-server (also Valkey's, under that
# name), or Postgres' programs. Each gets the tests of the packages that speak to it,
# and a judged run of two instances; a cell is ok with figures, or FAILED.
set -eu
cd "$(dirname "$0")/.."
page=docs/reference/compatibility.md
logs=${MATRIX_LOGS:-$(mktemp -d)}
mkdir -p "$logs"
rows=$logs/rows.md
: >"$rows"
failed=0

# tests NAME PACKAGE...: ok or FAILED
tests() {
	log=$logs/$(echo "$1" | tr ' /' '--').tests.log
	shift
	if go test -count=1 "$@" >"$log" 2>&1; then echo ok; else echo "**FAILED**"; fi
}

# judged NAME FLAG...: ok with the rate at which a backlog is not left, or FAILED
judged() {
	log=$logs/$(echo "$1" | tr ' /' '--').run.log
	shift
	if out=$(bin/loadtest run split --json --slack 3 --duration 10s "$@" 2>"$log"); then
		printf '%s' "$out" | sed -n 's/.*"per_second":\([0-9]*\).*"p99_ms":\([0-9]*\).*/ok: \1 entries\/s, p99 \2 ms/p'
	else
		echo "**FAILED**"
	fi
}

row() { # server, version, tests, run
	echo "| $1 | $2 | $3 | $4 | $(date -u +%Y-%m-%d) |" | tee -a "$rows"
	case "$3$4" in *FAILED*) failed=1 ;; esac
}

redis() { # name
	version=$(redis-server --version | sed 's/.*v=\([^ ]*\).*/\1/')
	row "$1" "$version" "$(tests "$1" ./internal/stream/... ./coordination/...)" "$(judged "$1")"
}

postgres() { # name
	row "$1" "$(postgres_version)" "$(TEST_WORLD=plain tests "$1" ./internal/store/...)" "$(judged "$1")"
}

postgres_version() { "$(postgres_bin)/postgres" --version | sed 's/[^0-9]*\([0-9.]*\).*/\1/'; }

postgres_bin() {
	if command -v initdb >/dev/null; then dirname "$(readlink -f "$(command -v initdb)")"; else find /usr/lib/postgresql -path '*/bin/initdb' | sort -V | tail -n 1 | xargs dirname; fi
}

go build -o bin/ ./cmd/... ./internal/devenv/cmd/...
redis "Redis (installed)"
postgres "Postgres (installed)"
extension=$("$(postgres_bin)/pg_config" --sharedir 2>/dev/null)/extension/timescaledb.control
if [ -f "$extension" ]; then
	name="Postgres with TimescaleDB"
	row "$name" "$(postgres_version) with $(sed -n "s/^default_version = '\(.*\)'/\1/p" "$extension")" \
		"$(TEST_WORLD=hypertable tests "$name" ./internal/store/...)" "$(judged "$name" --world hypertable)"
fi
for dir in "${MATRIX_DIR:-/nowhere}"/*/bin; do
	[ -d "$dir" ] || continue
	name=$(basename "$(dirname "$dir")")
	(
		PATH=$dir:$PATH
		if [ -x "$dir/redis-server" ]; then redis "$name"; fi
		if [ -x "$dir/initdb" ]; then postgres "$name"; fi
		exit $failed
	) || failed=1
done

{
	sed '/^<!-- matrix -->$/q' "$page"
	echo
	echo "| Server | Version | Tests of its packages | Judged run | Date |"
	echo "| --- | --- | --- | --- | --- |"
	cat "$rows"
	echo
	sed -n '/^<!-- end of matrix -->$/,$p' "$page"
} >"$logs/page.md"
cp "$logs/page.md" "$page"
echo "written: $page; logs: $logs"
exit $failed
