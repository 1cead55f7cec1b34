#!/usr/bin/env bash
# Opens a pull request with what `make deploy` or `make promote` changed, and starts the checks on it.
#
#     delivery/pull-request.sh FOLDER TITLE
#
# FOLDER holds the environments. Needs gh, logged in or with GH_TOKEN. The branch is named after the change: a repeated run finds
# its own pull request and changes nothing.
set -euo pipefail

folder=$1 title=$2
if git diff --quiet -- "$folder"; then
    echo "nothing changed in $folder: no pull request"
    exit
fi
branch=delivery/$(git diff -- "$folder" | git hash-object --stdin | cut -c 1-12)
if [[ -n $(gh pr list --head "$branch" --state open --json number --jq '.[].number') ]]; then
    echo "the pull request of $branch is open already"
    exit
fi
gh auth setup-git
git switch --quiet --create "$branch"
git -c user.name=delivery -c user.email=delivery@users.noreply.github.com commit --quiet --message "$title" -- "$folder"
git push --quiet --force origin "$branch"
gh pr create --base main --head "$branch" --title "$title" \
    --body "What the merge changes is said in a comment below. To take it back: revert the merge."
# GitHub starts no workflow for what its own token pushed, but for workflow_dispatch (its documents, "Triggering a workflow").
for workflow in test.yml values-review.yml; do
    gh workflow run "$workflow" --ref "$branch"
done
