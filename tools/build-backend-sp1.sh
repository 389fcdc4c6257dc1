#!/usr/bin/env bash
# Builds the SP1 backend in the cache folder and puts it into target/bin; with the argument `dependencies`, builds only
# what comes from the registry; with `test`, runs the quick tests instead.
#
# The processor that it is built for: see prover-target.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/prover-target.sh
tools/prerequisites.sh sp1
manifest=worker/backends/sp1/Cargo.toml
prover_target sp1 "$manifest" sp1-prover
unset CXXFLAGS CFLAGS RUSTFLAGS CARGO_ENCODED_RUSTFLAGS

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

for_level
case ${1:-build} in
  build)
    cargo build --release --locked --manifest-path "$manifest"
    install -m 0755 "$CARGO_TARGET_DIR/release/prover-backend-sp1" target/bin/prover-backend-sp1 ;;
  dependencies) cargo build --release --locked --manifest-path "$manifest" --lib ;;
  test) cargo test --release --locked --manifest-path "$manifest" --workspace ;;
  *) echo "there is no step $1: choose build, dependencies or test" >&2; exit 2 ;;
esac
