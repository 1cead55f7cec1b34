#!/usr/bin/env bash
# Packs the chart with the image's version, pushes it as an OCI artefact and writes REPOSITORY@DIGEST to build/chart.
#
#     delivery/push-chart.sh HELM REGISTRY VERSION
#
# A version that is there already is taken as it is: tags are immutable, and a run may be repeated.
set -euo pipefail

helm=$1 charts=$2/charts version=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p build

# Helm 4 says "Digest: sha256:…" after a push and after a pull.
digest_of() {
    sed -n 's/^Digest: //p'
}

if ! said=$("$helm" pull "oci://$charts/xgboost-server" --version "$version" --destination "$work" 2>&1); then
    "$helm" package charts/xgboost-server --version "$version" --app-version "$version" --destination "$work"
    said=$("$helm" push "$work/xgboost-server-$version.tgz" "oci://$charts" 2>&1) || { echo "$said" >&2; exit 1; }
fi
digest=$(digest_of <<<"$said")
[[ $digest == sha256:* ]] || { printf 'no digest in what helm said: %s\n' "$said" >&2; exit 1; }
printf '%s/xgboost-server@%s\n' "$charts" "$digest" | tee build/chart
