#!/usr/bin/env bash
# Proves the Fibonacci sample with two worker processes and verifies the proof from its bytes.
set -euo pipefail
cd "$(dirname "$0")/.."
output=target/demo
target/bin/kubectl-proof run -f config/samples/local/fibonacci.yaml --workers 2 --output-directory "$output"
# The identity to verify against is computed from the program itself, not taken from the report.
target/bin/kubectl-proof verify "$output/fibonacci.proof" --program target/programs/fibonacci.elf \
  --public-values "$output/fibonacci.public-values"
