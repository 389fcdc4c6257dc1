#!/usr/bin/env bash
# Installs and builds what a single-node cluster is made of, where it is missing. Starts nothing.
set -euo pipefail
source "$(dirname "$0")/settings.sh"

declare -A package_of=(
  [containerd]=containerd [runc]=runc [iptables]=iptables [conntrack]=conntrack [etcd]=etcd-server
  [nsenter]=util-linux [ip]=iproute2 [openssl]=openssl [curl]=curl [gcc]=gcc
)
missing=()
for program in "${!package_of[@]}"; do
  command -v "$program" >/dev/null || missing+=("${package_of[$program]}")
done
[ -x /usr/lib/cni/ptp ] || missing+=(containernetworking-plugins)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    fail "missing: ${missing[*]} (names of Debian's packages). Install them with your package manager, then run this again."
  fi
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >&2
  # RUNLEVEL keeps the packages from starting services: the cluster starts its own.
  RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
fi
"$repository/e2e/tools/build-kubernetes.sh" "${kubernetes_programs[@]}" >/dev/null
"$repository/e2e/tools/build-minio.sh" >/dev/null
"$repository/e2e/tools/build-coredns.sh" >/dev/null
