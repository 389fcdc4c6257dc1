#!/usr/bin/env bash
# Images on a cluster that is not ours: loads target/images/*.tar where that can be done from here, else says how.
set -euo pipefail
source "$(dirname "$0")/settings.sh"
config=$(kubeconfig)
[ -f "$config" ] || fail "PROVER_CLUSTER=existing needs KUBECONFIG, and $config does not exist"
"$repository/e2e/tools/build-kubernetes.sh" kubectl >/dev/null
context=$(kubectl config current-context) || fail "$config names no current context"
kubectl version >/dev/null 2>&1 || fail "the cluster of context $context does not answer: try 'kubectl --kubeconfig $config version'"
archives=("$repository"/target/images/*.tar)
[ -f "${archives[0]}" ] || fail "there is no image in target/images: run 'make images' first"

say "using the cluster of context $context: nothing is started, only images are loaded and, by 'make cluster-install', the chart installed"
for archive in "${archives[@]}"; do
  case $context in
    kind-*) kind load image-archive --name "${context#kind-}" "$archive" ;;
    k3d-*) k3d image import --cluster "${context#k3d-}" "$archive" ;;
    minikube*) minikube --profile "$context" image load "$archive" ;;
    *)
      # k3s on this machine takes images from containerd's command; other clusters pull from a registry.
      if command -v k3s >/dev/null && [ "$(id -u)" -eq 0 ]; then
        k3s ctr images import "$archive" >/dev/null
      else
        say "images can't be loaded into $context from here: push them to a registry that it can pull from, such as"
        say "  skopeo copy docker-archive:$archive docker://REGISTRY/$(basename "$archive" .tar):$version"
        say "and run 'make cluster-install' with IMAGE_REGISTRY=REGISTRY"
        exit 0
      fi
      ;;
  esac
  say "loaded $(basename "$archive")"
done
