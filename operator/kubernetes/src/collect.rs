//! Collects what a job leaves in the store: everything below its prefix but what its user keeps.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use prover_artifacts::{ArtifactStore, Key, Prefix, StoreError};
use prover_crds::ProofJobStatus;

/// Deletions of one job at once.
const PARALLEL: usize = 8;
/// Objects that one listing of a sweep asks for.
const LISTED: usize = 1_000;

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
    keep: &BTreeSet<Arc<str>>,
) -> Result<u64, StoreError> {
    if keep.is_empty() {
        return store.delete_prefix(&prefix).await;
    }
    let mut deleted = 0;
    let mut after: Option<Key> = None;
    loop {
        let listing = store.list_after(&prefix, after.as_ref(), LISTED).await?;
        after = listing.objects.last().map(|object| object.key.clone());
        let going: Vec<_> = listing
            .objects
            .into_iter()
            .map(|object| object.key)
            .filter(|key| !keep.contains(key.as_str()))
            .collect();
        deleted += going.len() as u64;
        let store = &store;
        stream::iter(going)
            .map(|key| async move { store.delete(&key).await })
            .buffer_unordered(PARALLEL)
            .try_collect::<Vec<()>>()
            .await?;
        if !listing.truncated || after.is_none() {
            return Ok(deleted);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail so")]
mod tests {
    use prover_artifacts::Condition;

    use super::*;

    async fn mk_store(folder: &tempfile::TempDir, keys: &[String]) -> Arc<dyn ArtifactStore> {
        let url = format!("file://{}", folder.path().display());
        let store = prover_artifacts::open(&url).await.unwrap();
        for key in keys {
            let key = Key::new(key.as_str()).unwrap();
            let stored = store.put_bytes(&key, "x".into(), Condition::CreateOnly).await;
            stored.unwrap();
        }
        store
    }

    async fn left(store: &dyn ArtifactStore) -> Vec<String> {
        let listing = store.list(&Prefix::root(), 10_000).await.unwrap();
        let keys = listing.objects.iter().map(|object| object.key.to_string());
        keys.collect()
    }

    #[tokio::test]
    async fn a_sweep_keeps_what_it_is_told_however_much_that_is_and_deletes_the_rest_of_its_job() {
        let folder = tempfile::tempdir().unwrap();
        // Three pages in which what goes comes last.
        let kept: Vec<String> = (0..2 * LISTED)
            .map(|number| format!("jobs/a/attempts/{number:05}/receipt"))
            .collect();
        let going = [
            "jobs/a/attempts/z/receipt".to_owned(),
            "jobs/a/sources/program".to_owned(),
        ];
        let other = ["jobs/b/attempts/1/receipt".to_owned()];
        let store = mk_store(&folder, &[&kept[..], &going[..], &other[..]].concat()).await;
        let keep = kept.iter().map(|key| Arc::from(key.as_str())).collect();
        let prefix = Prefix::job("a").unwrap();
        assert_eq!(sweep(Arc::clone(&store), prefix.clone(), &keep).await.unwrap(), 2);
        assert_eq!(left(store.as_ref()).await, [&kept[..], &other[..]].concat());
        let all = sweep(Arc::clone(&store), prefix, &BTreeSet::new()).await.unwrap();
        assert_eq!(
            (all, left(store.as_ref()).await),
            (kept.len() as u64, other.to_vec())
        );
    }
}
