#!/usr/bin/env bash
# Builds the RISC Zero backend in the cache folder and puts it into target/bin; with the argument `test`, runs its quick
# tests instead, with `test-proving` those that prove and verify.
#
# The processor that it is built for: see prover-target.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/prover-target.sh
manifest=worker/backends/risc0/Cargo.toml
prover_target risc0 "$manifest" risc0-zkvm
for_level
case ${1:-build} in
  build)
    cargo build --release --locked --manifest-path "$manifest"
    for binary in prover-backend-risc0 prover-risc0-bench; do
      install -m 0755 "$CARGO_TARGET_DIR/release/$binary" "target/bin/$binary"
    done ;;
  test) cargo test --release --locked --manifest-path "$manifest" --lib --test executing --test planning ;;
  test-proving) cargo test --release --locked --manifest-path "$manifest" --test proving ;;
  *) echo "there is no step $1: choose build, test or test-proving" >&2; exit 2 ;;
esac
