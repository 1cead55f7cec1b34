#!/usr/bin/env bash
# Signs an image or a chart without a key: the signature's certificate names the workflow that ran. Then verifies it as a
# reader would. With an SBOM, that is signed and attached too.
#
#     delivery/sign.sh COSIGN IMAGE@DIGEST [SBOM]
#
# Runs where there is an identity token: in GitHub Actions with `id-token: write`, or by a browser. The signature, and with it
# the repository's name, is published in Sigstore's log for good. cosign 3 writes signatures as referrers of the image; a
# registry without the referrers API gets the tag sha256-DIGEST instead, which must be exempt from immutability.
set -euo pipefail

cosign=$1 image=$2 sbom=${3:-}
"$cosign" sign --yes "$image"
[[ -z $sbom ]] || "$cosign" attest --yes --type cyclonedx --predicate "$sbom" "$image"

[[ -n ${GITHUB_WORKFLOW_REF:-} ]] || exit 0
identity=(--certificate-identity "$GITHUB_SERVER_URL/$GITHUB_WORKFLOW_REF"
    --certificate-oidc-issuer https://token.actions.githubusercontent.com)
"$cosign" verify "${identity[@]}" "$image" >/dev/null
[[ -z $sbom ]] || "$cosign" verify-attestation --type cyclonedx "${identity[@]}" "$image" >/dev/null
