#!/bin/sh
# Prints the statement coverage of each package from a Go cover profile, lowest
# first, then the total: coverage.sh coverage.out
set -eu
awk 'NR > 1 {
	split($1, at, ":"); sub(/\/[^\/]*$/, "", at[1]); sub(/^[^\/]*\/[^\/]*\/[^\/]*\/?/, "", at[1])
	key = $1; if (!(key in n)) { n[key] = $2; pkg[key] = at[1] }
	if ($3 > 0) hit[key] = 1
} END {
	for (k in n) { all[pkg[k]] += n[k]; total += n[k]; if (k in hit) { got[pkg[k]] += n[k]; covered += n[k] } }
	for (p in all) printf "%5.1f %%  %s\n", 100 * got[p] / all[p], p | "sort -n"
	close("sort -n")
	if (total) printf "%5.1f %%  total\n", 100 * covered / total
}' "$1"
