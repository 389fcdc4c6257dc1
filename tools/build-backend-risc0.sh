#!/usr/bin/env bash
# Builds the RISC Zero backend in the cache folder and puts it into target/bin; with the argument `test`, runs its quick
# tests instead, with `test-proving` those that prove and verify.
#
# The prover is built for the best level that this machine's processor has: x86-64-v3 (AVX2) where possible.
# PROVER_CPU=x86-64 builds for every x86-64 machine.
set -euo pipefail
cd "$(dirname "$0")/.."
manifest=worker/backends/risc0/Cargo.toml
cache=${PROVER_OPERATOR_CACHE:-$HOME/.cache/prover-operator}
version=$(sed -n 's/^risc0-zkvm = { version = "=\([^"]*\)".*/\1/p' "$manifest")
[ -n "$version" ] || { echo "$manifest pins no version of risc0-zkvm" >&2; exit 1; }

level=${PROVER_CPU:-}
if [ -z "$level" ]; then
  level=x86-64-v3
  for feature in avx2 bmi1 bmi2 f16c fma abm movbe; do
    grep -qm1 -w "$feature" /proc/cpuinfo || level=x86-64
  done
fi
export CARGO_TARGET_DIR=$cache/risc0-$version-$level
case $level in
  x86-64-v3)
    export CXXFLAGS=-march=x86-64-v3 CFLAGS=-march=x86-64-v3 RUSTFLAGS="-C target-cpu=x86-64-v3" ;;
  x86-64)
    unset CXXFLAGS CFLAGS RUSTFLAGS ;;
  *) echo "PROVER_CPU is $level: set it to x86-64-v3 or x86-64" >&2; exit 2 ;;
esac
mkdir -p "$CARGO_TARGET_DIR" target/bin
# Two checkouts may share the cache: the copy must be of what this one has built.
exec 9>"$CARGO_TARGET_DIR/.prover-operator.lock"
flock 9
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
