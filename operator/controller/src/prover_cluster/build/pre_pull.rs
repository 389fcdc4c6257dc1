//! A DaemonSet that has a group's images on matching nodes before a worker is needed there.
//!
//! Each image is started once, as an init container that only says its version with our own static program, which
//! needs nothing of the image. What stays is a process that waits for a socket that never comes.

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetUpdateStrategy, RollingUpdateDaemonSet};
use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use prover_crds::names;

use super::container::{Needs, container_security, pod_security, read_only};
use super::metadata::{Labels, cluster_labels, labels, matching, owned};
use super::prover::pull_policy;
use super::{Kind, Manifest, Surroundings, agent, placement, volumes};
use crate::prover_cluster::validate::{Bytes, Group, Image, MilliCores, ValidatedCluster};

/// Value of the component label: neither coordinator nor worker, so that nobody takes these pods for either.
const COMPONENT: &str = "images";
const CPU: MilliCores = MilliCores(1);
const MEMORY: Bytes = Bytes::mebi(16);
/// It has nothing to finish.
const GRACE_SECONDS: i64 = 1;

/// The DaemonSet.
pub(super) fn daemon_set(
    cluster: &ValidatedCluster,
    group: &Group,
    surroundings: &Surroundings,
    image: &Image,
) -> Manifest {
    let identity = &cluster.identity;
    let selector = labels([
        (names::CLUSTER_LABEL, identity.name.as_str()),
        (names::GROUP_LABEL, group.name.as_str()),
        (names::COMPONENT_LABEL, COMPONENT),
    ]);
    let mut pod_labels = cluster_labels(identity);
    pod_labels.extend(selector.clone());
    let daemon_set = DaemonSet {
        metadata: owned(
            identity,
            names::worker_group_name(&identity.name, &group.name),
            selector.clone(),
        ),
        spec: Some(DaemonSetSpec {
            revision_history_limit: Some(0),
            selector: matching(selector),
            template: template(group, surroundings, image, pod_labels),
            update_strategy: Some(DaemonSetUpdateStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDaemonSet {
                    max_unavailable: Some(IntOrString::String("100%".to_owned())),
                    max_surge: None,
                }),
            }),
            ..DaemonSetSpec::default()
        }),
        status: None,
    };
    Manifest::new(Kind::DaemonSet, &daemon_set)
}

fn template(group: &Group, surroundings: &Surroundings, image: &Image, labels: Labels) -> PodTemplateSpec {
    let mut spec = PodSpec {
        automount_service_account_token: Some(false),
        containers: vec![container(
            "wait",
            image,
            surroundings.pull_policy.clone(),
            &["--socket=/prover/run/none.sock", "--", "/none"],
        )],
        enable_service_links: Some(false),
        image_pull_secrets: placement::pull_secrets(surroundings, &group.pod),
        init_containers: Some(vec![
            agent::tools(surroundings, image),
            container(
                "prover",
                &group.prover.image,
                Some(pull_policy(group.prover.pull_policy).to_owned()),
                &["--version"],
            ),
        ]),
        security_context: Some(pod_security()),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        volumes: Some(vec![volumes::tools()]),
        ..PodSpec::default()
    };
    placement::apply_overrides(&mut spec, &group.pod, &labels, Some(group));
    // One per node anyway, and never before a worker.
    spec.topology_spread_constraints = None;
    spec.priority_class_name = None;
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    }
}

fn container(name: &str, image: &Image, policy: Option<String>, arguments: &[&str]) -> Container {
    Container {
        name: name.to_owned(),
        image: Some(image.0.clone()),
        image_pull_policy: policy,
        command: Some(vec![format!("{}/prover-supervisor", names::TOOLS_DIRECTORY)]),
        args: Some(arguments.iter().map(|argument| (*argument).to_owned()).collect()),
        resources: Some(
            Needs::default()
                .cpu(Some(CPU))
                .memory(MEMORY, MEMORY)
                .into_requirements(),
        ),
        security_context: Some(container_security()),
        volume_mounts: Some(vec![read_only("tools", names::TOOLS_DIRECTORY)]),
        ..Container::default()
    }
}
