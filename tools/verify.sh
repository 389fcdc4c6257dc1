#!/usr/bin/env bash
# What must hold before a commit: generated files are fresh, format, lints and documentation are clean, and
# none of it left a change behind.
set -euo pipefail
cd "$(dirname "$0")/.."
before=$(git status --porcelain)
step() { echo "==> $*"; }

step generated files
cargo run --quiet --locked -p prover-operator -- crds
step format and lints
tools/lint.sh
step documentation
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --quiet
step every crate alone
for package in prover-core prover-crds prover-artifacts prover-backend prover-wire prover-coordinator prover-kubernetes prover-controller; do
  cargo check --quiet --locked -p "$package"
done
step the chart
tools/verify-chart.sh
step shell scripts
for script in tools/*.sh e2e/tools/*.sh e2e/cluster/*.sh config/samples/programs/*.sh .ci/run; do bash -n "$script"; done
step clean tree
after=$(git status --porcelain)
if [ "$before" != "$after" ]; then
  echo "the checks changed files: commit them" >&2
  git status --short >&2
  exit 1
fi
echo "verified"
