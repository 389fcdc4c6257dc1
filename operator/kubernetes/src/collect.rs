//! Collects what a job leaves in the store: everything below its prefix but what its user keeps.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use prover_artifacts::{ArtifactStore, MAX_LIST_OBJECTS, Prefix, StoreError};
use prover_crds::ProofJobStatus;

/// Deletions of one job at once.
const PARALLEL: usize = 8;

/// Where the artifacts of a job lie.
///
/// # Errors
/// The uid can't be a part of a key.
pub(crate) fn job_prefix(artifact_prefix: &str, uid: &str) -> Result<Prefix, StoreError> {
    let job = Prefix::job(uid)?;
    match artifact_prefix {
        "" => Ok(job),
        prefix => Prefix::new(format!("{prefix}/{}", job.as_str())),
    }
}

/// The keys that the user keeps: proof and public values, as the status names them.
pub(crate) fn kept(status: &ProofJobStatus, store: &str) -> Vec<String> {
    let proof = status.proof.iter().map(|proof| &proof.uri);
    let values = status.public_values.iter().map(|values| &values.uri);
    proof
        .chain(values)
        .filter_map(|uri| uri.strip_prefix(store).map(str::to_owned))
        .collect()
}

/// Deletes everything below the prefix but what is kept, and answers how many objects that were.
///
/// # Errors
/// The store failed; what was deleted by then stays deleted.
pub(crate) async fn sweep(
    store: Arc<dyn ArtifactStore>,
    prefix: Prefix,
    keep: Vec<String>,
) -> Result<u64, StoreError> {
    if keep.is_empty() {
        return store.delete_prefix(&prefix).await;
    }
    let mut deleted = 0;
    loop {
        let listing = store.list(&prefix, MAX_LIST_OBJECTS).await?;
        let going: Vec<_> = listing
            .objects
            .into_iter()
            .map(|object| object.key)
            .filter(|key| !keep.iter().any(|kept| kept == key.as_str()))
            .collect();
        if going.is_empty() {
            return Ok(deleted);
        }
        deleted += going.len() as u64;
        let store = &store;
        stream::iter(going)
            .map(|key| async move { store.delete(&key).await })
            .buffer_unordered(PARALLEL)
            .try_collect::<Vec<()>>()
            .await?;
        if !listing.truncated {
            return Ok(deleted);
        }
    }
}
