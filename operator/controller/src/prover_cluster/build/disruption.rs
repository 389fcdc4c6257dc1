//! How many pods a drained node may take away at once.

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use prover_crds::names;

use super::metadata::{Labels, coordinator_selector, group_selector, matching, owned};
use super::{Kind, Manifest};
use crate::prover_cluster::validate::ValidatedCluster;

/// Share of a group that may go at once. It is rounded up, so that a small group never blocks the drain of a node.
const WORKERS: &str = "25%";
/// Coordinators that may go at once.
const COORDINATORS: i32 = 1;

/// One budget for the coordinator and one for each group, whatever the revisions of its pods.
pub(super) fn budgets(cluster: &ValidatedCluster) -> Vec<Manifest> {
    let identity = &cluster.identity;
    let coordinator = budget(
        cluster,
        names::coordinator_name(&identity.name),
        IntOrString::Int(COORDINATORS),
        coordinator_selector(identity),
    );
    let groups = cluster.groups.iter().map(|group| {
        budget(
            cluster,
            names::worker_group_name(&identity.name, &group.name),
            IntOrString::String(WORKERS.to_owned()),
            group_selector(identity, &group.name),
        )
    });
    std::iter::once(coordinator).chain(groups).collect()
}

fn budget(cluster: &ValidatedCluster, name: String, most: IntOrString, selector: Labels) -> Manifest {
    let budget = PodDisruptionBudget {
        metadata: owned(&cluster.identity, name, selector.clone()),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(most),
            selector: Some(matching(selector)),
            // A pod that does not work anyway must not hold up the drain of its node.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    };
    Manifest::new(Kind::PodDisruptionBudget, &budget)
}
