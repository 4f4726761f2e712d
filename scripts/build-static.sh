#!/bin/sh
# Builds the files of the container image into a folder, without Docker and without a
# network once the modules are there: scripts/build-static.sh bin/image
#
# The program is static, with certificates and time zones inside, and its bytes
# depend on the sources, the commit and the version of Go alone.
set -eu
out=$1
cd "$(dirname "$0")/.."
if described=$(git describe --tags --match 'v*' --abbrev=12 --dirty --always 2>/dev/null); then
	case $described in v*) version=$described ;; *) version=devel-$described ;; esac
	revision=$(git rev-parse HEAD)
	time=$(git show -s --format=%cI HEAD)
else # a source tarball, where git archive wrote them
	{ read -r version && read -r revision && read -r time; } <internal/cli/stamp.txt
	case $revision in '$'*) version=devel revision= time= ;; esac
	version=${version:-devel-$(printf %.12s "$revision")}
fi
stamp=github.com/trmtracking/processor/internal/cli
rm -rf "$out"
mkdir -p "$out"
CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -trimpath -buildvcs=false -tags stamped -o "$out/processor" \
	-ldflags "-s -w -buildid= -X $stamp.version=$version -X $stamp.revision=$revision -X $stamp.revisionTime=$time" ./cmd/processor
"$out/processor" version --sbom >"$out/sbom.json"
mkdir -m 0700 "$out/dumps"
{ echo "VERSION=$version"; echo "REVISION=$revision"; echo "CREATED=$time"; } >"$out/../image.env"
