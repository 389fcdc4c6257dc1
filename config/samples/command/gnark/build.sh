#!/usr/bin/env bash
# Builds the sample prover: build.sh [TARGET]      default: target/samples/prover-sample-gnark
# With `bundles`, also makes the programs of the sample jobs beside it: circuits with their keys, which are kept until
# the sources change.
set -euo pipefail
cd "$(dirname "$0")"
repository=$(cd ../../../.. && pwd)
target=$repository/target/samples/prover-sample-gnark
bundles=false
for argument in "$@"; do
  case $argument in
    bundles) bundles=true ;;
    /*) target=$argument ;;
    *) target=$repository/$argument ;;
  esac
done
command -v go >/dev/null || { echo "go is missing: install Go 1.25 or newer, then run this again" >&2; exit 1; }
mkdir -p "$(dirname "$target")"
CGO_ENABLED=0 go build -buildvcs=false -mod=readonly -trimpath -ldflags "-s -w" -o "$target.partial" .
# The same sources give the same bytes: what has not changed keeps its time, and so do its bundles.
if cmp -s "$target.partial" "$target"; then rm "$target.partial"; else mv "$target.partial" "$target"; fi
$bundles || exit 0

# bundle FILE ROUNDS
bundle() {
  local file
  file=$(dirname "$target")/$1
  [ "$file" -nt "$target" ] && return
  echo "making the keys of $1"
  "$target" setup --rounds "$2" --program "$file.partial"
  mv "$file.partial" "$file"
}
# Small enough for a ConfigMap.
bundle chain.bundle 4
bundle long-chain.bundle 200
