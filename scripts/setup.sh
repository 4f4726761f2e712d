#!/bin/sh
# Installs what `make run` and `make test` need and the machine lacks:
# redis-server, the Postgres programs, a C compiler and the C library's headers
# (for the race detector). Called as `setup.sh tests` also prometheus with its
# promtool, which test the alerts, and chromium, which tests the console. Says nothing when nothing is missing. It never
# starts a server, and never touches one that runs.
set -eu
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
	say "$*"
	exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# Go itself is not ours to install.
need_go=$(sed -n 's/^go \([0-9][0-9]*\.[0-9][0-9]*\).*/\1/p' go.mod)
have go || die "Go is not installed: install Go $need_go or newer from https://go.dev/dl/ and put it on PATH"
has_go=$(go env GOVERSION 2>/dev/null | sed -n 's/^go\([0-9][0-9]*\.[0-9][0-9]*\).*/\1/p')
if [ -z "$has_go" ]; then # a toolchain that this Go would have to fetch and cannot
	has_go=$(GOTOOLCHAIN=local go version | sed -n 's/.* go\([0-9][0-9]*\.[0-9][0-9]*\).*/\1/p')
fi
older() { [ "${1%%.*}" -lt "${2%%.*}" ] || { [ "${1%%.*}" -eq "${2%%.*}" ] && [ "${1#*.}" -lt "${2#*.}" ]; }; }
if older "${has_go:-0.0}" "$need_go"; then
	die "Go ${has_go:-of unknown version} is too old: install Go $need_go or newer from https://go.dev/dl/"
fi

# The same places as internal/devenv looks at.
has_redis() {
	have redis-server && return
	for p in /usr/bin /usr/local/bin /opt/homebrew/bin /home/linuxbrew/.linuxbrew/bin; do
		[ -x "$p/redis-server" ] && return
	done
	return 1
}
has_postgres() {
	have initdb && return
	for p in /usr/lib/postgresql/*/bin /opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin \
		/home/linuxbrew/.linuxbrew/opt/postgresql*/bin; do
		[ -x "$p/initdb" ] && [ -x "$p/postgres" ] && return
	done
	return 1
}
cc=${CC:-$(go env CC)}
has_cc() { have "${cc%% *}"; }
has_chromium() { have chromium || have chromium-browser || have google-chrome; }
has_promtool() { have promtool && have prometheus; }
has_headers() { printf '#include <stdlib.h>\n' | $cc -E -x c -o /dev/null - >/dev/null 2>&1; }

missing=
has_redis || missing="$missing redis-server"
has_postgres || missing="$missing postgresql"
has_cc || missing="$missing gcc"
{ has_cc && has_headers; } || missing="$missing libc6-dev"
[ "${1-}" != tests ] || has_promtool || missing="$missing prometheus"
# The console's tests drive a browser; on a Mac they use the one that is there.
[ "${1-}" != tests ] || has_chromium || ! have apt-get || missing="$missing chromium"
[ -n "$missing" ] || exit 0

install_with_apt() {
	sudo=
	if [ "$(id -u)" -ne 0 ]; then
		have sudo || die "not root and no sudo: as root, run: apt-get install$missing"
		sudo=sudo
	fi
	say "installing$missing"
	# The packages' own services stay off: Debian asks this file, and 101 means
	# no. One that is there already is the owner's word and stays as it is.
	guard=/usr/sbin/policy-rc.d
	if [ ! -e "$guard" ]; then
		trap '$sudo rm -f "$guard"' EXIT
		trap 'exit 130' INT
		trap 'exit 143' TERM
		printf '#!/bin/sh\nexit 101\n' | $sudo tee "$guard" >/dev/null
		$sudo chmod 755 "$guard"
	fi
	log=$(mktemp)
	# shellcheck disable=SC2086 # a list of words
	if ! {
		$sudo apt-get -o DPkg::Lock::Timeout=300 update &&
			$sudo env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
				install -y --no-install-recommends $missing
	} >"$log" 2>&1 </dev/null; then
		tail -n 30 "$log" >&2
		die "apt-get did not succeed (all of its words: $log); as root, run: apt-get install$missing"
	fi
	rm -f "$log"
	# Nor do they start with the machine. Only what was installed just now.
	if have systemctl; then
		for package in $missing; do
			case $package in
			redis-server | postgresql | prometheus) $sudo systemctl disable "$package" >/dev/null 2>&1 || true ;;
			esac
		done
	fi
}

install_with_brew() {
	formulae=
	for package in $missing; do
		case $package in
		redis-server) formulae="$formulae redis" ;;
		postgresql) formulae="$formulae postgresql@17" ;;
		prometheus) formulae="$formulae prometheus" ;;
		*) die "a C compiler is missing: run: xcode-select --install" ;;
		esac
	done
	say "installing$formulae"
	# shellcheck disable=SC2086 # a list of words
	brew install --quiet $formulae </dev/null
}

if have apt-get; then
	install_with_apt
elif have brew; then
	install_with_brew
else
	die "this machine has neither apt-get nor brew; install these (Debian's names):$missing"
fi

if ! { has_redis && has_postgres && has_cc && has_headers; }; then
	die "installed$missing, and still something is not where it should be: see internal/devenv for the places looked at"
fi
