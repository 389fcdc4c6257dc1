//! Checks a worker group and fills in its defaults.

use prover_crds::{
    Backend, CapacityType, GpuDevice, ImagePullPolicy, ProofSystem, ProverClusterSpec, Provider, ScalingMode,
    WorkerGroup,
};

use super::{
    Bytes, Cache, Devices, GpuRequest, Group, Memory, Prover, Replicas, Shards, ValidationError, bytes,
    cores, image, overrides,
};

/// Seconds to finish on a machine that stays.
const DRAIN_SECONDS: u32 = 600;
/// Seconds to finish on a spot machine: some clouds give 25 in all.
const SPOT_DRAIN_SECONDS: u32 = 15;
/// Seconds to finish on a spot machine of EKS, which gives two minutes.
const EKS_SPOT_DRAIN_SECONDS: u32 = 100;
/// Largest tmpfs for artifacts that is chosen without being asked for.
const LARGEST_DEFAULT_EXCHANGE: Bytes = Bytes::gibi(8);
/// Share of the memory that the tmpfs for artifacts takes without being asked for.
const EXCHANGE_SHARE: u64 = 4;
/// Largest shared memory of a GPU's prover.
const LARGEST_SHARED_MEMORY: Bytes = Bytes::gibi(1);
/// Smallest: what container runtimes give by themselves.
const SMALLEST_SHARED_MEMORY: Bytes = Bytes::mebi(64);
/// Share of the memory that the shared memory of all GPUs' provers takes at most.
const SHARED_MEMORY_SHARE: u64 = 8;
/// Share of the memory that planners may have as shared memory at most.
const PLANNERS_SHARED_SHARE: u64 = 2;
/// Elements of an SP1 shard, as SP1 chooses them.
const SP1_ELEMENTS: u64 = (1 << 28) + (1 << 27);
/// Elements of an SP1 shard that every GPU can prove which SP1 takes, and how much memory one must have for more.
const SP1_ELEMENTS_OF_ANY_GPU: u64 = SP1_ELEMENTS - (1 << 26) - (1 << 25) - (1 << 24);
const LARGE_SP1_GPU: Bytes = Bytes::gibi(27);
/// Elements of an SP1 shard where a worker has less than [`LARGE_SP1_MEMORY`].
const SMALL_SP1_ELEMENTS: u64 = 1 << 27;
/// Memory of a worker that proves SP1's own shards.
const LARGE_SP1_MEMORY: Bytes = Bytes::gibi(40);
/// Share of the memory that an execution of an SP1 program may take.
const EXECUTOR_SHARE: u64 = 10;
/// Least that it may take.
const LEAST_EXECUTOR_MEMORY: Bytes = Bytes::gibi(2);
/// Most that it may take without being asked for.
const LARGEST_EXECUTOR_MEMORY: Bytes = Bytes::gibi(24);
/// Memory that must be left for provers.
const LEAST_PROVER_MEMORY: Bytes = Bytes::mebi(64);
/// Size of the cache volume that is chosen without being asked for.
const DEFAULT_CACHE: Bytes = Bytes::gibi(10);
/// What NVIDIA's device plugin offers.
const NVIDIA_GPU: &str = "nvidia.com/gpu";

pub(super) fn validate(group: &WorkerGroup, spec: &ProverClusterSpec) -> Result<Group, ValidationError> {
    let at = |name: &str| format!("spec.workerGroups[{}].{name}", group.name);
    let devices = devices(group)?;
    let resources = group.resources.clone().unwrap_or_default();
    let pod = group.pod.clone().unwrap_or_default();
    overrides(&pod, &at("pod"))?;
    let prover = prover(group, spec)?;
    Ok(Group {
        name: group.name.clone(),
        memory: memory(group, &devices, prover.system)?,
        prover,
        devices,
        replicas: replicas(group)?,
        cpu: cores(resources.cpu.as_ref(), &at("resources.cpu"))?,
        ephemeral_storage: bytes(
            resources.ephemeral_storage.as_ref(),
            &at("resources.ephemeralStorage"),
        )?,
        cache: cache(group)?,
        drain_seconds: drain_seconds(group),
        tasks_per_device: group.tasks_per_device,
        capacity: group.capacity_type,
        provider: group.provider,
        pre_pull: group.pre_pull_images,
        pod,
    })
}

fn prover(group: &WorkerGroup, spec: &ProverClusterSpec) -> Result<Prover, ValidationError> {
    let unknown = || ValidationError::BackendUnknown {
        group: group.name.clone(),
        backend: group.backend.clone(),
    };
    let backend: &Backend = spec
        .backends
        .iter()
        .find(|backend| backend.name == group.backend)
        .ok_or_else(unknown)?;
    if backend.command.is_some() != (backend.system == ProofSystem::Command) {
        return Err(ValidationError::CommandUnfit {
            backend: backend.name.clone(),
        });
    }
    Ok(Prover {
        name: backend.name.clone(),
        system: backend.system,
        image: image(&backend.image, &format!("spec.backends[{}].image", backend.name))?,
        pull_policy: backend.image_pull_policy.unwrap_or(ImagePullPolicy::IfNotPresent),
        args: backend.args.clone(),
        command: backend.command.clone(),
        // Known once all groups are.
        shards: None,
    })
}

/// How SP1's provers of a cluster cut shards: as the smallest of them can prove them. SP1's own size needs more than 24 GiB,
/// on a GPU more than 26 GiB of its memory: docs/sp1.md.
pub(super) fn shards(groups: &[Group]) -> Option<Shards> {
    let groups = groups
        .iter()
        .filter(|group| group.prover.system == ProofSystem::Sp1);
    let smallest = groups.clone().map(|group| group.memory.total).min()?;
    let small_gpu = |group: &Group| match &group.devices {
        Devices::Cpu { .. } => false,
        Devices::Gpu { min_memory, .. } => min_memory.is_none_or(|memory| memory < LARGE_SP1_GPU),
    };
    Some(Shards {
        element_threshold: match smallest >= LARGE_SP1_MEMORY {
            true if groups.clone().any(small_gpu) => SP1_ELEMENTS_OF_ANY_GPU,
            true => SP1_ELEMENTS,
            false => SMALL_SP1_ELEMENTS,
        },
        executor_memory: Bytes(smallest.0 / EXECUTOR_SHARE)
            .clamp(LEAST_EXECUTOR_MEMORY, LARGEST_EXECUTOR_MEMORY),
    })
}

fn devices(group: &WorkerGroup) -> Result<Devices, ValidationError> {
    let count = |count: Option<i32>| usize::try_from(count.unwrap_or(1)).unwrap_or(1).max(1);
    match (&group.device.cpu, &group.device.gpu) {
        (Some(cpu), None) => Ok(Devices::Cpu {
            count: count(cpu.count),
        }),
        (None, Some(gpu)) => Ok(Devices::Gpu {
            count: count(gpu.count),
            request: gpu_request(group, gpu)?,
            product: gpu.product.clone(),
            mig_profile: gpu.mig_profile.clone(),
            min_memory: bytes(
                gpu.min_memory.as_ref(),
                &format!("spec.workerGroups[{}].device.gpu.minMemory", group.name),
            )?,
        }),
        _ => Err(ValidationError::DeviceUnfit {
            group: group.name.clone(),
        }),
    }
}

fn gpu_request(group: &WorkerGroup, gpu: &GpuDevice) -> Result<GpuRequest, ValidationError> {
    match (
        &gpu.resource_claim_template_name,
        &gpu.resource_name,
        &gpu.mig_profile,
    ) {
        (Some(template), None, None) => Ok(GpuRequest::ClaimTemplate(template.clone())),
        (Some(_), _, _) => Err(ValidationError::ClaimAndResource {
            group: group.name.clone(),
        }),
        (None, Some(resource), _) => Ok(GpuRequest::Resource(resource.clone())),
        // The device plugin writes `1g.10gb+me` as `mig-1g.10gb.me`, since names of resources have no plus sign.
        (None, None, Some(profile)) => Ok(GpuRequest::Resource(format!(
            "nvidia.com/mig-{}",
            profile.replace('+', ".")
        ))),
        (None, None, None) => Ok(GpuRequest::Resource(NVIDIA_GPU.to_owned())),
    }
}

fn replicas(group: &WorkerGroup) -> Result<Replicas, ValidationError> {
    let name = || group.name.clone();
    match (group.replicas, &group.scaling) {
        (Some(_), Some(_)) => Err(ValidationError::ReplicasAndScaling { group: name() }),
        (fixed, None) => Ok(Replicas::Fixed(fixed.unwrap_or(1).max(0))),
        (None, Some(scaling)) => {
            let (min, max) = (scaling.min_replicas.unwrap_or(0).max(0), scaling.max_replicas);
            let unavailable = |mode| ValidationError::ScalingModeUnavailable { group: name(), mode };
            match scaling.mode {
                ScalingMode::Hpa => Err(unavailable("HPA")),
                ScalingMode::Keda => Err(unavailable("KEDA")),
                ScalingMode::Native if min > max => Err(ValidationError::ScalingBoundsUnfit {
                    group: name(),
                    min,
                    max,
                }),
                ScalingMode::Native => Ok(Replicas::Scaled { min, max }),
            }
        }
    }
}

fn memory(group: &WorkerGroup, devices: &Devices, system: ProofSystem) -> Result<Memory, ValidationError> {
    let at = |name: &str| format!("spec.workerGroups[{}].{name}", group.name);
    let asked = group
        .resources
        .as_ref()
        .and_then(|resources| resources.memory.as_ref());
    let total = bytes(asked, &at("resources.memory"))?.ok_or_else(|| ValidationError::MemoryMissing {
        group: group.name.clone(),
    })?;
    let exchange = bytes(group.exchange_size.as_ref(), &at("exchangeSize"))?
        .unwrap_or(Bytes(total.0 / EXCHANGE_SHARE).min(LARGEST_DEFAULT_EXCHANGE));
    let count = u64::try_from(devices.count()).unwrap_or(u64::MAX);
    let shared_per_device = if devices.are_gpus() {
        Bytes(total.0 / SHARED_MEMORY_SHARE / count).clamp(SMALLEST_SHARED_MEMORY, LARGEST_SHARED_MEMORY)
    } else {
        Bytes(0)
    };
    let taken = exchange
        .0
        .saturating_add(shared_per_device.0.saturating_mul(count));
    if taken.saturating_add(LEAST_PROVER_MEMORY.0) > total.0 {
        return Err(ValidationError::MemoryTooSmall {
            group: group.name.clone(),
            memory: total.0,
            taken,
            least: LEAST_PROVER_MEMORY.0,
        });
    }
    Ok(Memory {
        total,
        exchange,
        shared_per_device,
        // SP1's executor hands its trace over in a ring that container runtimes' 64 MiB do not hold.
        shared_by_planners: match system {
            ProofSystem::Sp1 => Bytes(total.0 / PLANNERS_SHARED_SHARE),
            _ => Bytes(0),
        },
    })
}

fn cache(group: &WorkerGroup) -> Result<Cache, ValidationError> {
    let Some(cache) = &group.cache else {
        return Ok(Cache {
            size: DEFAULT_CACHE,
            storage_class: None,
        });
    };
    let field = format!("spec.workerGroups[{}].cache.size", group.name);
    Ok(Cache {
        size: bytes(Some(&cache.size), &field)?.unwrap_or(DEFAULT_CACHE),
        storage_class: cache.storage_class_name.clone(),
    })
}

fn drain_seconds(group: &WorkerGroup) -> u32 {
    if let Some(seconds) = group.drain_seconds {
        return u32::try_from(seconds).unwrap_or(0);
    }
    match (group.capacity_type, group.provider) {
        (CapacityType::OnDemand, _) => DRAIN_SECONDS,
        (CapacityType::Spot, Some(Provider::Eks)) => EKS_SPOT_DRAIN_SECONDS,
        (CapacityType::Spot, _) => SPOT_DRAIN_SECONDS,
    }
}
