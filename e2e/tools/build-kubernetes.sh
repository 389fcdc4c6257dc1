#!/usr/bin/env bash
# Builds Kubernetes programs from the Go module proxy into a cache and prints the folder that holds them.
# What is there already is left alone, so calling it again costs nothing.
#
# Usage: build-kubernetes.sh PROGRAM...     such as kube-apiserver, kubelet, kubectl, etcd
# The cache lies in $PROVER_OPERATOR_CACHE, else in ~/.cache/prover-operator.
set -euo pipefail
module=$(cd "$(dirname "$0")/kubernetes" && pwd)
version=$(sed -nE 's|^(require)?[[:space:]]*k8s.io/kubernetes (v[0-9.]+)( // indirect)?$|\2|p' "$module/go.mod")
[ -n "$version" ] || { echo "$module/go.mod requires no exact version of k8s.io/kubernetes" >&2; exit 1; }
folder=${PROVER_OPERATOR_CACHE:-$HOME/.cache/prover-operator}/kubernetes-$version
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

mkdir -p "$folder"
# Two callers at once would build everything twice: the second waits and then finds it done.
exec 9>"$folder/.lock"
flock 9

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
  local program=$1 target=$folder/$1
  [ -x "$target" ] && return
  command -v go >/dev/null || { echo "go is missing: install Go 1.24 or newer, then run this again" >&2; exit 1; }
  echo "building $program $version (kube-apiserver takes about 6 minutes on 2 cores)" >&2
  local package=k8s.io/component-base/version
  local minor=${version#v1.}
  (
    cd "$module"
    CGO_ENABLED=0 GOFLAGS="-buildvcs=false -mod=readonly -p=${PROVER_GO_JOBS:-2}" nice -n "${PROVER_NICE:-0}" \
      go build -trimpath -o "$target.partial" -ldflags "-s -w -X $package.gitVersion=$version \
        -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*} -X $package.gitTreeState=clean" \
      "k8s.io/kubernetes/cmd/$program" >&2
  )
  # Only a whole binary gets its name: an interrupted build leaves nothing that looks finished.
  mv "$target.partial" "$target"
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
