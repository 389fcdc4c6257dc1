//! Carries out what was decided about replicas: who leaves, which pods are cheapest to take away, how many there shall be.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::core::PartialObjectMeta;
use prover_crds::names;
use prover_wire::LEAVING_LIFE_MS;
use prover_wire::operator_plane::ClusterState;
use serde_json::json;

use super::gather::{DELETION_COST, VICTIM_COST};
use super::model::{ClusterDecision, ClusterFacts, DeploymentFacts, ScaleDecision};
use super::plane::{Plane, PlaneError};
use crate::api::{ApiError, call};
use crate::retry::Retry;
use crate::{ClusterKey, Context};

/// After this time the coordinator is told again who shall leave; a third of the time for which its word holds.
const LEAVING_RENEWAL_MS: u64 = LEAVING_LIFE_MS / 3;

/// Replicas could not be brought to what was decided.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScaleError {
    /// The API server did not do what was asked.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The coordinator did not do what was asked.
    #[error(transparent)]
    Plane(#[from] PlaneError),
}

impl ScaleError {
    /// Short name for metrics.
    #[must_use]
    pub(super) fn category(&self) -> &'static str {
        match self {
            ScaleError::Api(error) => error.category(),
            ScaleError::Plane(error) => error.category(),
        }
    }

    /// When it is worth trying again.
    #[must_use]
    pub(super) fn retry(&self) -> Retry {
        match self {
            ScaleError::Api(error) => error.retry(),
            ScaleError::Plane(_) => Retry::Backoff,
        }
    }
}

/// Carries out a decision.
pub(super) async fn execute(
    context: &Context,
    key: &ClusterKey,
    facts: &ClusterFacts,
    decision: &ClusterDecision,
    (plane, state): (&Plane, Option<&ClusterState>),
) -> Result<(), ScaleError> {
    // Before anything goes: whoever shall go must take nothing new, and whoever stays must work.
    let renew = plane.leaving_told_ago_ms() >= LEAVING_RENEWAL_MS;
    if let Some(pods) = state.and_then(|state| leaving_to_tell(decision, state, renew)) {
        tracing::info!(
            namespace = key.namespace,
            name = key.name,
            ?pods,
            "workers that leave"
        );
        plane.set_leaving(pods).await?;
    }
    for (name, decided) in &decision.deployments {
        let (what, why) = decided.as_strs();
        match decided {
            ScaleDecision::Keep { .. } => continue,
            ScaleDecision::MarkLeaving { .. } => {}
            ScaleDecision::Up { to, .. } => scale(context, key, name, *to, why).await?,
            ScaleDecision::Down { to, pods, .. } => {
                let Some(deployment) = deployment(facts, name) else {
                    continue;
                };
                // Kubernetes chooses by what it sees: replicas go down once the prices are to be seen in the cache.
                if !mark(context, key, deployment, pods).await? {
                    scale(context, key, name, *to, why).await?;
                }
            }
        }
        context.metrics.scale_decided(what, why);
    }
    Ok(())
}

/// The workers that shall leave, where that is not what the coordinator has or it is time to say it again. Workers that
/// the coordinator does not know are left out.
fn leaving_to_tell(decision: &ClusterDecision, state: &ClusterState, renew: bool) -> Option<Vec<String>> {
    let known = |leaving: bool| {
        state
            .workers
            .iter()
            .filter(move |worker| !leaving || worker.leaving)
    };
    let has: BTreeSet<&str> = known(true).map(|worker| worker.pod.as_str()).collect();
    let pods = known(false).map(|worker| worker.pod.as_str());
    let wanted: BTreeSet<&str> = pods.filter(|pod| decision.leaving.contains(*pod)).collect();
    let again = renew && !wanted.is_empty();
    (wanted != has || again).then(|| wanted.into_iter().map(str::to_owned).collect())
}

fn deployment<'a>(facts: &'a ClusterFacts, name: &str) -> Option<&'a DeploymentFacts> {
    let groups = facts.groups.iter().filter_map(|group| group.deployment.as_ref());
    groups
        .chain(facts.old.iter().map(|old| &old.deployment))
        .find(|deployment| deployment.name == name)
}

/// Makes these pods the cheapest to take away, and all others of the Deployment dear again. Answers whether anything had
/// to be written.
async fn mark(
    context: &Context,
    key: &ClusterKey,
    deployment: &DeploymentFacts,
    victims: &[String],
) -> Result<bool, ApiError> {
    let api: Api<PartialObjectMeta<Pod>> = Api::namespaced(context.client.clone(), &key.namespace);
    let parameters = PatchParams {
        field_manager: Some(names::SCALER_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let mut written = false;
    for pod in deployment.present() {
        let wanted = victims.contains(&pod.name);
        if pod.marked == wanted {
            continue;
        }
        written = true;
        // Not by server-side apply, which would make a pod that went meanwhile.
        let cost = wanted.then_some(VICTIM_COST);
        let patch = Patch::Merge(json!({ "metadata": { "annotations": { DELETION_COST: cost } } }));
        match call("price a pod", api.patch_metadata(&pod.name, &parameters, &patch)).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

async fn scale(context: &Context, key: &ClusterKey, name: &str, to: u32, why: &str) -> Result<(), ApiError> {
    tracing::info!(
        namespace = key.namespace,
        cluster = key.name,
        deployment = name,
        to,
        why,
        "replicas"
    );
    let api: Api<Deployment> = Api::namespaced(context.client.clone(), &key.namespace);
    let patch = json!({
        "apiVersion": "autoscaling/v1",
        "kind": "Scale",
        "metadata": { "name": name },
        "spec": { "replicas": to },
    });
    let parameters = PatchParams::apply(names::SCALER_MANAGER).force();
    match call(
        "write the replicas of a Deployment",
        api.patch_scale(name, &parameters, &Patch::Apply(patch)),
    )
    .await
    {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use prover_wire::operator_plane::WorkerState;

    use super::*;

    fn mk_state(leaving: &[bool]) -> ClusterState {
        let worker = |(index, leaving): (usize, &bool)| WorkerState {
            pod: format!("pod-{index}"),
            leaving: *leaving,
            ..WorkerState::default()
        };
        ClusterState {
            workers: leaving.iter().enumerate().map(worker).collect(),
            ..ClusterState::default()
        }
    }

    #[test]
    fn who_shall_leave_is_told_when_it_changes_and_again_before_it_lapses() {
        let decision = ClusterDecision {
            leaving: ["pod-0".to_owned(), "pod-unknown".to_owned()].into(),
            ..ClusterDecision::default()
        };
        let told = |leaving: &[bool], renew| leaving_to_tell(&decision, &mk_state(leaving), renew);
        let pods = Some(vec!["pod-0".to_owned()]);
        assert_eq!(told(&[false, false], false), pods);
        assert_eq!(told(&[true, false], false), None);
        assert_eq!(told(&[true, false], true), pods);
        let nobody = ClusterDecision::default();
        assert_eq!(leaving_to_tell(&nobody, &mk_state(&[false]), true), None);
        assert_eq!(
            leaving_to_tell(&nobody, &mk_state(&[true]), true),
            Some(Vec::new())
        );
    }
}
