#!/usr/bin/env bash
# Formatting and lints of both workspaces.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
cargo fmt --manifest-path worker/backends/risc0/Cargo.toml --check
cargo clippy --locked --workspace --all-targets -- -D warnings
