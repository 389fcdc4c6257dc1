//! prover-operator on a real Kubernetes, seen from outside: manifests go in by kubectl, proofs come out of MinIO.
//!
//! Run by `make e2e`; needs `make cluster-up cluster-install`. Each test has namespaces of its own; `E2E_KEEP=1` keeps them. A test that
//! fails dumps objects, events and logs to target/e2e-dumps.
#![allow(clippy::unwrap_used)]

mod edits;
mod faults;
mod hostile;
mod life_cycle;
mod proofs;
mod scaling;
mod sp1;
mod support;
mod takeover;
mod whole_cluster;
