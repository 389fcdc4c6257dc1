#!/usr/bin/env bash
# Runs the simulation: SEEDS=n seeds from FIRST on (500 from 0), or replays SEED=x and prints what happened.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -n "${SEED:-}" ]; then
  exec cargo run --locked --release --quiet -p prover-sim --bin prover-sim -- --seed "$SEED"
fi
exec cargo run --locked --release --quiet -p prover-sim --bin prover-sim -- --seeds "${SEEDS:-500}" --first "${FIRST:-0}"
