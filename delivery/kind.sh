#!/usr/bin/env bash
# A cluster on this machine for the tests: kind, with metrics for the scaler, the F5 NGINX Ingress Controller and Argo CD.
#
#     delivery/kind.sh up|down KIND HELM KUBECONFIG
#
# Needs a container engine. The charts' versions are those of the platform in argocd/.
set -euo pipefail

verb=$1 kind=$2 helm=$3 name=xgboost-server
export KUBECONFIG=$4

if [[ $verb == down ]]; then
    "$kind" delete cluster --name "$name"
    exit
fi

install_chart() { # install_chart NAMESPACE NAME CHART VERSION [OPTIONS]
    "$helm" upgrade --install --wait --timeout 10m --create-namespace --namespace "$1" "$2" "$3" --version "$4" "${@:5}"
}

mkdir -p "$(dirname "$KUBECONFIG")"
# The controller's port is this machine's too: pods' addresses may not be reached from here.
"$kind" get clusters | grep -qx "$name" || "$kind" create cluster --name "$name" --wait 5m --config - <<'END'
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
  - role: control-plane
    extraPortMappings: [{containerPort: 30080, hostPort: 30080, listenAddress: 127.0.0.1}]
END
# kind's kubelets sign their own certificates.
install_chart kube-system metrics-server metrics-server 3.13.0 \
    --repo https://kubernetes-sigs.github.io/metrics-server --set 'args={--kubelet-insecure-tls}'
install_chart nginx-ingress nginx-ingress oci://ghcr.io/nginx/charts/nginx-ingress 2.7.1 \
    --set controller.enableSnippets=true --set 'controller.config.entries.worker-shutdown-timeout=60s' \
    --set controller.service.type=NodePort --set controller.service.httpPort.nodePort=30080
install_chart argocd argocd oci://ghcr.io/argoproj/argo-helm/argo-cd 10.1.1 --set notifications.cm.create=false
