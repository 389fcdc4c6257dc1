#!/usr/bin/env bash
# Installs or upgrades the operator from this checkout's chart, with the images that are loaded, and waits for it.
# Further arguments go to Helm: install.sh --set log.level=debug
set -euo pipefail
source "$(dirname "$0")/settings.sh"
namespace=prover-system

"$repository/e2e/tools/build-kubernetes.sh" kubectl >/dev/null
helm=$("$repository/e2e/tools/build-helm.sh" helm)/helm
"$here/load-images.sh"
# A tag that was loaded again is the same name with other contents: the pods' template must say so.
loaded=$(sha256sum "$repository/target/images/prover-operator.tar" 2>/dev/null | cut -c1-16)
"$helm" upgrade prover-operator "$repository/charts/prover-operator" --install \
  --kubeconfig "$(kubeconfig)" --namespace "$namespace" --create-namespace --server-side=true --force-conflicts \
  --set-string "image.registry=$registry" --set-string "image.tag=$version" \
  --set-string "podAnnotations.prover-operator/image=$loaded" "$@" >/dev/null
kubectl --namespace "$namespace" rollout status deployment/prover-operator --timeout=120s >&2
say "the operator is installed in $namespace"
