//! A ProverCluster whose every value can be built from: defaults filled in, quantities counted.

use prover_crds::{CapacityType, CommandBackend, ImagePullPolicy, PodOverrides, ProofSystem, Provider};

/// Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Binary megabytes.
    #[must_use]
    pub const fn mebi(count: u64) -> Bytes {
        Bytes(count << 20)
    }

    /// Binary gigabytes.
    #[must_use]
    pub const fn gibi(count: u64) -> Bytes {
        Bytes(count << 30)
    }
}

/// Thousandths of a core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MilliCores(pub u64);

/// Name of an image, without spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image(pub String);

/// Who the ProverCluster is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its namespace.
    pub namespace: String,
    /// Its name, fit for names of Services.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// What may be done with what was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ApplyStrategy {
    /// Apply it.
    #[default]
    Apply,
    /// Ask the API server what would change, and change nothing.
    DryRun,
    /// Write nothing but the status.
    Paused,
}

/// A ProverCluster that can be built.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedCluster {
    /// Who it is.
    pub identity: Identity,
    /// What may be done with what is built.
    pub strategy: ApplyStrategy,
    /// Where artifacts lie.
    pub store: Store,
    /// The coordinator.
    pub coordinator: Coordinator,
    /// Image of the agents, where the specification names one.
    pub worker_image: Option<Image>,
    /// Workers, in the order of the specification.
    pub groups: Vec<Group>,
    /// Which namespaces are allowed.
    pub namespaces: AllowedNamespaces,
}

/// Where artifacts lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// As `--store` wants it.
    pub url: String,
    /// Secret with credentials; the identity of the pods where absent.
    pub credentials: Option<String>,
    /// ConfigMap and key with the certificate of a private authority.
    pub authority: Option<(String, String)>,
}

/// The coordinator.
#[derive(Clone, Debug, PartialEq)]
pub struct Coordinator {
    /// How many there are, the one that leads among them.
    pub replicas: i32,
    /// Its image, where the specification names one.
    pub image: Option<Image>,
    /// Cores that it asks for.
    pub cpu: MilliCores,
    /// Memory that it asks for and is held to.
    pub memory: Bytes,
    /// Space on the node's disk that it asks for and is held to.
    pub ephemeral_storage: Option<Bytes>,
    /// Overrides of its pod.
    pub pod: PodOverrides,
}

/// A prover.
#[derive(Clone, Debug, PartialEq)]
pub struct Prover {
    /// Name of the backend.
    pub name: String,
    /// Its proof system.
    pub system: ProofSystem,
    /// Its image.
    pub image: Image,
    /// When a node fetches it.
    pub pull_policy: ImagePullPolicy,
    /// Arguments of the program.
    pub args: Vec<String>,
    /// What to run, exactly for system `command`.
    pub command: Option<CommandBackend>,
    /// How its shards are cut, exactly for system `sp1`.
    pub shards: Option<Shards>,
}

/// What all SP1 provers of a cluster must have in common: with other values they never share a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    /// Elements of a shard's traces.
    pub element_threshold: u64,
    /// What an execution of a program may take.
    pub executor_memory: Bytes,
}

/// How containers get their GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuRequest {
    /// An extended resource of a device plugin.
    Resource(String),
    /// A ResourceClaimTemplate of dynamic resource allocation.
    ClaimTemplate(String),
}

/// What a worker proves on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// Processor cores.
    Cpu {
        /// Provers per worker.
        count: usize,
    },
    /// GPUs.
    Gpu {
        /// GPUs per worker.
        count: usize,
        /// How each is asked for.
        request: GpuRequest,
        /// Product as NVML names it.
        product: Option<String>,
        /// MIG profile.
        mig_profile: Option<String>,
        /// Least device memory.
        min_memory: Option<Bytes>,
    },
}

impl Devices {
    /// As the agent and slots name it.
    #[must_use]
    pub fn class(&self) -> &'static str {
        match self {
            Devices::Cpu { .. } => "cpu",
            Devices::Gpu { .. } => "gpu",
        }
    }

    /// Devices per worker.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Devices::Cpu { count } | Devices::Gpu { count, .. } => *count,
        }
    }

    /// Whether they are GPUs.
    #[must_use]
    pub fn are_gpus(&self) -> bool {
        matches!(self, Devices::Gpu { .. })
    }
}

/// How many workers a group has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    /// Always so many.
    Fixed(i32),
    /// As the work wants it.
    Scaled {
        /// Fewest.
        min: i32,
        /// Most.
        max: i32,
    },
}

/// Memory of a worker and what lies in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Of all provers of the worker together.
    pub total: Bytes,
    /// Of it the tmpfs in which artifacts pass.
    pub exchange: Bytes,
    /// Of it the shared memory of each GPU's prover; 0 where it is the container's own.
    pub shared_per_device: Bytes,
    /// Most that planners may have as shared memory; 0 where it is the container's own. What lies there is booked by the
    /// task that executes a program, so it is not taken away from the provers.
    pub shared_by_planners: Bytes,
}

/// The writable volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Its size.
    pub size: Bytes,
    /// Class of a volume per pod; the node's own disk where absent.
    pub storage_class: Option<String>,
}

/// A worker group.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// What proves.
    pub prover: Prover,
    /// What it proves on.
    pub devices: Devices,
    /// How many workers there shall be.
    pub replicas: Replicas,
    /// Memory of a worker.
    pub memory: Memory,
    /// Cores that the provers of a worker ask for together.
    pub cpu: Option<MilliCores>,
    /// Space on the node's disk for the provers of a worker together.
    pub ephemeral_storage: Option<Bytes>,
    /// The writable volume.
    pub cache: Cache,
    /// Seconds that a leaving worker has to finish.
    pub drain_seconds: u32,
    /// Attempts that a device takes at once, where the specification says.
    pub tasks_per_device: Option<i32>,
    /// How its machines are bought.
    pub capacity: CapacityType,
    /// Whose labels and taints are known.
    pub provider: Option<Provider>,
    /// Whether images are fetched before a worker is needed.
    pub pre_pull: bool,
    /// Overrides of its pods.
    pub pod: PodOverrides,
}

/// Which namespaces are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedNamespaces {
    /// That of the ProverCluster.
    Same,
    /// All.
    All,
    /// Those with all these labels.
    Selector(std::collections::BTreeMap<String, String>),
}
