//! Deletes artifacts in the background, a few at a time, so that the engine never waits for the store.

use std::sync::Arc;

use futures::StreamExt;
use prover_artifacts::{ArtifactStore, Key, Prefix, StoreError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::metrics::Metrics;

/// Deletions that wait; what passes it is left to the sweep of the job's prefix.
pub(crate) const DELETE_QUEUE: usize = 1 << 17;

/// What to delete.
#[derive(Debug)]
pub enum Deletion {
    /// One artifact.
    Artifact(Arc<str>),
    /// All of a job.
    Job(Prefix),
}

/// Works off the queue until its senders are gone.
pub(crate) async fn run(
    store: Arc<dyn ArtifactStore>,
    queue: mpsc::Receiver<Deletion>,
    parallel: usize,
    metrics: Metrics,
) {
    let (store, metrics) = (&store, &metrics);
    ReceiverStream::new(queue)
        .for_each_concurrent(parallel.max(1), |deletion| async move {
            match delete(store.as_ref(), &deletion).await {
                Ok(()) => metrics.deletes.with_label_values(&["done"]).inc(),
                Err(error) => {
                    metrics.deletes.with_label_values(&[error.category()]).inc();
                    tracing::warn!(?deletion, %error, "an artifact could not be deleted");
                }
            }
        })
        .await;
}

async fn delete(store: &dyn ArtifactStore, deletion: &Deletion) -> Result<(), StoreError> {
    match deletion {
        Deletion::Artifact(key) => store.delete(&Key::new(&**key)?).await,
        Deletion::Job(prefix) => store.delete_prefix(prefix).await.map(|_| ()),
    }
}
