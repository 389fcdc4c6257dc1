//! The operator as a process on a real kube-apiserver: election, ProofJobs, certificates, replicas.

mod certificates;
mod election;
mod jobs;
#[path = "../../../../crds/tests/api_server/kubernetes.rs"]
mod kubernetes;
mod replicas;
mod support;
