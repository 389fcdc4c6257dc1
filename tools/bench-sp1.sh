#!/usr/bin/env bash
# Measures `kubectl-proof run` with SP1 against sp1-sdk's prover for processors, pair by pair: BENCH_PAIRS (1) of BENCH_KIND
# (Core) of each of these programs, or of those that are named: fibonacci (2 shards), permutes (4 small shards, two of a
# precompile). Some ten minutes for each pair on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- fibonacci permutes
mkdir -p target/bench
for program in "$@"; do
  case $program in
    fibonacci) input=(--number 500) ;;
    permutes) input=(--zeros 1000 --elements $((1 << 26))) ;;
    *) echo "there is no program $program: choose fibonacci or permutes" >&2; exit 2 ;;
  esac
  cargo run --locked --quiet -p prover-e2e --bin bench-sp1 -- --program "$program" "${input[@]}" \
    --pairs "${BENCH_PAIRS:-1}" ${BENCH_OURS_FIRST:+--ours-first} --kind "${BENCH_KIND:-Core}" \
    --range e2e/bench-sp1-range.json --results "target/bench/sp1-$program.json"
done
