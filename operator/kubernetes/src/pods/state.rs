//! What a Pod object proves. Pure.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use prover_crds::names::AGENT_CONTAINER;

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerEnd {
    /// Id of the container that ended: another one after each restart.
    pub container_id: String,
    /// As the kubelet names it, such as `OOMKilled` or `Error`.
    pub reason: String,
    /// Its exit code; 137 after SIGKILL.
    pub exit_code: i32,
    /// Signal, 0 where unknown.
    pub signal: i32,
}

/// What is new about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodNews {
    /// Nothing of it runs any more, and nothing ever will.
    Gone {
        /// Name of the pod.
        name: String,
        /// Its UID.
        uid: String,
        /// How that is known.
        why: String,
    },
    /// Its agent has ended; the kubelet may start another one.
    AgentEnded {
        /// Name of the pod.
        name: String,
        /// Its UID.
        uid: String,
        /// How it ended.
        end: ContainerEnd,
    },
    /// Another container has ended.
    ContainerEnded {
        /// UID of the pod.
        uid: String,
        /// Name of the container.
        container: String,
        /// How it ended.
        end: ContainerEnd,
    },
}

/// Why nothing of a pod runs any more; none while it may. A pod that is being deleted still drains, and a node that
/// is not ready may only be out of reach: neither proves anything.
pub(super) fn gone(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let phase = status
        .phase
        .as_deref()
        .filter(|phase| matches!(*phase, "Succeeded" | "Failed"))?;
    let disrupted = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True");
    let reason = disrupted
        .and_then(|condition| condition.reason.as_deref())
        .or(status.reason.as_deref());
    let message = disrupted
        .and_then(|condition| condition.message.as_deref())
        .or(status.message.as_deref());
    let mut why = format!("the pod is in phase {phase}");
    for part in [reason, message].into_iter().flatten() {
        why.push_str(": ");
        why.push_str(part);
    }
    Some(why)
}

/// The containers that have ended, each with its latest end. A container that was started again tells of its last
/// end beside its present state.
pub(super) fn ends(pod: &Pod) -> Vec<(String, ContainerEnd)> {
    let statuses = pod.status.iter();
    statuses
        .flat_map(|status| status.container_statuses.iter().flatten())
        .filter_map(|status| Some((status.name.clone(), end(status)?)))
        .collect()
}

fn end(status: &ContainerStatus) -> Option<ContainerEnd> {
    let of = |state: Option<&k8s_openapi::api::core::v1::ContainerState>| {
        state.and_then(|state| state.terminated.as_ref()).map(ended)
    };
    of(status.state.as_ref()).or_else(|| of(status.last_state.as_ref()))
}

fn ended(terminated: &ContainerStateTerminated) -> ContainerEnd {
    ContainerEnd {
        container_id: terminated.container_id.clone().unwrap_or_default(),
        reason: terminated.reason.clone().unwrap_or_default(),
        exit_code: terminated.exit_code,
        signal: terminated.signal.unwrap_or_default(),
    }
}

/// Whether a container is the agent's.
pub(super) fn is_agent(container: &str) -> bool {
    container == AGENT_CONTAINER
}

/// All addresses of a pod.
pub(super) fn addresses(pod: &Pod) -> Vec<std::net::IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let several = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut addresses: Vec<std::net::IpAddr> = several
        .chain(status.pod_ip.as_deref())
        .filter_map(|text| text.parse().ok())
        .collect();
    addresses.dedup();
    addresses
}
