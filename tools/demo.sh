#!/usr/bin/env bash
# Proves the Fibonacci sample with two worker processes and verifies the proof from its bytes.
set -euo pipefail
cd "$(dirname "$0")/.."
output=target/demo
target/bin/kubectl-proof run -f config/samples/local/fibonacci.yaml --workers 2 --output-directory "$output"
# The identity to verify against is computed from the program itself, not taken from the report.
image_id=$(target/bin/prover-backend-risc0 image-id --program target/programs/fibonacci.elf)
target/bin/kubectl-proof verify "$output/fibonacci.proof" --image-id "$image_id" \
  --public-values "$output/fibonacci.public-values"
