//! Reconciling ProverClusters, from outside: every call on an API server in memory, and what a real kube-apiserver
//! makes of them.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod clusters;
mod fake;
mod in_memory;
#[path = "../../../../crds/tests/api_server/kubernetes.rs"]
mod kubernetes;
mod real;
