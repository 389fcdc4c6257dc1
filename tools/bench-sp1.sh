#!/usr/bin/env bash
# Measures `kubectl-proof run` with SP1 against sp1-sdk's prover for processors, pair by pair: BENCH_PAIRS (1) of BENCH_KIND
# (Core).
set -euo pipefail
cd "$(dirname "$0")/.."
cargo run --locked --release --quiet -p prover-e2e --bin bench-sp1 -- \
  --pairs "${BENCH_PAIRS:-1}" --kind "${BENCH_KIND:-Core}"
