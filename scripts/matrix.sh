#!/bin/sh
# Tries the service with every server below MATRIX_DIR and with those installed, and
# writes the table in docs/reference/compatibility.md: scripts/matrix.sh
#
# A folder there is one server: NAME/bin has redis-server (also Valkey's, under that
# name), or Postgres' programs, with TimescaleDB or without. Each gets the tests of the
# packages that speak to it, and a judged run of two instances; a cell is ok with
# figures, or FAILED. Rows of servers that are not here stay, with their dates.
set -eu
cd "$(dirname "$0")/.."
page=docs/reference/compatibility.md
logs=${MATRIX_LOGS:-$(mktemp -d)}
mkdir -p "$logs"
rows=$logs/rows.md
: >"$rows"

# tests NAME PACKAGE...: ok or FAILED
tests() {
	log=$logs/$(echo "$1" | tr ' /' '--').tests.log
	shift
	if go test -count=1 "$@" >"$log" 2>&1; then echo ok; else echo "**FAILED**"; fi
}

# judged NAME FLAG...: ok with the rate and the p99, or FAILED
judged() {
	log=$logs/$(echo "$1" | tr ' /' '--').run
	shift
	if bin/loadtest run split --json --slack 3 --duration 10s "$@" >"$log.json" 2>"$log.log"; then
		figures=$(sed -n 's/.*"per_second":\([0-9]*\).*"p99_ms":\([0-9]*\).*/ok: \1 entries\/s, p99 \2 ms/p' "$log.json")
	else
		figures=
	fi
	echo "${figures:-**FAILED**}"
}

row() { # server, version, tests, run
	echo "| $1 | $2 | $3 | $4 | $(date -u +%Y-%m-%d) |" | tee -a "$rows"
}

redis() { # name
	version=$(redis-server --version | sed 's/.*v=\([^ ]*\).*/\1/')
	row "$1" "$version" "$(tests "$1" ./internal/stream/... ./coordination/...)" "$(judged "$1")"
}

postgres() { # name; where TimescaleDB is installed, with it too
	bin=$(postgres_bin)
	version=$("$bin/postgres" --version | sed 's/[^0-9]*\([0-9.]*\).*/\1/')
	row "$1" "$version" "$(TEST_WORLD=plain tests "$1" ./internal/store/...)" "$(judged "$1")"
	extension=$("$bin/pg_config" --sharedir)/extension/timescaledb.control
	if [ -f "$extension" ]; then
		name="$1 with TimescaleDB"
		row "$name" "$version with $(sed -n "s/^default_version = '\(.*\)'/\1/p" "$extension")" \
			"$(TEST_WORLD=hypertable tests "$name" ./internal/store/...)" "$(judged "$name" --world hypertable)"
	fi
}

postgres_bin() {
	if command -v initdb >/dev/null; then dirname "$(readlink -f "$(command -v initdb)")"; else find /usr/lib/postgresql -path '*/bin/initdb' | sort -V | tail -n 1 | xargs dirname; fi
}

go build -o bin/ ./cmd/... ./internal/devenv/cmd/...
if [ -z "${MATRIX_ONLY:-}" ]; then
	redis "Redis (installed)"
	postgres "Postgres (installed)"
fi
for dir in "${MATRIX_DIR:-/nowhere}"/*/bin; do
	[ -d "$dir" ] || continue
	name=$(basename "$(dirname "$dir")")
	(
		PATH=$dir:$PATH
		if [ -x "$dir/redis-server" ]; then redis "$name"; fi
		if [ -x "$dir/initdb" ]; then postgres "$name"; fi
	)
done

# The rows of this run take the place of those with the same name.
awk -F ' *[|] *' -v rows="$rows" '
	BEGIN { while ((getline line < rows) > 0) { split(line, f, / *[|] */); new[f[2]] = line; order[++n] = f[2] } }
	/^<!-- matrix -->$/ { within = 1 }
	/^<!-- end of matrix -->$/ {
		for (i = 1; i <= n; i++) if (order[i] in new) print new[order[i]]
		print ""; within = 0
	}
	within && /^[|]/ && $2 in new { print new[$2]; delete new[$2]; next }
	within && /^$/ && seen++ { next }
	{ print }
' "$page" >"$logs/page.md"
cp "$logs/page.md" "$page"
echo "written: $page; logs: $logs"
! grep -q FAILED "$rows"
