//! What a ProverCluster is. Written by the operator alone.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a ProverCluster is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProverClusterStatus {
    /// `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// `Ready`, `StoreReady`, `CoordinatorReady`, `WorkersReady`, `MetricsAPIAvailable`, `Draining`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::conditions::conditions_schema")]
    pub conditions: Vec<Condition>,
    /// Workers of all groups together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<WorkerCounts>,
    /// Each worker group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub groups: Vec<WorkerGroupStatus>,
    /// What waits and what runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueStatus>,
    /// The coordinator that leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coordinator: Option<CoordinatorStatus>,
}

/// How many workers there are.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct WorkerCounts {
    /// That there shall be.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub desired: i64,
    /// With a session to the coordinator.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub connected: i64,
    /// With an attempt on a device.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub busy: i64,
    /// That finish what they have and take nothing new.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub leaving: i64,
}

/// A worker group.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WorkerGroupStatus {
    /// Its name.
    #[schemars(length(min = 1, max = 40))]
    pub name: String,
    /// Its workers.
    #[serde(default)]
    pub workers: WorkerCounts,
    /// Devices that can take an attempt.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub usable_devices: i64,
    /// Devices that were taken out.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub failed_devices: i64,
    /// Deployment of the current revision, which autoscalers target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub deployment: Option<String>,
    /// Kinds of proof that its connected workers make, such as `sp1/Core`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 257)), extend("x-kubernetes-list-type" = "set"))]
    pub proofs: Vec<String>,
    /// Kinds of proof that they would make, but for what is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub withheld_proofs: Vec<WithheldProof>,
    /// Why it has fewer workers than wanted, in one documented word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub reason: Option<String>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}

/// A kind of proof that workers would make, but for what is missing.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct WithheldProof {
    /// The proof system, such as `sp1`.
    #[schemars(length(min = 1, max = 128))]
    pub system: String,
    /// The kind of proof, such as `Groth16`.
    #[schemars(length(min = 1, max = 128))]
    pub kind: String,
    /// In one word, such as `CircuitsMissing`.
    #[schemars(length(min = 1, max = 64))]
    pub reason: String,
    /// What is missing, and where.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// How many workers say so.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub workers: i64,
}

/// What waits and what runs.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct QueueStatus {
    /// Jobs that wait for their turn.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub waiting_jobs: i64,
    /// Jobs that run.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub running_jobs: i64,
    /// Work per class of device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["deviceClass"]))]
    pub work: Vec<WorkStatus>,
}

/// Work for a class of device, in tasks and in estimated device time.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct WorkStatus {
    /// `cpu` or `gpu`.
    #[schemars(length(min = 1, max = 63))]
    pub device_class: String,
    /// Tasks that wait.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub waiting_tasks: i64,
    /// Tasks that run.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub running_tasks: i64,
    /// Device seconds that the waiting tasks are expected to take.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub waiting_device_seconds: i64,
    /// Device seconds that the running tasks are expected to take still.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub running_device_seconds: i64,
}

/// The coordinator that leads.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CoordinatorStatus {
    /// Its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub leader: Option<String>,
    /// Counted up at every change of leader; a lower one never writes.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub epoch: i64,
    /// Replicas that could take over now, the leader among them.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub ready_replicas: i64,
}
