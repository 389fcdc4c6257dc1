#!/usr/bin/env bash
# Puts deliberate bugs into a copy of the code, switches them on one at a time, and writes which layer of tests noticed
# each into docs/scheduler-mutants.md. ONLY=text takes those whose name contains it; SEEDS=n bounds the simulation per
# bug; --check says whether all can still be applied, --resume goes on where a run was broken off.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${MUTANTS_TARGET:-$PWD/target/mutants/build}
exec cargo run --locked --quiet -p prover-sim --bin mutants -- --seeds "${SEEDS:-500}" --only "${ONLY:-}" "$@"
