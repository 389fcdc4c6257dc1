//! Replicas of worker groups: what coordinators tell of their work becomes a number of workers, to and from zero.
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use crate::{Context, caches::Queues};
pub(crate) async fn run(_context: Arc<Context>, _queues: Queues, stop: CancellationToken) { stop.cancelled().await }
