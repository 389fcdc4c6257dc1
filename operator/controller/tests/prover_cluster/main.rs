//! Reconciling ProverClusters, from outside: every call on an API server in memory, and what a real kube-apiserver
//! makes of them.

mod clusters;
mod fake;
mod in_memory;
#[path = "../../../../crds/tests/api_server/kubernetes.rs"]
mod kubernetes;
mod real;
