#!/usr/bin/env bash
# Builds CoreDNS from the Go module proxy into a cache and prints the path of the binary.
# What is there already is left alone, so calling it again costs nothing.
#
# Usage: build-coredns.sh
# The cache lies in $PROVER_OPERATOR_CACHE, else in ~/.cache/prover-operator.
set -euo pipefail
module=$(cd "$(dirname "$0")/coredns" && pwd)
version=$(sed -nE 's|^require github.com/coredns/coredns (v[^ ]+)$|\1|p' "$module/go.mod")
[ -n "$version" ] || { echo "$module/go.mod requires no exact version of github.com/coredns/coredns" >&2; exit 1; }
folder=${PROVER_OPERATOR_CACHE:-$HOME/.cache/prover-operator}/coredns-$version
target=$folder/coredns

mkdir -p "$folder"
# Two callers at once would build everything twice: the second waits and then finds it done.
exec 9>"$folder/.lock"
flock 9

if [ ! -x "$target" ]; then
  command -v go >/dev/null || { echo "go is missing: install Go 1.26 or newer, then run this again" >&2; exit 1; }
  echo "building CoreDNS $version (about 1 minute on 2 free cores)" >&2
  (
    cd "$module"
    CGO_ENABLED=0 GOFLAGS="-buildvcs=false -mod=readonly -p=${PROVER_GO_JOBS:-2}" nice -n "${PROVER_NICE:-5}" \
      go build -trimpath -o "$target.partial" -ldflags "-s -w" . >&2
  )
  # Only a whole binary gets its name: an interrupted build leaves nothing that looks finished.
  mv "$target.partial" "$target"
fi
echo "$target"
