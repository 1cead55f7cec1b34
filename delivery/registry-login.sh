#!/usr/bin/env bash
# Logs docker, helm, cosign and grype in to the registry, by whatever AWS credentials are in the environment. All four read
# docker's configuration. The password lives twelve hours.
#
#     delivery/registry-login.sh REGISTRY
set -euo pipefail

case $1 in
    public.ecr.aws/*)
        # Its API is in one region only; the role needs sts:GetServiceBearerToken too.
        aws ecr-public get-login-password --region us-east-1 | docker login --username AWS --password-stdin public.ecr.aws
        ;;
    *.dkr.ecr.*.amazonaws.com | *.dkr.ecr.*.amazonaws.com/*)
        region=${1#*.dkr.ecr.}
        aws ecr get-login-password --region "${region%%.*}" | docker login --username AWS --password-stdin "${1%%/*}"
        ;;
    *)
        echo "REGISTRY must be ACCOUNT.dkr.ecr.REGION.amazonaws.com or public.ecr.aws/ALIAS, not '$1'" >&2
        exit 1
        ;;
esac
