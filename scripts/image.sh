#!/bin/sh
# Builds the container image from what is here, without a registry: scripts/image.sh [TAG...]
# Its instructions are those of deploy/Dockerfile from FROM scratch on.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- processor:latest
scripts/build-static.sh bin/image
. bin/image.env
mkdir -p bin
sed -n '/^FROM scratch$/,$p' deploy/Dockerfile | sed 's# --from=build # #; s#/out/image/##g' >bin/image/Dockerfile
if ! docker buildx version >/dev/null 2>&1; then export DOCKER_BUILDKIT=0; fi # the engine's own builder
tags=
for tag in "$@"; do tags="$tags -t $tag"; done
# shellcheck disable=SC2086 # names of images have no spaces
docker build --quiet --network none $tags \
	--build-arg "VERSION=$VERSION" --build-arg "REVISION=$REVISION" --build-arg "CREATED=$CREATED" bin/image >/dev/null
size=$(docker image inspect --format '{{.Size}}' "$1")
echo "image $* $VERSION: $((size / 1000000)) MB, program $(sha256sum bin/image/processor | cut -d ' ' -f 1)"
