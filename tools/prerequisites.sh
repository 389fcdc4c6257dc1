#!/usr/bin/env bash
# Installs the system packages that builds and tests need, if they are missing; with the argument `sp1`, those of the SP1
# backend, with `cuda` those of a build for GPUs without a CUDA toolkit.
set -euo pipefail
declare -A package_of
missing=()
case ${1:-} in
  sp1)
    package_of=([protoc]=protobuf-compiler)
    # The types that protoc's files import.
    [ -f /usr/include/google/protobuf/any.proto ] || missing+=(libprotobuf-dev) ;;
  cuda) python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip) ;;
  *) package_of=([clang]=clang [ld.lld]=lld [etcd]=etcd-server [cmake]=cmake [g++]=g++) ;;
esac
for program in "${!package_of[@]}"; do
  command -v "$program" >/dev/null || missing+=("${package_of[$program]}")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "missing system packages: ${missing[*]}. Install them with your package manager, then run this again." >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
