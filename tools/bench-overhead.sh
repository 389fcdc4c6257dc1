#!/usr/bin/env bash
# Measures `kubectl-proof run` against RISC Zero's own prover doing the same tasks, pair by pair (BENCH_PAIRS, 3).
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p target/bench
cargo run --locked --release --quiet -p prover-e2e --bin bench-overhead -- \
  --pairs "${BENCH_PAIRS:-3}" --range e2e/bench-overhead-range.json --results target/bench/overhead.json
