//! Deletes artifacts in the background, a few at a time, so that the engine never waits for the store.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use prover_artifacts::{ArtifactStore, Key, Prefix, StoreError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::metrics::Metrics;

/// Deletions that wait; what passes it is left to the sweep of the job's prefix.
pub(crate) const DELETE_QUEUE: usize = 1 << 17;

/// Objects that one listing of a sweep asks for.
const SWEEP_OBJECTS: usize = 1_000;
/// Listings of one sweep; what passes it goes with the job.
const LISTINGS_PER_SWEEP: usize = 100;
/// Below a job's prefix, where its attempts put what they make.
const ATTEMPTS: &str = "attempts/";

/// What to delete.
#[derive(Debug)]
pub enum Deletion {
    /// One artifact.
    Artifact(Arc<str>),
    /// All of a job.
    Job(Prefix),
    /// What attempts of a job that is over put into the store and nothing names.
    Leftovers {
        /// The job's.
        prefix: Prefix,
        /// Keys that stay.
        keep: BTreeSet<Arc<str>>,
    },
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
        Deletion::Leftovers { prefix, keep } => sweep(store, prefix, keep).await,
    }
}

/// Deletes what attempts left, a listing at a time.
async fn sweep(
    store: &dyn ArtifactStore,
    prefix: &Prefix,
    keep: &BTreeSet<Arc<str>>,
) -> Result<(), StoreError> {
    let attempts = Prefix::new(format!("{}{ATTEMPTS}", prefix.as_str()))?;
    let mut after: Option<Key> = None;
    for _ in 0..LISTINGS_PER_SWEEP {
        let listing = store.list_after(&attempts, after.as_ref(), SWEEP_OBJECTS).await?;
        let left: Vec<&Key> = listing
            .objects
            .iter()
            .map(|object| &object.key)
            .filter(|key| !keep.contains(key.as_str()))
            .collect();
        for key in &left {
            store.delete(key).await?;
        }
        after = listing.objects.last().map(|object| object.key.clone());
        if !listing.truncated || after.is_none() {
            return Ok(());
        }
    }
    Ok(())
}
