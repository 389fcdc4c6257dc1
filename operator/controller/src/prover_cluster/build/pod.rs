//! The pod of a worker.

use k8s_openapi::api::core::v1::{PodResourceClaim, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use prover_crds::names;

use super::container::pod_security;
use super::metadata::{Labels, cluster_labels, group_selector, labels};
use super::prover::{claim_name, container_name, slots};
use super::{Surroundings, agent, placement, prover, volumes};
use crate::prover_cluster::validate::{Devices, GpuRequest, Group, Image, ValidatedCluster};

/// Seconds after the drain in which an agent reports what it has and its provers end.
const SECONDS_AFTER_DRAIN: i64 = 30;

/// The template of a group's pods, without the label of its revision.
pub(super) fn template(
    cluster: &ValidatedCluster,
    group: &Group,
    surroundings: &Surroundings,
    image: &Image,
) -> PodTemplateSpec {
    let identity = &cluster.identity;
    let mut containers = vec![agent::container(cluster, group, surroundings, image)];
    containers.extend(slots(group).iter().map(|slot| prover::container(slot, group)));
    let mut labels = cluster_labels(identity);
    labels.extend(group_selector(identity, &group.name));
    labels.extend(group.pod.labels.clone());
    let mut spec = PodSpec {
        automount_service_account_token: Some(false),
        containers,
        enable_service_links: Some(false),
        image_pull_secrets: placement::pull_secrets(surroundings, &group.pod),
        init_containers: Some(vec![agent::tools(surroundings, image)]),
        resource_claims: resource_claims(group),
        security_context: Some(pod_security()),
        service_account_name: Some(names::worker_account(&identity.name)),
        termination_grace_period_seconds: Some(i64::from(group.drain_seconds) + SECONDS_AFTER_DRAIN),
        volumes: Some(volumes::of_worker(cluster, group)),
        ..PodSpec::default()
    };
    placement::apply_overrides(
        &mut spec,
        &group.pod,
        &group_selector(identity, &group.name),
        Some(group),
    );
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: Some(annotations(cluster, group)),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    }
}

fn annotations(cluster: &ValidatedCluster, group: &Group) -> Labels {
    // Both move pods to fill nodes better, and what a pod proves would be lost.
    let mut annotations = labels([
        ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"),
        ("karpenter.sh/do-not-disrupt", "true"),
    ]);
    if cluster.store.credentials.is_none() {
        // Else EKS would give the identity with which the agent signs in to the store to the provers too.
        let provers: Vec<String> = slots(group)
            .iter()
            .map(|slot| container_name(slot, group))
            .collect();
        annotations.insert("eks.amazonaws.com/skip-containers".to_owned(), provers.join(","));
    }
    annotations.extend(group.pod.annotations.clone());
    annotations
}

/// One claim per device, so that each prover gets a GPU of its own.
fn resource_claims(group: &Group) -> Option<Vec<PodResourceClaim>> {
    let Devices::Gpu {
        count,
        request: GpuRequest::ClaimTemplate(template),
        ..
    } = &group.devices
    else {
        return None;
    };
    let claim = |index| PodResourceClaim {
        name: claim_name(index),
        resource_claim_template_name: Some(template.clone()),
        resource_claim_name: None,
    };
    Some((0..*count).map(claim).collect())
}
