#!/usr/bin/env bash
# Formatting and lints of all workspaces.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
cargo fmt --manifest-path worker/backends/risc0/Cargo.toml --check
# Without cargo, which would fetch the 600 crates of that workspace.
sp1=worker/backends/sp1
rustfmt --edition 2024 --check $sp1/src/lib.rs $sp1/src/main.rs $sp1/engine/src/lib.rs $sp1/alone/src/main.rs $sp1/tests/control/main.rs
cargo clippy --locked --workspace --all-targets -- -D warnings
