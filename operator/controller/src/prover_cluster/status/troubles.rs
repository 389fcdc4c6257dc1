//! Why pods of a cluster are not what they shall be, in the words of whoever knows: the scheduler, the kubelet, the
//! API server, the process itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;
use prover_crds::{names, reasons};

use crate::prover_cluster::dereference::Dereferenced;

/// Why something has fewer pods than wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// One word.
    pub(super) reason: &'static str,
    /// For people: which pod, which container, what was said.
    pub(super) message: String,
}

/// The worst trouble of the coordinator and of each group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Troubles {
    /// Of the coordinator.
    pub(super) coordinator: Option<Trouble>,
    /// By group.
    pub(super) groups: BTreeMap<String, Trouble>,
}

/// Looks at every pod and Deployment of a cluster.
pub(super) fn find(found: &Dereferenced) -> Troubles {
    let mut troubles = Troubles::default();
    for deployment in &found.deployments {
        if let Some(trouble) = of_deployment(deployment) {
            note(&mut troubles, deployment.labels(), trouble);
        }
    }
    let mut pods: Vec<&Arc<Pod>> = found.pods.iter().collect();
    pods.sort_by_key(|pod| pod.name_any());
    for pod in pods {
        if pod.metadata.deletion_timestamp.is_none()
            && let Some(trouble) = of_pod(pod)
        {
            note(&mut troubles, pod.labels(), trouble);
        }
    }
    troubles
}

/// The first that is found of the worst kind is told.
fn note(troubles: &mut Troubles, labels: &BTreeMap<String, String>, trouble: Trouble) {
    let worse = |present: &Trouble| rank(present.reason) > rank(trouble.reason);
    let component = labels.get(names::COMPONENT_LABEL).map(String::as_str);
    let group = labels.get(names::GROUP_LABEL).cloned().unwrap_or_default();
    if component == Some(names::COORDINATOR) && troubles.coordinator.as_ref().is_none_or(worse) {
        troubles.coordinator = Some(trouble);
    } else if component == Some(names::WORKER) && troubles.groups.get(&group).is_none_or(worse) {
        troubles.groups.insert(group, trouble);
    }
}

/// What only a change of the specification mends comes first, what may mend itself comes last.
fn rank(reason: &str) -> usize {
    const ORDER: [&str; 5] = [
        reasons::IMAGE_PULL_FAILED,
        reasons::CONTAINER_CONFIG_INVALID,
        reasons::CONTAINER_CRASHING,
        reasons::PODS_REFUSED,
        reasons::GROUP_UNSCHEDULABLE,
    ];
    ORDER
        .iter()
        .position(|known| *known == reason)
        .unwrap_or(ORDER.len())
}

/// Pods that were not even made: a quota, an admission policy, a missing ServiceAccount.
fn of_deployment(deployment: &Deployment) -> Option<Trouble> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let failure = conditions
        .iter()
        .find(|condition| condition.type_ == "ReplicaFailure" && condition.status == "True")?;
    Some(Trouble {
        reason: reasons::PODS_REFUSED,
        message: failure
            .message
            .clone()
            .unwrap_or_else(|| "pods are refused".to_owned()),
    })
}

fn of_pod(pod: &Pod) -> Option<Trouble> {
    let status = pod.status.as_ref()?;
    let all = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten();
    let mut troubles: Vec<Trouble> = all
        .filter_map(|container| of_container(&pod.name_any(), container))
        .collect();
    let unscheduled = status.conditions.iter().flatten().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    });
    troubles.extend(unscheduled.map(|condition| Trouble {
        reason: reasons::GROUP_UNSCHEDULABLE,
        message: format!(
            "pod {} fits no node: {}",
            pod.name_any(),
            condition.message.as_deref().unwrap_or("the scheduler does not say why")
        ),
    }));
    troubles.into_iter().min_by_key(|trouble| rank(trouble.reason))
}

fn of_container(pod: &str, container: &ContainerStatus) -> Option<Trouble> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let name = &container.name;
    let said = waiting.message.as_deref().unwrap_or_default();
    let (reason, message) = match waiting.reason.as_deref()? {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "RegistryUnavailable" => (
            reasons::IMAGE_PULL_FAILED,
            format!(
                "the image {} of container {name} of pod {pod} can't be fetched: {said}",
                container.image
            ),
        ),
        "CreateContainerConfigError" => (
            reasons::CONTAINER_CONFIG_INVALID,
            format!("container {name} of pod {pod} can't be made: {said}"),
        ),
        "CreateContainerError" | "RunContainerError" => (
            reasons::CONTAINER_CRASHING,
            format!("container {name} of pod {pod} can't be started: {said}"),
        ),
        "CrashLoopBackOff" => (
            reasons::CONTAINER_CRASHING,
            format!(
                "container {name} of pod {pod} ends again and again: {}",
                last_words(container)
            ),
        ),
        _ => return None,
    };
    Some(Trouble { reason, message })
}

/// How a container ended last.
fn last_words(container: &ContainerStatus) -> String {
    let ended = container
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    let Some(ended) = ended else {
        return "it does not say why".to_owned();
    };
    let how = format!(
        "{} (exit code {})",
        ended.reason.as_deref().unwrap_or("it ended"),
        ended.exit_code
    );
    match ended
        .message
        .as_deref()
        .map(str::trim)
        .filter(|message| !message.is_empty())
    {
        Some(message) => format!("{how}: {message}"),
        None => how,
    }
}
