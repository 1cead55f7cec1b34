#!/usr/bin/env bash
# Builds the named programs, in the versions below, from Go's module proxy, which checks what it hands out against its checksum
# database. Safe to run again: what is there stays.
#
#     delivery/tools.sh FOLDER NAME...
#
# Needs Go 1.21 or later, which fetches the compiler that a program wants. Two cores build actionlint, hey and kind in half a
# minute each, cosign and grype in several.
set -euo pipefail

declare -A packages=(
    [actionlint]=github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
    [cosign]=github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3
    [grype]=github.com/anchore/grype/cmd/grype@v0.110.0
    [helm3]=helm.sh/helm/v3/cmd/helm@v3.22.0
    [helm4]=helm.sh/helm/v4/cmd/helm@v4.3.1
    [hey]=github.com/rakyll/hey@v0.1.5
    [kind]=sigs.k8s.io/kind@v0.33.0
)

tools=$(mkdir -p "$1" && cd "$1" && pwd)
shift
for name in "$@"; do
    package=${packages[$name]:?"no such tool: $name"}
    built=$tools/$name-${package##*@}
    if [[ ! -x $built ]]; then
        command -v go >/dev/null || { echo "Go is missing: apt-get install golang-go, or https://go.dev/dl" >&2; exit 1; }
        printf 'building %s\n' "$package" >&2
        work=$(mktemp -d)
        (cd "$work" && GOBIN=$work GOTOOLCHAIN=auto CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' "$package")
        program=${package%@*}
        mv "$work/${program##*/}" "$built"
        rmdir "$work"
    fi
    ln -sf "$(basename "$built")" "$tools/$name"
done
