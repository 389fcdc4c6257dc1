#!/usr/bin/env bash
# Measures prove, lift and join with the prover built for x86-64 and for x86-64-v3, alternating, one thread each.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p target/bench
config/samples/programs/build.sh target/programs
for level in x86-64 x86-64-v3; do
  PROVER_CPU=$level tools/build-backend-risc0.sh
  cp target/bin/prover-risc0-bench "target/bench/prover-risc0-bench-$level"
done
printf '\x20\x4e\0\0\0\0\0\0' > target/bench/input
for pair in $(seq "${BENCH_PAIRS:-3}"); do
  for level in x86-64 x86-64-v3; do
    printf '%s pair %s: ' "$level" "$pair"
    RAYON_NUM_THREADS=1 "target/bench/prover-risc0-bench-$level" tasks --program target/programs/fibonacci.elf \
      --input target/bench/input --segment-po2 16 --proves 1 --recursions 1
  done
done
