//! What a ProverCluster shall be.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PodOverrides, ProverClusterStatus, Resources};
use crate::proof_job::ProofSystem;
use crate::quantity::Quantity;
use crate::rules;
use crate::source::{KeyReference, SecretReference};

/// Machines that prove: where artifacts lie, which provers there are, which workers run them, and for whom.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "proving.rs",
    version = "v1alpha1",
    kind = "ProverCluster",
    namespaced,
    status = "ProverClusterStatus",
    derive = "Default",
    derive = "PartialEq",
    shortname = "pcl",
    category = "all",
    category = "proving",
    doc = "Machines that prove: where artifacts lie, which provers there are, which workers run them, and for whom.",
    validation = rules::CLUSTER_NAME_IS_SHORT,
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Desired",
        type_ = "integer",
        json_path = ".status.workers.desired",
        description = "Workers that there shall be"
    ),
    printcolumn(
        name = "Busy",
        type_ = "integer",
        json_path = ".status.workers.busy",
        description = "Workers with an attempt on a device"
    ),
    printcolumn(
        name = "Queue",
        type_ = "integer",
        json_path = ".status.queue.waitingJobs",
        description = "Jobs that wait for their turn"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::GROUPS_NAME_A_BACKEND)]
pub struct ProverClusterSpec {
    /// Where programs, segments and proofs lie.
    pub artifact_store: ArtifactStore,
    /// The process that schedules this cluster's tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<Coordinator>,
    /// Image of the agents of workers. Where absent, that of the operator which first made the workers: another
    /// operator changes no worker until the specification of its group changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub worker_image: Option<String>,
    /// Provers, each an image with its version.
    #[schemars(
        length(min = 1, max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub backends: Vec<Backend>,
    /// Workers, in groups of equal machines.
    #[schemars(
        length(min = 1, max = 32),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub worker_groups: Vec<WorkerGroup>,
    /// Namespaces whose ProofJobs are taken; only its own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_namespaces: Option<AllowedNamespaces>,
    /// Bounds, in all and per namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ClusterLimits>,
    /// What ProofJobs get that do not say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<JobDefaults>,
}

/// Where artifacts lie.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactStore {
    /// A bucket of S3 or of a compatible service that offers conditional writes.
    pub s3: S3Store,
}

/// A bucket.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::BUCKET_IS_IMMUTABLE)]
#[x_kube(validation = rules::PREFIX_IS_IMMUTABLE)]
pub struct S3Store {
    /// Name of the bucket. Immutable: running jobs have their artifacts there.
    #[schemars(length(min = 3, max = 63), regex(pattern = r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$"))]
    pub bucket: String,
    /// Put before every key, without a slash at either end. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 256),
        regex(pattern = r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$")
    )]
    pub prefix: Option<String>,
    /// Region, such as `eu-central-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub region: Option<String>,
    /// URL of an S3-compatible service, such as `https://minio.storage.svc:9000`. AWS where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 2048), regex(pattern = r"^https?://"))]
    pub endpoint: Option<String>,
    /// Secret with the keys `accessKeyId`, `secretAccessKey` and perhaps `sessionToken`. Where absent, the pods
    /// sign in with the identity of their ServiceAccounts (IRSA, web identity).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_ref: Option<SecretReference>,
    /// Key of a ConfigMap with the certificate of a private authority, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<KeyReference>,
}

/// The process that schedules this cluster's tasks.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Coordinator {
    /// Replicas. One leads, the others follow its log and take over within seconds. 2 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 5))]
    pub replicas: Option<i32>,
    /// Image. Where absent, that of the operator which first made the coordinator: another operator changes it only
    /// when the specification of the coordinator changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    /// Longest time in milliseconds that a completion waits to be committed with others; each commit is a paid
    /// request of the store. 50 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub commit_interval_milliseconds: Option<i32>,
    /// What its container asks for and is held to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Overrides of its pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodOverrides>,
}

/// A prover: an image with its version.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::COMMAND_EXACTLY_FOR_COMMAND)]
#[x_kube(validation = rules::ARGS_NOT_FOR_COMMAND)]
pub struct Backend {
    /// Name that worker groups use.
    #[schemars(
        length(min = 1, max = 40),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Proof system that it proves.
    pub system: ProofSystem,
    /// Image of the prover.
    #[schemars(length(min = 1, max = 1024))]
    pub image: String,
    /// `IfNotPresent` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<ImagePullPolicy>,
    /// Arguments added to the prover's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 1024)), extend("x-kubernetes-list-type" = "atomic"))]
    pub args: Vec<String>,
    /// What to run, for system `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandBackend>,
}

/// Programs of the image that prove and verify. Each word may contain `{program}`, `{input}`, `{proof}` and
/// `{publicValues}`, in whose place it gets the path of that file. There is no shell.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::COMMANDS_ARE_ABSOLUTE)]
#[x_kube(validation = rules::PROVE_NAMES_PROOF)]
#[x_kube(validation = rules::VERIFY_NAMES_PROGRAM_AND_PROOF)]
#[x_kube(validation = rules::VERIFY_NAMES_PUBLIC_VALUES)]
pub struct CommandBackend {
    /// Reads `{program}` and `{input}`, writes `{proof}` and perhaps `{publicValues}`, and exits with 0. Runs on a
    /// device of the worker.
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = 1024)),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub prove: Vec<String>,
    /// Reads `{program}`, `{proof}` and perhaps `{publicValues}`; exits with 0 only if it accepts the proof.
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = 1024)),
        extend("x-kubernetes-list-type" = "atomic")
    )]
    pub verify: Vec<String>,
    /// Seconds that `prove` may take. 3600 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub timeout_seconds: Option<i32>,
    /// Seconds that `verify` may take. 600 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub verify_timeout_seconds: Option<i32>,
    /// Memory that one proof takes at most, the sizes of its files not counted: how many run at once in a worker
    /// depends on it. All memory of a worker, and so one proof at a time, where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_memory: Option<Quantity>,
    /// Memory that one verification takes at most. 256Mi where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_host_memory: Option<Quantity>,
}

/// When a node fetches an image.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePullPolicy {
    /// At every start.
    Always,
    /// If the node has none of that name.
    IfNotPresent,
    /// It must be there.
    Never,
}

/// Workers of one kind of machine.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::REPLICAS_OR_SCALING)]
pub struct WorkerGroup {
    /// Name; part of the names of its Deployments.
    #[schemars(
        length(min = 1, max = 40),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Name of one of `backends`.
    #[schemars(length(min = 1, max = 40))]
    pub backend: String,
    /// What a worker proves on.
    pub device: Device,
    /// Attempts that a device takes at once; what the backend declares where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub tasks_per_device: Option<i32>,
    /// Fixed number of workers; 1 where neither this nor `scaling` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 20_000))]
    pub replicas: Option<i32>,
    /// A number of workers that follows the work that waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
    /// How its machines are bought: `OnDemand`, or `Spot` if they may be taken away at short notice.
    #[serde(default)]
    pub capacity_type: CapacityType,
    /// Price of one worker, for the order of groups and the cost of jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Price>,
    /// Presets for the node labels and taints of accelerators and spot machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    /// Seconds that a leaving worker has to finish. 600 where absent, 15 on spot machines, 100 on spot of EKS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86_400))]
    pub drain_seconds: Option<i32>,
    /// What the prover's container asks for and is held to, all devices of the worker together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Size of the tmpfs in which artifacts pass between agent and prover; it counts as memory of the prover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange_size: Option<Quantity>,
    /// A writable volume for what provers compute or fetch once: circuits, keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// Fetch the images on matching nodes before a worker is needed there.
    #[serde(default, skip_serializing_if = "crate::source::is_false")]
    pub pre_pull_images: bool,
    /// Overrides of its pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodOverrides>,
}

/// What a worker proves on: processor cores or GPUs.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::CPU_OR_GPU)]
pub struct Device {
    /// Processor cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuDevice>,
    /// GPUs or slices of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuDevice>,
}

/// Processor cores as devices.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CpuDevice {
    /// Provers per worker, which share its cores and memory. 1 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub count: Option<i32>,
}

/// GPUs as devices.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::CLAIM_INSTEAD_OF_RESOURCE)]
pub struct GpuDevice {
    /// GPUs per worker. 1 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16))]
    pub count: Option<i32>,
    /// Extended resource that the device plugin offers. `nvidia.com/gpu` where absent, or the one of `migProfile`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 3, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9._-]+$")
    )]
    pub resource_name: Option<String>,
    /// Product as NVML names it, such as `NVIDIA H100 80GB HBM3`. A worker on another product takes itself out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub product: Option<String>,
    /// MIG profile, such as `1g.10gb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 4, max = 32), regex(pattern = r"^[1-9]g\.[0-9]+gb(\.me|\+me)?$"))]
    pub mig_profile: Option<String>,
    /// Least device memory; a worker with less takes itself out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_memory: Option<Quantity>,
    /// ResourceClaimTemplate for dynamic resource allocation, in place of an extended resource. The claim must ask
    /// for `count` devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub resource_claim_template_name: Option<String>,
}

/// A number of workers that follows the work that waits.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::MIN_AT_MOST_MAX)]
#[x_kube(validation = rules::METRICS_SOURCE_ONLY_FOR_HPA)]
pub struct Scaling {
    /// Who decides: `Native` (the operator, to and from zero), `HPA` (a HorizontalPodAutoscaler that the operator
    /// makes), `KEDA` (a ScaledObject that the operator makes).
    #[serde(default)]
    pub mode: ScalingMode,
    /// Fewest workers. 0 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 20_000))]
    pub min_replicas: Option<i32>,
    /// Most workers.
    #[schemars(range(min = 1, max = 20_000))]
    pub max_replicas: i32,
    /// Seconds in which the workers shall work off what waits: fewer buy more workers. 300 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub target_seconds: Option<i32>,
    /// Seconds without need before workers leave. 300 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86_400))]
    pub cooldown_seconds: Option<i32>,
    /// Who serves the external metric that the HorizontalPodAutoscaler reads; for mode `HPA` only. `Operator` where
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_source: Option<MetricsSource>,
}

/// Who decides how many workers there are.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScalingMode {
    /// The operator: to and from zero, idle workers leave first.
    #[default]
    Native,
    /// A HorizontalPodAutoscaler that the operator makes; the operator does 0 to 1 and 1 to 0.
    #[serde(rename = "HPA")]
    Hpa,
    /// A KEDA ScaledObject that the operator makes; the coordinator is its scaler.
    #[serde(rename = "KEDA")]
    Keda,
}

/// Who serves external metrics.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsSource {
    /// The operator, which registers itself; never over somebody else's registration.
    Operator,
    /// Something that reads the coordinator's metrics, such as a Prometheus adapter.
    Existing,
}

/// How machines are bought.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CapacityType {
    /// They stay.
    #[default]
    OnDemand,
    /// They may be taken away at short notice.
    Spot,
}

/// Cloud or node provisioner whose labels and taints are known.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// Google Kubernetes Engine.
    Gke,
    /// Amazon Elastic Kubernetes Service.
    Eks,
    /// Azure Kubernetes Service.
    Aks,
    /// Karpenter.
    Karpenter,
}

/// A price.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Price {
    /// For one worker and hour, as a decimal number in quotes, such as `"2.49"`.
    #[schemars(length(min = 1, max = 16), regex(pattern = r"^[0-9]{1,9}(\.[0-9]{1,6})?$"))]
    pub per_hour: String,
    /// Currency, such as `USD`. All groups must use the same for costs to be added up.
    #[serde(default = "us_dollar")]
    #[schemars(length(min = 3, max = 3), regex(pattern = r"^[A-Z]{3}$"))]
    pub currency: String,
}

fn us_dollar() -> String {
    "USD".to_owned()
}

/// A writable volume for what provers compute or fetch once.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Cache {
    /// Its size.
    pub size: Quantity,
    /// Class of a volume per pod; the node's own disk where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

/// Namespaces whose ProofJobs are taken.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::SELECTOR_WITH_FROM_SELECTOR)]
pub struct AllowedNamespaces {
    /// Which: `Same` (that of the ProverCluster), `All`, or `Selector` (those with the labels of `selector`).
    #[serde(default)]
    pub from: NamespacesFrom,
    /// Labels that a namespace must carry, with `from: Selector`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<NamespaceSelector>,
}

/// Which namespaces.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NamespacesFrom {
    /// That of the ProverCluster.
    #[default]
    Same,
    /// All.
    All,
    /// Those that carry the labels of `selector`.
    Selector,
}

/// Labels that a namespace must carry.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceSelector {
    /// All of them.
    #[schemars(schema_with = "super::pod::labels_schema")]
    pub match_labels: BTreeMap<String, String>,
}

/// Bounds, in all and per namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClusterLimits {
    /// Jobs that run at once; the others wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_running_jobs: Option<i32>,
    /// Unfinished jobs; further ones are not accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_unfinished_jobs: Option<i32>,
    /// Devices of all groups together that scaling may reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 320_000))]
    pub max_devices: Option<i32>,
    /// Largest program or input. 4Gi where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_source_size: Option<Quantity>,
    /// Hosts that `http` sources may name although their addresses are private, or that redirects may lead to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?(:[0-9]{1,5})?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub allowed_http_hosts: Vec<String>,
    /// Bounds and shares of single namespaces. `*` stands for every namespace that is not named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 256),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["namespace"])
    )]
    pub namespaces: Vec<NamespaceLimits>,
}

/// Bounds and share of a namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceLimits {
    /// Its name, or `*`.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$")
    )]
    pub namespace: String,
    /// Its share of device time relative to the others, while they compete. 1 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub weight: Option<i32>,
    /// Highest priority that its jobs may have; a higher one is not accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    pub max_priority: Option<i32>,
    /// Devices that its jobs may use at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 320_000))]
    pub max_devices: Option<i32>,
    /// Jobs of it that run at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub max_running_jobs: Option<i32>,
    /// Unfinished jobs of it; further ones are not accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub max_unfinished_jobs: Option<i32>,
}

/// What ProofJobs get that do not say otherwise.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct JobDefaults {
    /// `retryLimit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000))]
    pub retry_limit: Option<i32>,
    /// `activeDeadlineSeconds`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub active_deadline_seconds: Option<i64>,
    /// `maxCycles`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_000_i64))]
    pub max_cycles: Option<i64>,
    /// `ttlSecondsAfterFinished`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 315_360_000))]
    pub ttl_seconds_after_finished: Option<i64>,
    /// Seconds after the end of a job that its proof stays in the store; for ever where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 315_360_000))]
    pub proof_retention_seconds: Option<i64>,
}
