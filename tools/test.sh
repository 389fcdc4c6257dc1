#!/usr/bin/env bash
# Runs one layer of tests: light, store, api, e2e, proof, sp1, load, cluster or sp1-cluster. The Makefile builds what each needs.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUST_BACKTRACE=1
layer=${1:?name a layer: light, store, api, e2e or proof}
case $layer in
  light)
    tools/test-images.sh
    (cd config/samples/command/gnark && go test ./...)
    with_real_servers=(prover-e2e prover-artifacts prover-log prover-crds prover-chart prover-kubernetes prover-controller)
    # The tests of workers start the real supervisor.
    cargo build --locked -p prover-supervisor
    cargo test --locked --workspace "${with_real_servers[@]/#/--exclude=}"
    cargo test --locked -p prover-artifacts --lib --test folder
    cargo test --locked -p prover-log --lib
    cargo test --locked -p prover-crds -p prover-kubernetes -p prover-controller -p prover-chart --lib
    cargo test --locked -p prover-chart --test documentation ;;
  store)
    cargo test --locked -p prover-artifacts --test s3
    cargo test --locked -p prover-log --test store ;;
  api)
    cargo test --locked -p prover-crds --test api_server
    cargo test --locked -p prover-chart --test api_server
    cargo test --locked -p prover-kubernetes --test api_server
    cargo test --locked -p prover-controller --test operator --test prover_cluster ;;
  e2e) cargo test --locked -p prover-e2e --test local_mode ;;
  proof) cargo test --locked -p prover-e2e --test real_proof ;;
  sp1) cargo test --locked -p prover-e2e --test sp1 ;;
  load) cargo test --locked --release -p prover-controller --test load ;;
  cluster | sp1-cluster)
    shift
    case $layer in
      cluster) which=(--skip sp1::real "$@") ;;
      sp1-cluster) which=("${@:-sp1::}") ;;
    esac
    e2e/cluster/up.sh
    e2e/cluster/install.sh
    # How long each scene took, also where one failed.
    export E2E_TIMES=$PWD/target/e2e-times.txt
    rm -f "$E2E_TIMES"
    trap 'sort --reverse --numeric-sort "$E2E_TIMES" 2>/dev/null || true' EXIT
    # Those that disturb the whole cluster run alone among the threads of one process: one runner at a time.
    cargo test --locked -p prover-e2e --test cluster -- --test-threads="${E2E_THREADS:-8}" "${which[@]}" ;;
  *) echo "there is no layer $layer: choose light, store, api, e2e, proof, sp1, load, cluster or sp1-cluster" >&2; exit 2 ;;
esac
