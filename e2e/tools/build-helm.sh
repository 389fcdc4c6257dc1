#!/usr/bin/env bash
# Builds Helm and helm-unittest from the Go module proxy into a cache and prints the folder that holds them.
# What is there already is left alone, so calling it again costs nothing.
#
# Usage: build-helm.sh [PROGRAM...]     helm, helm-unittest; both where none is named
# The cache lies in $PROVER_OPERATOR_CACHE, else in ~/.cache/prover-operator.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
declare -A module_of=([helm]=helm.sh/helm/v4 [helm-unittest]=github.com/helm-unittest/helm-unittest)

version_of() {
  sed -nE "s|^(require)?[[:space:]]*${module_of[$1]} (v[0-9.]+)( // indirect)?$|\2|p" "$here/$1/go.mod"
}
helm=$(version_of helm) unittest=$(version_of helm-unittest)
[ -n "$helm" ] && [ -n "$unittest" ] || { echo "$here/helm*/go.mod require no exact versions" >&2; exit 1; }
folder=${PROVER_OPERATOR_CACHE:-$HOME/.cache/prover-operator}/helm-$helm-unittest-$unittest
[ $# -gt 0 ] || set -- helm helm-unittest
for program in "$@"; do
  [ -n "${module_of[$program]:-}" ] || { echo "there is no program $program: choose helm, helm-unittest" >&2; exit 2; }
done

mkdir -p "$folder"
# Two callers at once would build everything twice: the second waits and then finds it done.
exec 9>"$folder/.lock"
flock 9

build() {
  local program=$1 target=$folder/$1 module=${module_of[$1]}
  [ -x "$target" ] && return
  command -v go >/dev/null || { echo "go is missing: install Go 1.26 or newer, then run this again" >&2; exit 1; }
  echo "building $program $(version_of "$program") (about 2 minutes on 2 cores)" >&2
  local flags="-s -w"
  [ "$program" != helm ] || flags+=" -X $module/internal/version.version=$helm -X $module/internal/version.gitTreeState=clean"
  (
    cd "$here/$program"
    CGO_ENABLED=0 GOFLAGS="-buildvcs=false -mod=readonly -p=${PROVER_GO_JOBS:-2}" nice -n "${PROVER_NICE:-0}" \
      go build -trimpath -o "$target.partial" -ldflags "$flags" "$module/cmd/$program" >&2
  )
  # Only a whole binary gets its name: an interrupted build leaves nothing that looks finished.
  mv "$target.partial" "$target"
}

for program in "$@"; do build "$program"; done
echo "$folder"
