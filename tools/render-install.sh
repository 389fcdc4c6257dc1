#!/usr/bin/env bash
# Renders the Helm chart into one file for users without Helm: kubectl apply -f target/install/prover-operator.yaml
#
# Usage: render-install.sh [ARGUMENT...]     arguments of `helm template`, such as --set replicas=1 or --values FILE
# IMAGE_REGISTRY is the registry of the images (localhost), INSTALL_NAMESPACE the namespace (prover-system).
set -euo pipefail
cd "$(dirname "$0")/.."
namespace=${INSTALL_NAMESPACE:-prover-system}
helm=$(e2e/tools/build-helm.sh helm)/helm
file=target/install/prover-operator.yaml
mkdir -p target/install
{
  # The operator's pods hold to the strictest of the pod security standards, so its namespace can demand it.
  cat <<END
apiVersion: v1
kind: Namespace
metadata:
  name: $namespace
  labels:
    app.kubernetes.io/part-of: prover-operator
    pod-security.kubernetes.io/enforce: restricted
END
  # Without a release there is nothing that Helm manages, and nothing that an uninstall would have to keep.
  "$helm" template prover-operator charts/prover-operator --namespace "$namespace" --set crds.keep=false \
    --set "image.registry=${IMAGE_REGISTRY:-localhost}" "$@" |
    sed -E -e '/^ +helm\.sh\/chart: /d' -e 's|^( +app\.kubernetes\.io/managed-by: )Helm$|\1kubectl|'
} >"$file.partial"
mv "$file.partial" "$file"
echo "$file"
