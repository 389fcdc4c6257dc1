#!/usr/bin/env bash
# What Argo CD and Flux make of our objects, by their own code: the Lua of config/argocd and the expressions of
# config/flux. With `update`, writes config/argocd/argocd-cm.yaml from the Lua files first.
# Both are large: their packages are compiled once (2 to 3 minutes on 2 cores) and then come from Go's build cache.
set -euo pipefail
cd "$(dirname "$0")/../config"
command -v go >/dev/null || { echo "go is missing: install Go 1.26 or newer, then run this again" >&2; exit 1; }
export GOFLAGS="-buildvcs=false -mod=readonly -p=${PROVER_GO_JOBS:-2}"
step=${1:-test}
case $step in
  update) cd argocd && go test -count=1 -run TestTheConfigMapIsWhatTheLuaFilesSay ./... -update ;;
  test)
    for folder in argocd flux; do
      (cd "$folder" && nice -n "${PROVER_NICE:-0}" go vet ./... && nice -n "${PROVER_NICE:-0}" go test -count=1 ./...)
    done ;;
  *) echo "there is no step $step: choose test or update" >&2; exit 2 ;;
esac
