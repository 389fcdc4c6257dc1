//! The agent's container, and the init container that brings our own programs into the provers' containers.

use k8s_openapi::api::core::v1::{Container, ContainerPort};
use prover_crds::names;

use super::container::{METRICS_PORT_NAME, Needs, container_security, credentials, pod_name, probes};
use super::{Surroundings, volumes};
use crate::prover_cluster::validate::{Bytes, Group, Image, MilliCores, ValidatedCluster};

/// What an agent asks for: it moves artifacts and waits.
const CPU: MilliCores = MilliCores(100);
/// What it asks for of memory.
const MEMORY: Bytes = Bytes::mebi(128);
/// What it may take, beside the inputs that it writes into the tmpfs: those count as memory of whoever wrote them.
const MEMORY_LIMIT: Bytes = Bytes::mebi(512);
/// Of the init container that copies two programs.
const TOOLS_MEMORY: Bytes = Bytes::mebi(64);
const TOOLS_CONTAINER: &str = "tools";
const WORKER_PROGRAM: &str = "/usr/local/bin/prover-worker";
const POD_NAME: &str = "POD_NAME";

/// Copies the supervisor and the command backend to where the provers' containers find them.
pub(super) fn tools(surroundings: &Surroundings, image: &Image) -> Container {
    Container {
        name: TOOLS_CONTAINER.to_owned(),
        image: Some(image.0.clone()),
        image_pull_policy: surroundings.pull_policy.clone(),
        command: Some(vec![WORKER_PROGRAM.to_owned()]),
        args: Some(vec![
            "install-tools".to_owned(),
            format!("--to={}", names::TOOLS_DIRECTORY),
        ]),
        resources: Some(
            Needs::default()
                .cpu(Some(CPU))
                .memory(TOOLS_MEMORY, TOOLS_MEMORY)
                .into_requirements(),
        ),
        security_context: Some(container_security()),
        volume_mounts: Some(volumes::of_tools()),
        ..Container::default()
    }
}

/// The only container of a worker that knows the coordinator and has credentials.
pub(super) fn container(
    cluster: &ValidatedCluster,
    group: &Group,
    surroundings: &Surroundings,
    image: &Image,
) -> Container {
    let mut env = vec![pod_name(POD_NAME)];
    env.extend(credentials(&cluster.store));
    let limit = Bytes(MEMORY_LIMIT.0.saturating_add(group.memory.exchange.0));
    let probes = probes();
    Container {
        name: names::AGENT_CONTAINER.to_owned(),
        image: Some(image.0.clone()),
        image_pull_policy: surroundings.pull_policy.clone(),
        command: Some(vec![WORKER_PROGRAM.to_owned()]),
        args: Some(arguments(cluster, group)),
        env: Some(env),
        ports: Some(vec![ContainerPort {
            name: Some(METRICS_PORT_NAME.to_owned()),
            container_port: i32::from(names::METRICS_PORT),
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        liveness_probe: Some(probes.liveness),
        readiness_probe: Some(probes.readiness),
        startup_probe: Some(probes.startup),
        resources: Some(
            Needs::default()
                .cpu(Some(CPU))
                .memory(MEMORY, limit)
                .into_requirements(),
        ),
        security_context: Some(container_security()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(volumes::of_agent(cluster)),
        ..Container::default()
    }
}

fn arguments(cluster: &ValidatedCluster, group: &Group) -> Vec<String> {
    let identity = &cluster.identity;
    let coordinator = format!(
        "https://{}.{}.svc:{}",
        names::coordinator_name(&identity.name),
        identity.namespace,
        names::COORDINATOR_PORT
    );
    vec![
        format!("--coordinator={coordinator}"),
        format!("--coordinator-ca-file={}/ca.crt", names::CA_DIRECTORY),
        format!("--coordinator-server-name={}", names::COORDINATOR_SERVER_NAME),
        format!("--token-file={}/token", names::TOKEN_DIRECTORY),
        format!("--worker-id=$({POD_NAME})"),
        format!("--worker-group={}", group.name),
        format!("--store={}", cluster.store.url),
        format!("--work-directory={}", names::WORK_DIRECTORY),
        format!("--backend-sockets={}", names::SOCKET_DIRECTORY),
        format!("--devices={}", group.devices.count()),
        format!("--device-class={}", group.devices.class()),
        format!("--host-memory={}", host_memory(group).0),
        format!("--drain-seconds={}", group.drain_seconds),
        format!("--metrics-address=0.0.0.0:{}", names::METRICS_PORT),
    ]
}

/// What provers may be given: the rest is for artifacts and shared memory, which count as memory of whoever writes.
pub(super) fn host_memory(group: &Group) -> Bytes {
    let devices = u64::try_from(group.devices.count()).unwrap_or(u64::MAX);
    let shared = group.memory.shared_per_device.0.saturating_mul(devices);
    Bytes(
        group
            .memory
            .total
            .0
            .saturating_sub(group.memory.exchange.0)
            .saturating_sub(shared),
    )
}
