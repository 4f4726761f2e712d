#!/bin/sh
# Looks for known vulnerabilities in what the programs call: scripts/vuln.sh GOVULNCHECK
# Fails when there are some, and when the search itself fails. Without the database it
# searches nothing, and says so aloud. VULN_DB names a copy of the database, for
# machines without a network: VULN_DB=file:///srv/vulndb
set -eu
scan=$1
shift
if [ ! -x "$scan" ]; then
	echo "vuln: SKIPPED, nothing was searched: $scan is not there and cannot be built without the module proxy" >&2
	exit 0
fi
set -- -show version ./...
if [ -n "${VULN_DB:-}" ]; then set -- -db "$VULN_DB" "$@"; fi
code=0
out=$("$scan" "$@" 2>&1) || code=$?
printf '%s\n' "$out"
case $code in
0) ;;
3) echo "vuln: FAILED, the programs call what is known to be vulnerable: update the modules above, or Go" >&2 ;;
*)
	why=$(printf '%s\n' "$out" | sed -n 's/.*fetching vulnerabilities: //p' | head -n 1)
	if [ -n "$why" ] && [ -z "${VULN_DB:-}" ]; then
		echo "vuln: SKIPPED, nothing was searched: the database cannot be reached ($why); VULN_DB names a copy" >&2
		exit 0
	fi
	echo "vuln: FAILED, the search ended with code $code" >&2
	;;
esac
exit $code
