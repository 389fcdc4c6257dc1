#!/usr/bin/env bash
# Runs the cluster scenarios: e2e.sh [FILTER...]     needs cluster-up and cluster-install
# E2E_KEEP=1 keeps the namespaces, E2E_THREADS says how many scenarios run at once (4).
set -euo pipefail
cd "$(dirname "$0")/../.."
export RUST_BACKTRACE=${RUST_BACKTRACE:-0}
exec cargo test --locked -p prover-e2e --test cluster -- --test-threads="${E2E_THREADS:-4}" "$@"
