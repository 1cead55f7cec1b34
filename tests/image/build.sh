#!/usr/bin/env bash
# Builds the Dockerfile as IMAGE on a machine that has no container engine and reaches no container registry.
#
#     sudo tests/image/build.sh [IMAGE]
#
# Debian only, as root. The base is a Debian with its own Python in place of the official slim image: made once by debootstrap,
# kept in ~/.cache/xgboost-server and as localhost/python-base:bookworm (to make it anew, delete both). buildah and
# debootstrap are installed when they are missing, unless NO_INSTALL is set.
set -euo pipefail

image=${1:-localhost/xgboost-server:test}
base=localhost/python-base:bookworm
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/xgboost-server
repository=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT

# No namespaces, no runtime and no network of its own: works inside a container or a small virtual machine too.
export BUILDAH_ISOLATION=chroot

fail() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 1
}

require_programs() {
    [[ $EUID -eq 0 ]] || fail "needs root, to make a base system and to mount it"
    local missing=() program
    for program in buildah debootstrap; do
        command -v "$program" >/dev/null || missing+=("$program")
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    if [[ -n ${NO_INSTALL:-} ]] || ! command -v apt-get >/dev/null; then
        fail "install first: ${missing[*]}"
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "${missing[@]}"
}

make_base_archive() {
    local root=$work/base mirror
    # The mirror that this machine's own apt uses, or debootstrap's default where it uses another release.
    # shellcheck disable=SC2016  # apt's placeholder, not the shell's
    mirror=$(apt-get indextargets --format '$(SITE)' 'Origin: Debian' 'Codename: bookworm' | sort -u | head -n 1)
    debootstrap --variant=minbase --include=python3,python3-venv bookworm "$root" ${mirror:+"$mirror"}
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
    # As in the official slim images, so that the Dockerfile's remedy is tested.
    find "$root/usr/lib" -path '*/python3*' -name __pycache__ -prune -exec rm -rf {} +
    mkdir -p "$cache"
    tar --create --numeric-owner --directory "$root" --file "$cache/python-base-bookworm.tar.part" .
    mv "$cache/python-base-bookworm.tar.part" "$cache/python-base-bookworm.tar"
}

make_base() {
    local container
    [[ -e $cache/python-base-bookworm.tar ]] || make_base_archive
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$cache/python-base-bookworm.tar" / >/dev/null
    buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd python3 "$container"
    buildah commit --quiet --rm --format docker "$container" "$base" >/dev/null
}

# Where pip finds its index is this machine's affair: hand its settings on, the certificates as a folder to mount.
# /mnt, because a mount leaves its mount point behind in the image and this one is there anyway.
pip_options() {
    local key value
    while IFS='=' read -r key value; do
        value=${value:1:-1}
        case $key in
            *.index-url) printf '%s\n' --build-arg "PIP_INDEX_URL=$value" ;;
            *.timeout | *.default-timeout) printf '%s\n' --build-arg "PIP_DEFAULT_TIMEOUT=$value" ;;
            *.cert)
                mkdir -p "$work/pip"
                cp "$value" "$work/pip/certificates.pem"
                printf '%s\n' --build-arg PIP_CERT=/mnt/certificates.pem --volume "$work/pip:/mnt:ro"
                ;;
        esac
    done < <("$1" -m pip config list 2>/dev/null | grep -E '^(global|:env:)\.' | sort --reverse) # the environment last: it wins
}

build() {
    local options=() python=python3 revision created version
    [[ ! -x .venv/bin/python ]] || python=.venv/bin/python
    mapfile -t options < <(pip_options "$python")
    version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
    revision=$(git describe --always --dirty --abbrev=40 2>/dev/null) || revision=unknown
    created=$(git log -1 --format=%cI 2>/dev/null) || created=$(date --utc +%Y-%m-%dT%H:%M:%SZ)
    # The OCI format has no health check; Docker's has. The layer cache does not look at arguments that only labels use
    # (containers/buildah#5501): a tree that did not change keeps the revision it was first built from.
    buildah build --layers --format docker --network host "${options[@]}" \
        --build-arg BASE_IMAGE="$base" \
        --build-arg VERSION="$version" \
        --build-arg REVISION="$revision" \
        --build-arg CREATED="$created" \
        --tag "$image" .
}

cd "$repository"
require_programs
buildah inspect --type image "$base" >/dev/null 2>&1 || make_base
build
buildah images --format '{{.Name}}:{{.Tag}} {{.Size}}' "$image"
