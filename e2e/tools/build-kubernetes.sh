#!/usr/bin/env bash
# Builds Kubernetes programs into the cache and prints the folder that holds them. What is there already is left alone.
#
# Usage: build-kubernetes.sh PROGRAM...     such as kube-apiserver, kubelet, kubectl, etcd
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/go-cache.sh"
module=$here/kubernetes
version=$(required_version "$module/go.mod" k8s.io/kubernetes)
folder=$cache/kubernetes-$version
known=$(sed -n 's|^\t*k8s.io/kubernetes/cmd/\([a-z-]*\)$|\1|p' "$module/go.mod")

if [ $# -eq 0 ]; then
  echo "name the programs to build: etcd" $known >&2
  exit 2
fi
for program in "$@"; do
  if [ "$program" != etcd ] && ! grep -qx "$program" <<<"$known"; then
    echo "there is no program $program: choose from etcd" $known >&2
    exit 2
  fi
done

hold "$folder"

install_etcd() {
  command -v etcd >/dev/null && return
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "etcd is missing. Install it with your package manager (Debian: etcd-server), then run this again." >&2
    exit 1
  fi
  apt-get update -qq >&2
  # Installing starts no service: tests start their own.
  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends etcd-server >&2
}

build() {
  local package=k8s.io/component-base/version minor=${version#v1.}
  build_go "$folder/$1" "$module" "k8s.io/kubernetes/cmd/$1" \
    "$1 $version (kube-apiserver takes about 6 minutes on 2 cores)" \
    "-X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*} -X $package.gitTreeState=clean"
}

# The tests of the API server need etcd beside it.
for program in "$@"; do
  case $program in
    etcd) install_etcd ;;
    kube-apiserver) install_etcd; build "$program" ;;
    *) build "$program" ;;
  esac
done
echo "$folder"
