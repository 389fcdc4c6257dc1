#!/usr/bin/env bash
# Measures how soon jobs start and lost workers are replaced in the cluster of `make cluster-up cluster-install`
# (with PROVER_CLUSTER=existing: in the one that KUBECONFIG names). BENCH_JOBS (200), BENCH_ROUNDS (5).
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p target/bench
loss=()
if [ "${PROVER_CLUSTER:-own}" = own ]; then
  export KUBECONFIG=${PROVER_CLUSTER_DIRECTORY:-${PROVER_OPERATOR_CACHE:-$HOME/.cache/prover-operator}/cluster}/admin.kubeconfig
  loss=(--node-command e2e/cluster/node.sh)
fi
cargo build --locked --release --quiet -p prover-bench-cluster
bench=${CARGO_TARGET_DIR:-target}/release/prover-bench-cluster
common=(--backend-image "${IMAGE_REGISTRY:-localhost}/prover-backend-emulated:$("$bench" --version | cut -d' ' -f2)")
failed=0
"$bench" job-latency "${common[@]}" --jobs "${BENCH_JOBS:-200}" --results target/bench/job-latency.json || failed=$?
"$bench" worker-loss "${common[@]}" "${loss[@]}" --rounds "${BENCH_ROUNDS:-5}" \
  --results target/bench/worker-loss.json || failed=$?
exit "$failed"
