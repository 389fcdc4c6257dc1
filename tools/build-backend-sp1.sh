#!/usr/bin/env bash
# Builds the SP1 backend in the cache folder and puts it into target/bin; with the argument `dependencies`, builds only
# what comes from the registry; with `test`, runs the quick tests instead.
#
# The prover is built for the best level that this machine's processor has: x86-64-v3 (AVX2) where possible.
# PROVER_CPU=x86-64 builds for every x86-64 machine.
set -euo pipefail
cd "$(dirname "$0")/.."
manifest=worker/backends/sp1/Cargo.toml
cache=${PROVER_OPERATOR_CACHE:-$HOME/.cache/prover-operator}
version=$(sed -n 's/^sp1-prover = { version = "=\([^"]*\)".*/\1/p' "$manifest")
[ -n "$version" ] || { echo "$manifest pins no version of sp1-prover" >&2; exit 1; }

level=${PROVER_CPU:-}
if [ -z "$level" ]; then
  level=x86-64-v3
  for feature in avx2 bmi1 bmi2 f16c fma abm movbe; do
    grep -qm1 -w "$feature" /proc/cpuinfo || level=x86-64
  done
fi
export CARGO_TARGET_DIR=$cache/sp1-$version-$level
unset CXXFLAGS CFLAGS RUSTFLAGS CARGO_ENCODED_RUSTFLAGS
mkdir -p "$CARGO_TARGET_DIR" target/bin
# Two checkouts may share the cache: the copy must be of what this one has built.
exec 9>"$CARGO_TARGET_DIR/.prover-operator.lock"
flock 9

cargo fetch --quiet --locked --manifest-path "$manifest"
runner=$(cargo metadata --locked --format-version 1 --manifest-path "$manifest" |
  sed -n 's/.*"manifest_path":"\([^"]*\/sp1-core-executor-runner-[0-9][^"/]*\)\/Cargo.toml".*/\1/p')
# The runner's build script names its neighbours of SP1's own workspace as files to watch. Where they are missing, cargo
# takes the script and all that depends on it for changed at every build.
for neighbour in executor jit; do
  [ -d "$(dirname "$runner")/$neighbour" ] || mkdir "$(dirname "$runner")/$neighbour"
done
# That script runs cargo once more, for the program that executes natively. What it would build lies there already then, and
# the nested cargo needn't share the processors with the outer one.
CARGO_TARGET_DIR=$CARGO_TARGET_DIR/sp1-native-bins cargo build --quiet --release \
  --manifest-path "$(dirname "$runner")/sp1-core-executor-runner-binary-$version/Cargo.toml"

case $level in
  x86-64-v3)
    export CXXFLAGS=-march=x86-64-v3 CFLAGS=-march=x86-64-v3 RUSTFLAGS="-C target-cpu=x86-64-v3" ;;
  x86-64) ;;
  *) echo "PROVER_CPU is $level: set it to x86-64-v3 or x86-64" >&2; exit 2 ;;
esac
case ${1:-build} in
  build)
    cargo build --release --locked --manifest-path "$manifest"
    install -m 0755 "$CARGO_TARGET_DIR/release/prover-backend-sp1" target/bin/prover-backend-sp1 ;;
  dependencies) cargo build --release --locked --manifest-path "$manifest" --lib ;;
  test) cargo test --release --locked --manifest-path "$manifest" --workspace ;;
  *) echo "there is no step $1: choose build, dependencies or test" >&2; exit 2 ;;
esac
