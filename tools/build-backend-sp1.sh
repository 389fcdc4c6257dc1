#!/usr/bin/env bash
# Builds the SP1 backend in the cache folder and puts it into target/bin; with the argument `dependencies`, builds only
# what comes from the registry; with `test`, runs the quick tests instead; with `alone`, builds the program that proves and
# verifies with SP1's own sdk, for comparison; with `lint`, holds format and clippy against it all.
#
# With `cuda`, builds the backend for GPUs instead and puts it into target/bin/cuda. No GPU and no driver need be here
# for that; CUDA's compiler comes from the Python package registry unless CUDA_PATH names a toolkit (cuda-toolkit.sh).
# With `cuda-test`, runs the tests that need no GPU with that build; with `cuda-lint`, clippy.
#   SP1_CUDA_ARCHS   for which GPUs, as CUDA's numbers with commas between them: 90 (H100, H200) if it is not set
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
folder_of() {
  cargo metadata --locked --all-features --format-version 1 --manifest-path "$manifest" |
    sed -n 's/.*"manifest_path":"\([^"]*\/'"$1"'-[0-9][^"/]*\)\/Cargo.toml".*/\1/p'
}
runner=$(folder_of sp1-core-executor-runner)
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

for_cuda() {
  source tools/cuda-toolkit.sh
  cuda_toolkit
  # The build script of the kernels asks cargo about its crate, which has a lock of its own.
  cargo fetch --quiet --manifest-path "$(folder_of sp1-gpu-sys)/Cargo.toml"
  export SP1_CUDA_ENABLED=1 CUDA_ARCHS=${SP1_CUDA_ARCHS:-90} SP1_CUDA_VERSION=${CUDA_VERSION%.*}
}

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
  cuda)
    for_cuda
    cargo build --release --locked --manifest-path "$manifest" --features cuda
    mkdir -p target/bin/cuda
    install -m 0755 "$CARGO_TARGET_DIR/release/prover-backend-sp1" target/bin/cuda/prover-backend-sp1
    tools/check-cuda-program.sh target/bin/cuda/prover-backend-sp1 "$CUDA_ARCHS" "$CUOBJDUMP" ;;
  cuda-test)
    for_cuda
    cargo test --release --locked --manifest-path "$manifest" --features cuda --workspace --exclude prover-sp1-alone ;;
  cuda-lint)
    for_cuda
    cargo clippy --release --locked --manifest-path "$manifest" --features cuda --all-targets -- -D warnings ;;
  *)
    echo "there is no step $1: choose build, dependencies, test, alone, lint, cuda, cuda-test or cuda-lint" >&2
    exit 2 ;;
esac
