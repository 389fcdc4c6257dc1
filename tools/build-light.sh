#!/usr/bin/env bash
# Builds the binaries of the workspace in release mode and puts them into target/bin.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=(kubectl-proof prover-worker prover-operator prover-backend-emulated)
cargo build --release --locked "${packages[@]/#/--package=}"
mkdir -p target/bin
for binary in "${packages[@]}"; do
  install -m 0755 "${CARGO_TARGET_DIR:-target}/release/$binary" "target/bin/$binary"
done
