#!/usr/bin/env bash
# Unpacks the charts of argocd/platform and argocd/optional, at the versions there, into FOLDER/CHART-VERSION/CHART.
#
#     delivery/charts.sh HELM FOLDER FILE...
#
# Each FILE is an Application with one chart. What is there already stays.
set -euo pipefail

helm=$1 folder=$2

field() { # field NAME FILE
    sed -n "s/^    $1: //p" "$2" | grep .
}

for file in "${@:3}"; do
    repository=$(field repoURL "$file") chart=$(field chart "$file") version=$(field targetRevision "$file")
    target=$folder/$chart-$version
    if [[ -d $target ]]; then continue; fi
    if [[ $repository == http* ]]; then
        source=("$chart" --repo "$repository")
    else
        source=("oci://$repository/$chart")
    fi
    rm -rf "$target.new"
    "$helm" pull "${source[@]}" --version "$version" --untar --untardir "$target.new"
    mv "$target.new" "$target"
done
