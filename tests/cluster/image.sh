#!/usr/bin/env bash
# Builds the server's image with the iris model in it, puts it on the cluster's nodes by the command in LOAD_IMAGE, which gets a
# file, and prints its name.
#
#     LOAD_IMAGE=COMMAND tests/cluster/image.sh
#
# The name changes with the content, or a Deployment would not roll. Debian, as root, as tests/image/build.sh.
set -euo pipefail

server=localhost/xgboost-server:cluster
repository=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export BUILDAH_ISOLATION=chroot

"$repository/tests/image/build.sh" "$server" >&2
cp "$repository/examples/iris/model.ubj" "$work/"
printf 'FROM %s\nCOPY model.ubj /models/iris/model.ubj\n' "$server" >"$work/Dockerfile"
id=$(buildah build --quiet --format docker --layers "$work")
name=localhost/xgboost-server-iris:${id:0:12}
buildah tag "$id" "$name"
if [[ -n ${LOAD_IMAGE:-} ]]; then
    buildah push --quiet "$name" "docker-archive:$work/image.tar:$name" >&2
    $LOAD_IMAGE "$work/image.tar" >&2
fi
printf '%s\n' "$name"
