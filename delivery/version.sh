#!/usr/bin/env bash
# Prints the version that image and chart of this commit get: 0.1.0 where the tag v0.1.0 is, otherwise 0.1.0-g and the commit,
# which Helm and container registries both accept (an image's tag may have no "+", a version no number with a leading zero).
set -euo pipefail

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
[[ -z $(git status --porcelain) ]] || { echo "what is published must be committed: git status" >&2; exit 1; }
tags=$(git tag --points-at HEAD --list 'v*')
case $tags in
    "") printf '%s-g%s\n' "$version" "$(git rev-parse --short=12 HEAD)" ;;
    "v$version") printf '%s\n' "$version" ;;
    *) echo "the tag is not the version in pyproject.toml, v$version:" "$tags" >&2; exit 1 ;;
esac
