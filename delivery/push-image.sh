#!/usr/bin/env bash
# Builds the image for both architectures, pushes it with its provenance and an SBOM of each, and writes its digest to
# build/digest.
#
#     delivery/push-image.sh REPOSITORY VERSION [CACHE]
#
# Tags are immutable: where the version is already in the registry, because a run is repeated after a later step failed, its
# digest is taken and nothing is built. CACHE names an image, with a tag that may change, that keeps the layers between runs.
set -euo pipefail

repository=$1 version=$2 cache=${3:-}
mkdir -p build

tell() {
    printf 'digest=%s\nversion=%s\n' "$(cat build/digest)" "$version" | tee -a "${GITHUB_OUTPUT:-/dev/null}"
}

digest_of() {
    docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$1"
}

if digest_of "$repository:$version" >build/digest 2>/dev/null; then
    echo "$repository:$version is there already"
    tell
    exit
fi

# The base by its digest, so that the label says what was built on.
base=$(sed -n 's/^ARG BASE_IMAGE=//p' Dockerfile)
options=()
if [[ -n $cache ]]; then
    # ECR keeps a cache only in the form of an image.
    options+=(--cache-from "type=registry,ref=$cache")
    options+=(--cache-to "type=registry,ref=$cache,mode=max,image-manifest=true,oci-mediatypes=true")
fi
docker buildx build . \
    --platform linux/amd64,linux/arm64 \
    --build-arg "BASE_IMAGE=$base@$(digest_of "$base")" \
    --build-arg "VERSION=$version" \
    --build-arg "REVISION=$(git rev-parse HEAD)" \
    --build-arg "CREATED=$(git log -1 --format=%cI)" \
    --provenance mode=max \
    --sbom true \
    "${options[@]}" \
    --tag "$repository:$version" \
    --metadata-file build/image.json \
    --push
python3 -c 'import json; print(json.load(open("build/image.json"))["containerimage.digest"])' >build/digest
tell
