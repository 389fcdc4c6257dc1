//! The provers' containers: one per device, and one for planners. They run somebody else's code, so they get neither
//! a token nor credentials nor the certificate of the coordinator's authority.

use k8s_openapi::api::core::v1::{Container, EnvVar, ResourceClaim};
use prover_crds::{ImagePullPolicy, ProofSystem, names};

use super::container::{Needs, container_security, users_variables, variable};
use super::{command, volumes};
use crate::prover_cluster::validate::{Bytes, Devices, GpuRequest, Group, MilliCores};

/// Share of a worker's memory and cores that planners ask for.
const CONTROL_SHARE: u64 = 4;
/// Most memory that planners ask for.
const LARGEST_CONTROL_MEMORY: Bytes = Bytes::gibi(1);
/// Most cores that planners ask for.
const LARGEST_CONTROL_CPU: MilliCores = MilliCores(1_000);

/// Where a prover runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// On the device with this number.
    Device(usize),
    /// On none: planners and other parents.
    Control,
}

impl Slot {
    /// As socket and container are named after it.
    pub(super) fn name(&self, group: &Group) -> String {
        match self {
            Slot::Device(index) => names::device_slot(group.devices.class(), *index),
            Slot::Control => names::CONTROL_SLOT.to_owned(),
        }
    }
}

/// Every slot of a worker.
pub(super) fn slots(group: &Group) -> Vec<Slot> {
    (0..group.devices.count())
        .map(Slot::Device)
        .chain([Slot::Control])
        .collect()
}

/// Name of the container of a slot.
pub(super) fn container_name(slot: &Slot, group: &Group) -> String {
    format!("backend-{}", slot.name(group))
}

/// Name of the pod's claim for a device.
pub(super) fn claim_name(index: usize) -> String {
    format!("gpu-{index}")
}

/// The container of a slot.
pub(super) fn container(slot: &Slot, group: &Group) -> Container {
    Container {
        name: container_name(slot, group),
        image: Some(group.prover.image.0.clone()),
        image_pull_policy: Some(pull_policy(group.prover.pull_policy).to_owned()),
        command: Some(vec![format!("{}/prover-supervisor", names::TOOLS_DIRECTORY)]),
        args: Some(arguments(slot, group)),
        env: Some(environment(slot, group)),
        resources: Some(needs(slot, group)),
        security_context: Some(container_security()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(volumes::of_prover(slot, group)),
        ..Container::default()
    }
}

pub(super) fn pull_policy(policy: ImagePullPolicy) -> &'static str {
    match policy {
        ImagePullPolicy::Always => "Always",
        ImagePullPolicy::IfNotPresent => "IfNotPresent",
        ImagePullPolicy::Never => "Never",
    }
}

fn arguments(slot: &Slot, group: &Group) -> Vec<String> {
    let program = match group.prover.system {
        ProofSystem::Command => format!("{}/prover-backend-command", names::TOOLS_DIRECTORY),
        system => format!("/usr/local/bin/prover-backend-{system}"),
    };
    let socket = format!("--socket={}/{}.sock", names::SOCKET_DIRECTORY, slot.name(group));
    let mut arguments = vec![socket, "--".to_owned(), program];
    arguments.extend(group.prover.args.clone());
    arguments
}

fn environment(slot: &Slot, group: &Group) -> Vec<EnvVar> {
    // Provers that keep keys and circuits in the home directory of their user find the cache there.
    let mut env = vec![
        variable("HOME", names::CACHE_DIRECTORY),
        variable("TMPDIR", "/tmp"),
    ];
    if let Some(command) = &group.prover.command {
        env.push(variable(
            command::VARIABLE,
            command::configuration(group, command),
        ));
    }
    if let Some(shards) = &group.prover.shards {
        env.push(variable(
            "SP1_BACKEND_ELEMENT_THRESHOLD",
            shards.element_threshold.to_string(),
        ));
        env.push(variable(
            "SP1_BACKEND_EXECUTOR_MEMORY",
            shards.executor_memory.0.to_string(),
        ));
    }
    if group.devices.are_gpus() && *slot == Slot::Control {
        // Images of provers often ask for all GPUs of the node; planners shall see none.
        env.push(variable("NVIDIA_VISIBLE_DEVICES", "none"));
    }
    let users = users_variables(&group.pod.env);
    env.retain(|own| users.iter().all(|variable| variable.name != own.name));
    env.extend(users);
    env
}

fn needs(slot: &Slot, group: &Group) -> k8s_openapi::api::core::v1::ResourceRequirements {
    let devices = u64::try_from(group.devices.count()).unwrap_or(u64::MAX);
    let total = group.memory.total;
    let control = Bytes(total.0 / CONTROL_SHARE).min(LARGEST_CONTROL_MEMORY);
    let control_cpu = group
        .cpu
        .map(|cpu| MilliCores(cpu.0 / CONTROL_SHARE).min(LARGEST_CONTROL_CPU));
    let (memory, cpu) = match slot {
        Slot::Control => (control, control_cpu),
        Slot::Device(index) => {
            let index = u64::try_from(*index).unwrap_or(u64::MAX);
            let share = |total: u64| share(total, devices, index);
            let cpu = group
                .cpu
                .zip(control_cpu)
                .map(|(all, control)| MilliCores(share(all.0 - control.0)));
            (Bytes(share(total.0 - control.0)), cpu)
        }
    };
    let disk = group.ephemeral_storage.map(|disk| Bytes(disk.0 / (devices + 1)));
    let needs = Needs::default()
        .cpu(cpu.filter(|cpu| cpu.0 > 0))
        .memory(memory, total)
        .ephemeral_storage(disk, group.ephemeral_storage);
    match (slot, &group.devices) {
        (
            Slot::Device(_),
            Devices::Gpu {
                request: GpuRequest::Resource(resource),
                ..
            },
        ) => needs.device(resource).into_requirements(),
        (
            Slot::Device(index),
            Devices::Gpu {
                request: GpuRequest::ClaimTemplate(_),
                ..
            },
        ) => {
            let mut requirements = needs.into_requirements();
            requirements.claims = Some(vec![ResourceClaim {
                name: claim_name(*index),
                request: None,
            }]);
            requirements
        }
        _ => needs.into_requirements(),
    }
}

/// The part of one of `count` equal shares; the first ones take what does not divide.
fn share(total: u64, count: u64, index: u64) -> u64 {
    total / count + u64::from(index < total % count)
}
