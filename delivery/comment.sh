#!/usr/bin/env bash
# Shows a Markdown file: in the summary of the workflow's run, and as a comment on the pull request, over its own earlier one.
#
#     delivery/comment.sh FILE [PULL_REQUEST]
#
# PULL_REQUEST is a number or a branch; none: no comment. Needs gh, logged in or with GH_TOKEN.
set -euo pipefail

file=$1 pull_request=${2:-}
cat "$file" >>"${GITHUB_STEP_SUMMARY:-/dev/stdout}"
[[ -n $pull_request ]] || exit 0
# GitHub takes 65,536 characters; a character has at least one byte.
head --bytes 65000 "$file" | iconv --from-code UTF-8 --to-code UTF-8 -c |
    gh pr comment "$pull_request" --edit-last --create-if-none --body-file -
