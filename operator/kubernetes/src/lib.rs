//! The Kubernetes side of a coordinator: what it reads from the API server and what it writes there.
//!
//! Owns the watch over ProofJobs and their status and events, who may sign in to a coordinator, the loss of pods,
//! and sources that only a cluster has (ConfigMaps, Secrets, web servers, foreign buckets). Does not own
//! scheduling (`prover-core`), admission (`prover-coordinator`), nor objects other than the status of ProofJobs.

mod cluster;
mod collect;
mod election;
mod events;
pub mod identity;
mod jobs;
mod metrics;
pub mod pods;
pub mod sources;
mod start;
mod status;
pub mod tls;
mod write_plan;
mod writer;

pub use start::{Access, Addresses, ConnectError, Settings, StartError, connect, run};
