//! Looks after ProofJobs that nobody else looks after: their finalizer, their time to live, and `Accepted=False`
//! while no ProverCluster takes them.

mod gitops;
mod object;

pub use gitops::{Tracker, tracker};
pub use object::{JobObject, JobSpec, JobStatus, trim};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use crate::{Context, caches::Queues};
pub(crate) async fn run(_context: Arc<Context>, _queues: Queues, stop: CancellationToken) { stop.cancelled().await }
