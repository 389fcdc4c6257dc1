//! The Kubernetes side of a coordinator: what it reads from the API server and what it writes there.
//!
//! Owns the watch over ProofJobs and their status and events, who may sign in to a coordinator, the loss of pods,
//! and sources that only a cluster has (ConfigMaps, Secrets, web servers, foreign buckets). Does not own
//! scheduling (`prover-core`), admission (`prover-coordinator`), nor objects other than the status of ProofJobs.

pub mod identity;
pub mod pods;
pub mod tls;
