#!/usr/bin/env bash
# Proves the Fibonacci sample with SP1 (kind Core) and verifies the proof from its bytes against the program itself.
set -euo pipefail
cd "$(dirname "$0")/.."
output=target/demo-sp1
target/bin/kubectl-proof run -f config/samples/local/sp1-fibonacci.yaml --workers 1 --output-directory "$output"
# A Core proof can't be judged by its program's identity alone: the verifying key is made from the program.
target/bin/kubectl-proof verify "$output/sp1-fibonacci.proof" --system sp1 \
  --program target/programs/sp1/fibonacci.elf \
  --public-values "$output/sp1-fibonacci.public-values"
