#!/usr/bin/env bash
# The chart without any Kubernetes: lints, unit tests, and that it renders with every file of values.
set -euo pipefail
cd "$(dirname "$0")/.."
chart=charts/prover-operator
programs=$(e2e/tools/build-helm.sh)
for values in "" "$chart"/tests/values/*.yaml; do
  "$programs/helm" lint --strict --quiet "$chart" ${values:+--values "$values"}
  "$programs/helm" template prover-operator "$chart" --namespace prover-system ${values:+--values "$values"} >/dev/null
done
"$programs/helm-unittest" --strict "$chart"
tools/render-install.sh >/dev/null
