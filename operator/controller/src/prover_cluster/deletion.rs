//! A ProverCluster that goes: it finishes its jobs first, then everything goes that no owner takes along.

use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Resource, ResourceExt};
use prover_crds::names::{CLUSTER_FINALIZER, FORCE_DELETE_ANNOTATION, OPERATOR_MANAGER};
use prover_crds::{ProverCluster, conditions, names};
use serde_json::{Value, json};

use super::ReconcileError;
use super::apply::delete;
use super::dereference::Dereferenced;
use crate::api::{ApiError, call};
use crate::{ClusterKey, Context};

/// Longest wait for the coordinator to fail the jobs of a cluster that is deleted by force.
const FORCE_LIMIT: Duration = Duration::from_secs(60);

/// What a ProverCluster that is being deleted waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// So many jobs are not finished: it goes on as before.
    Drain {
        /// How many.
        jobs: usize,
        /// Whether its coordinator was asked to fail them.
        forced: bool,
    },
    /// Nothing: it goes.
    Go,
}

/// Decides what a ProverCluster that is being deleted waits for. Jobs that can't be finished, since the namespace goes
/// with all pods in it, hold up nothing.
pub(super) fn departure(jobs: usize, forced: bool, namespace_goes: bool, waited: Duration) -> Departure {
    if jobs == 0 || namespace_goes || (forced && waited >= FORCE_LIMIT) {
        Departure::Go
    } else {
        Departure::Drain { jobs, forced }
    }
}

/// What this ProverCluster waits for.
pub(super) fn departure_of(cluster: &ProverCluster, context: &Context, found: &Dereferenced) -> Departure {
    let forced = cluster
        .annotations()
        .get(FORCE_DELETE_ANNOTATION)
        .is_some_and(|value| value == "true");
    let deleted = cluster.metadata.deletion_timestamp.as_ref();
    let since = deleted
        .and_then(|time| u64::try_from(time.0.as_millisecond()).ok())
        .unwrap_or_default();
    let waited = Duration::from_millis(context.clock.now_milliseconds().saturating_sub(since));
    departure(
        unfinished_jobs(context, &found.key),
        forced,
        found.namespace_goes,
        waited,
    )
}

/// Lets a ProverCluster go that waits for nothing; false while it must go on.
pub(super) async fn proceed(
    cluster: &ProverCluster,
    context: &Context,
    found: &Dereferenced,
) -> Result<bool, ReconcileError> {
    if !cluster
        .finalizers()
        .iter()
        .any(|finalizer| finalizer == CLUSTER_FINALIZER)
    {
        return Ok(true);
    }
    if let Departure::Drain { .. } = departure_of(cluster, context, found) {
        return Ok(false);
    }
    for (id, present) in &found.present {
        if id.namespace != found.key.namespace && present.hash.is_some() && !present.goes {
            delete(context, id, Some(present)).await?;
        }
    }
    crate::certificates::forget(context, cluster).await?;
    write(cluster, context, json!([]))
        .await
        .map_err(ReconcileError::Finalizer)?;
    context.statuses.forget(&found.key);
    context.applied.forget(found.present.keys());
    Ok(true)
}

/// Keeps a ProverCluster from going before its jobs are finished.
pub(super) async fn hold(cluster: &ProverCluster, context: &Context) -> Result<(), ReconcileError> {
    if cluster
        .finalizers()
        .iter()
        .any(|finalizer| finalizer == CLUSTER_FINALIZER)
    {
        return Ok(());
    }
    write(cluster, context, json!([CLUSTER_FINALIZER]))
        .await
        .map_err(ReconcileError::Finalizer)
}

/// Finalizers are a set to which each manager applies its own. The UID keeps the call from making a new object.
async fn write(cluster: &ProverCluster, context: &Context, finalizers: Value) -> Result<(), ApiError> {
    let body = json!({
        "apiVersion": ProverCluster::api_version(&()),
        "kind": ProverCluster::kind(&()),
        "metadata": { "name": cluster.name_any(), "uid": cluster.uid(), "finalizers": finalizers },
    });
    // Of the answer nothing is read: it need not be one that this version can decode.
    let api: Api<PartialObjectMeta<ProverCluster>> =
        Api::namespaced(context.client.clone(), &cluster.namespace().unwrap_or_default());
    let parameters = PatchParams::apply(OPERATOR_MANAGER).force();
    match call(
        "write a finalizer",
        api.patch(&cluster.name_any(), &parameters, &Patch::Apply(body)),
    )
    .await
    {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Jobs of a cluster that have not ended and that are ours.
fn unfinished_jobs(context: &Context, key: &ClusterKey) -> usize {
    let unfinished = context.caches.jobs.state_filter(|job| {
        let Ok(job) = &job.0 else { return false };
        let reference = &job.spec.cluster_ref;
        let namespace = reference
            .namespace
            .clone()
            .or_else(|| job.metadata.namespace.clone());
        reference.name == key.name
            && namespace.as_deref() == Some(key.namespace.as_str())
            && job.is_managed_by_us()
            && conditions::is_true(&job.status.conditions, conditions::ACCEPTED)
            && !conditions::is_true(&job.status.conditions, conditions::FINISHED)
    });
    unfinished.len()
}

/// As an annotation for the message that tells how to go on.
pub(super) fn advice(departure: Departure) -> String {
    match departure {
        Departure::Drain { jobs, forced: false } => format!(
            "waits for {jobs} unfinished jobs; to fail them instead: kubectl annotate provercluster NAME {}=true",
            names::FORCE_DELETE_ANNOTATION
        ),
        Departure::Drain { jobs, forced: true } => {
            format!(
                "{jobs} unfinished jobs are being failed, as {} asks",
                names::FORCE_DELETE_ANNOTATION
            )
        }
        Departure::Go => "nothing is waited for".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_waits_for_its_jobs_unless_it_is_forced_or_its_namespace_goes() {
        let minute = Duration::from_secs(60);
        assert_eq!(departure(0, false, false, Duration::ZERO), Departure::Go);
        assert_eq!(
            departure(3, false, false, minute * 60),
            Departure::Drain {
                jobs: 3,
                forced: false
            }
        );
        assert_eq!(
            departure(3, true, false, Duration::ZERO),
            Departure::Drain {
                jobs: 3,
                forced: true
            }
        );
        assert_eq!(departure(3, true, false, minute), Departure::Go);
        assert_eq!(departure(3, false, true, Duration::ZERO), Departure::Go);
    }
}
