"""Says in words what a merge changes in each environment, and refuses what should not be merged. docs/gitops.md has the rules.

    python -m delivery.review BASE [--markdown FILE] [--json FILE]

Every environment is rendered before (as of the commit BASE) and after (as the files lie here) by the program in HELM, each with the
chart that Argo CD would take (argocd/apps/environments.yaml). Exit codes: 0 fine, 1 refused, 2 could not be told.
"""
