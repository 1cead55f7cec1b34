#!/usr/bin/env bash
# Fails when an image has a vulnerability of high severity that a newer package would mend, on either architecture.
#
#     delivery/scan-image.sh GRYPE IMAGE@DIGEST...
#
# What has no remedy yet is listed and does not fail: nobody could act on it, and every base image has some.
set -euo pipefail

grype=$1
shift
faults=0
for image in "$@"; do
    for platform in linux/amd64 linux/arm64; do
        printf '== %s %s\n' "$platform" "$image"
        "$grype" --quiet --platform "$platform" --fail-on high --only-fixed "registry:$image" || faults=1
    done
done
exit "$faults"
