#!/usr/bin/env bash
# Measures the scheduling core with Criterion and holds the result against operator/bench/expected.toml.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo bench --locked -p prover-bench
cargo run --locked --release --quiet -p prover-bench --bin check-ranges
