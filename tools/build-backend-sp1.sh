#!/usr/bin/env bash
# Builds the SP1 backend in the cache folder and puts it into target/bin; with the argument `dependencies`, builds only
# what comes from the registry; with `test`, runs the quick tests instead; with `alone`, builds the program that proves and
# verifies with SP1's own sdk, for comparison; with `lint`, holds format and clippy against it all.
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
for_level
# That script runs cargo once more, for the program that executes natively. What it would build lies there already then, and
# the nested cargo needn't share the processors with the outer one. It takes out the flags of Rust, but not those of C: with
# others than these, each of the two would build everything again after the other.
env --unset=RUSTFLAGS CARGO_TARGET_DIR="$CARGO_TARGET_DIR/sp1-native-bins" cargo build --quiet --release \
  --manifest-path "$(dirname "$runner")/sp1-core-executor-runner-binary-$version/Cargo.toml"

case ${1:-build} in
  build)
    cargo build --release --locked --manifest-path "$manifest"
    install -m 0755 "$CARGO_TARGET_DIR/release/prover-backend-sp1" target/bin/prover-backend-sp1 ;;
  dependencies) cargo build --release --locked --manifest-path "$manifest" --lib ;;
  test) cargo test --release --locked --manifest-path "$manifest" --workspace --exclude prover-sp1-alone ;;
  alone)
    # Together with the backend: alone it would have all of SP1 compiled again, with fewer features of what both use.
    cargo build --release --locked --manifest-path "$manifest" --package prover-backend-sp1 --package prover-sp1-alone
    install -m 0755 "$CARGO_TARGET_DIR/release/prover-sp1-alone" target/bin/prover-sp1-alone ;;
  lint)
    cargo fmt --check --all --manifest-path "$manifest"
    cargo clippy --release --locked --manifest-path "$manifest" --workspace --all-targets -- -D warnings ;;
  *) echo "there is no step $1: choose build, dependencies, test, alone or lint" >&2; exit 2 ;;
esac
