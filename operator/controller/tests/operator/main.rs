//! The operator as a process on a real kube-apiserver: election, ProofJobs, certificates, replicas.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod certificates;
mod election;
mod jobs;
#[path = "../../../../crds/tests/api_server/kubernetes.rs"]
mod kubernetes;
mod replicas;
mod support;
