#!/usr/bin/env bash
# Proves the Fibonacci sample with SP1 (kind Core) and holds the identity that the proof was verified against to the one
# that is computed from the program.
set -euo pipefail
cd "$(dirname "$0")/.."
output=target/demo-sp1
target/bin/kubectl-proof run -f config/samples/local/sp1-fibonacci.yaml --workers 1 --output-directory "$output"
# A Core proof can't be judged by the identity alone, so that the job's own verifying task judged it: SP1's verifier, over
# the bytes of the proof and the program. The report says against which identity.
program_id=$(target/bin/prover-backend-sp1 program-id --program target/programs/sp1/fibonacci.elf)
if ! grep -q "\"verifier\": \"" "$output/sp1-fibonacci.json"; then
  echo "the report names no verifier" >&2
  exit 1
fi
if ! grep -q "\"programId\": \"$program_id\"" "$output/sp1-fibonacci.json"; then
  echo "the proof was verified against another program than $program_id" >&2
  exit 1
fi
echo "verified against program $program_id, computed from the program itself"
