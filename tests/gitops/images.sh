#!/usr/bin/env bash
# Builds two images that differ in the version of the iris model they hold, puts them on the cluster's nodes by the command in
# LOAD_IMAGE, under names with a digest as a registry would know them, and prints the digests.
#
#     LOAD_IMAGE=COMMAND tests/gitops/images.sh REPOSITORY
#
# SERVER_IMAGE names a built image of the server; without it one is built (Debian, as root, as tests/image/build.sh).
set -euo pipefail

name=$1
repository=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export BUILDAH_ISOLATION=chroot

server=${SERVER_IMAGE:-localhost/xgboost-server:gitops}
[[ -n ${SERVER_IMAGE:-} ]] || "$repository/tests/image/build.sh" "$server" >&2
cp "$repository/examples/iris/model.ubj" "$work/"
for version in 1 2; do
    printf 'FROM %s\nCOPY model.ubj /models/iris/%s/model.ubj\n' "$server" "$version" >"$work/Dockerfile"
    id=$(buildah build --quiet --layers "$work")
    buildah push --quiet --disable-compression "$id" "oci:$work/layout:$version" >&2
done
# containerd takes the name from this annotation; the kubelet then finds the image by its digest and asks no registry.
python3 - "$work/layout/index.json" "$name" <<'PYTHON'
import json
import sys

path, name = sys.argv[1:]
with open(path) as file:
    index = json.load(file)
for manifest in index["manifests"]:
    manifest["annotations"]["io.containerd.image.name"] = f"{name}@{manifest['digest']}"
    print(manifest["digest"])
with open(path, "w") as file:
    json.dump(index, file)
PYTHON
tar -C "$work/layout" -cf "$work/images.tar" .
$LOAD_IMAGE "$work/images.tar" >&2
