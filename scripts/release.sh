#!/bin/sh
# Tags a release: make release VERSION=1.2.0. Checks first that the commit may be
# released (docs/releasing.md has the list); makes a local tag and nothing else.
set -eu
cd "${1:?usage: release.sh REPOSITORY VERSION}"
version=${2-}
branch=${RELEASE_BRANCH:-main}

die() {
	echo "release: $*" >&2
	exit 1
}
number='(0|[1-9][0-9]*)'
echo "$version" | grep -Eq "^$number\.$number\.$number(-[0-9A-Za-z.-]+)?\$" ||
	die "which version? make release VERSION=1.2.0 (have '$version')"
tag=v$version

[ -z "$(git status --porcelain)" ] || die "the tree is not clean; commit or stash first"
[ "$(git rev-parse --abbrev-ref HEAD)" = "$branch" ] || die "HEAD is not $branch; releases are tagged there"
! git rev-parse -q --verify "refs/tags/$tag" >/dev/null || die "$tag exists; a tag is never moved, take the next number"
last=$(git describe --tags --abbrev=0 --match 'v[0-9]*' 2>/dev/null || true)
if [ -n "$last" ]; then
	# A prerelease sorts before its release.
	newest=$(printf '%s\n%s\n' "${last#v}" "$version" | sed 's/^[0-9.]*$/&~/' | tr -- '-~' '~-' | LC_ALL=C sort -V | tail -n 1)
	[ "$(echo "$newest" | tr -- '-~' '~-' | sed 's/~$//')" = "$version" ] || die "$version is not newer than $last"
fi

notes=$(awk -v head="## [$version] - " '
	index($0, head) == 1 { inside = 1; next }
	inside && /^## / { exit }
	inside' CHANGELOG.md)
grep -Eq "^## \[$(echo "$version" | sed 's/\./\\./g')\] - [0-9]{4}-[0-9]{2}-[0-9]{2}\$" CHANGELOG.md ||
	die "CHANGELOG.md has no section '## [$version] - YYYY-MM-DD'"
echo "$notes" | grep -q '^- ' || die "the section of $version in CHANGELOG.md lists nothing"

# Schema: what a release contains stays as it is.
if [ -n "$last" ]; then
	git ls-tree --name-only "$last" migrations/ | grep '\.sql$' | while read -r file; do
		git diff --quiet "$last" HEAD -- "$file" || die "$file was changed since $last; add a new migration instead"
	done
fi
schema=$(git ls-tree --name-only HEAD migrations/ | sed -n 's|^migrations/\([0-9]*\)_.*\.sql$|\1|p' | sort | tail -n 1)
protocol_of() { git grep -hE '^const Version = [0-9]+$' "$1" -- internal/protocol | grep -oE '[0-9]+$'; }
protocol=$(protocol_of HEAD) || die "internal/protocol has no 'const Version = N'"
want="| $version | $schema | $protocol |"
grep -qF "$want" docs/reference/compatibility.md ||
	die "docs/reference/compatibility.md has no row that begins '$want'"
if [ -n "$last" ]; then
	major=${version%%.*}
	was=${last#v}
	was=${was%%.*}
	[ "$(protocol_of "$last")" = "$protocol" ] || [ "$major" -gt "$was" ] ||
		die "the protocol is $protocol and was $(protocol_of "$last") in $last: that needs a new major version"
fi

printf '%s\n\n%s\n' "$tag" "$notes" | git tag -a --cleanup=verbatim -F - "$tag"
echo "tagged $tag (schema $schema, protocol $protocol); next: git push origin $tag"
