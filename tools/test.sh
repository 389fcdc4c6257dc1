#!/usr/bin/env bash
# Runs one layer of tests: light, store, api, e2e or proof. The Makefile builds what each needs.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUST_BACKTRACE=1
layer=${1:?name a layer: light, store, api, e2e or proof}
case $layer in
  light)
    cargo test --locked --workspace --exclude prover-e2e --exclude prover-artifacts --exclude prover-crds \
      --exclude prover-chart
    cargo test --locked -p prover-artifacts --lib --test folder
    cargo test --locked -p prover-crds --lib
    cargo test --locked -p prover-chart --lib --test documentation ;;
  store) cargo test --locked -p prover-artifacts --test s3 ;;
  api)
    cargo test --locked -p prover-crds --test api_server
    cargo test --locked -p prover-chart --test api_server ;;
  e2e) cargo test --locked -p prover-e2e --test local_mode ;;
  proof) cargo test --locked -p prover-e2e --test real_proof ;;
  *) echo "there is no layer $layer: choose light, store, api, e2e or proof" >&2; exit 2 ;;
esac
