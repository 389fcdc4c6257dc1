//! The operator: reconciles ProverClusters and looks after ProofJobs that nobody else looks after.
//!
//! Owns everything that is made from a ProverCluster (coordinator, workers, Services, RBAC, certificates, network
//! policies, replicas) and its status, and of ProofJobs the finalizer, the time to live, and `Accepted=False`
//! while no ProverCluster takes them. Does not own scheduling nor any other status of a ProofJob.

pub mod context;

pub use context::{ClusterKey, ClusterStates, Context, Settings};
