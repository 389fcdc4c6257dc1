//! The operator: reconciles ProverClusters and looks after ProofJobs that nobody else looks after.
//!
//! Owns everything that is made from a ProverCluster (coordinator, workers, Services, RBAC, certificates, network
//! policies, replicas) and its status, and of ProofJobs the finalizer, the time to live, and `Accepted=False`
//! while no ProverCluster takes them. Does not own scheduling nor any other status of a ProofJob.

pub mod api;
pub mod caches;
pub mod certificates;
pub mod context;
pub mod drive;
pub mod leader;
pub mod metrics;
pub mod proof_job;
pub mod prover_cluster;
pub mod retry;
pub mod run;
pub mod scaling;
pub mod watches;

pub use context::{Caches, ClusterKey, ClusterStates, Context, Settings};
pub use metrics::{ControllerName, Metrics};
pub use retry::Retry;
