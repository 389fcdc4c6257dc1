//! `ProofJob`: what to prove, and what became of it.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules;
use crate::source::{Assumption, Input, Program, is_false};

/// A program, its input and the kind of proof that is wanted. The proof appears in the artifact store, verified.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "proving.rs",
    version = "v1alpha1",
    kind = "ProofJob",
    namespaced,
    status = "ProofJobStatus",
    derive = "Default",
    derive = "PartialEq",
    shortname = "pj",
    category = "all",
    category = "proving",
    doc = "A program, its input and the kind of proof that is wanted. The proof appears in the artifact store, verified.",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Progress", type_ = "string", json_path = ".status.progress.summary"),
    printcolumn(name = "System", type_ = "string", json_path = ".spec.proof.system"),
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.proof.kind"),
    printcolumn(
        name = "Hz",
        type_ = "integer",
        json_path = ".status.effectiveHz",
        description = "Cycles per second of the whole job"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Cycles",
        type_ = "integer",
        json_path = ".status.execution.totalCycles",
        priority = 1
    ),
    printcolumn(
        name = "PGU/s",
        type_ = "integer",
        json_path = ".status.pguPerSecond",
        description = "SP1's prover gas units per second of the whole job",
        priority = 1
    ),
    printcolumn(
        name = "Cluster",
        type_ = "string",
        json_path = ".spec.clusterRef.name",
        priority = 1
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.reason",
        description = "Why it waits or how it ended",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::SEGMENT_PO2_FOR_SEGMENTS)]
#[x_kube(validation = rules::MAX_CYCLES_NOT_FOR_COMMAND)]
#[x_kube(validation = rules::ASSUMPTIONS_ONLY_FOR_RISC0)]
#[x_kube(validation = rules::STDIN_ONLY_FOR_SP1)]
#[x_kube(validation = rules::GAS_ONLY_FOR_SP1)]
#[x_kube(validation = rules::CANCEL_IS_FINAL)]
#[x_kube(validation = rules::PROGRAM_IS_IMMUTABLE)]
#[x_kube(validation = rules::PROOF_IS_IMMUTABLE)]
#[x_kube(validation = rules::CLUSTER_REF_IS_IMMUTABLE)]
#[x_kube(validation = rules::INPUT_IS_IMMUTABLE)]
#[x_kube(validation = rules::ASSUMPTIONS_ARE_IMMUTABLE)]
#[x_kube(validation = rules::MAX_CYCLES_IS_IMMUTABLE)]
#[x_kube(validation = rules::SEGMENT_PO2_IS_IMMUTABLE)]
#[x_kube(validation = rules::REPORT_GAS_IS_IMMUTABLE)]
#[x_kube(validation = rules::RETRY_LIMIT_IS_IMMUTABLE)]
#[x_kube(validation = rules::MANAGED_BY_IS_IMMUTABLE)]
pub struct ProofJobSpec {
    /// The ProverCluster that proves it. Local mode ignores it. Immutable.
    #[serde(default)]
    pub cluster_ref: ClusterReference,
    /// The program to prove. Immutable.
    pub program: Program,
    /// What the program reads. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Input>,
    /// Proofs that the program assumes (RISC Zero); they are resolved into the result. Immutable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub assumptions: Vec<Assumption>,
    /// Which proof. Immutable.
    pub proof: ProofSpec,
    /// Higher goes first among the jobs of this namespace.
    #[serde(default)]
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    pub priority: i32,
    /// When the proof must be there, such as `2026-12-24T18:00:00Z`. Passing it fails the job, suspended or not.
    /// Years 2000 to 2999.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 35), regex(pattern = TIME_PATTERN))]
    pub deadline: Option<Time>,
    /// Longest time in seconds that the job may be active; suspended time does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 31_536_000))]
    pub active_deadline_seconds: Option<i64>,
    /// Cycles beyond which the execution is stopped and the job fails. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_000_i64))]
    pub max_cycles: Option<i64>,
    /// Size of a segment, as a power of two of cycles. Chosen from the smallest worker where absent. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 13, max = 24))]
    pub segment_po2: Option<i32>,
    /// Reports the prover gas units (PGU) of an SP1 proof too. It costs another execution of the program, in the control
    /// lane beside the proof; `ExecuteOnly` always has them. Immutable.
    #[serde(default, skip_serializing_if = "is_false")]
    pub report_gas: bool,
    /// Workers that may run this job's device tasks at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 20_000))]
    pub max_workers: Option<i32>,
    /// Failures of the job's own attempts that are repaired by trying again, for the whole job; losses of
    /// workers are not counted. 3 where neither the job nor its ProverCluster says otherwise. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000))]
    pub retry_limit: Option<i32>,
    /// Frees the devices at once and keeps what is finished; `false` goes on from there.
    #[serde(default, skip_serializing_if = "is_false")]
    pub suspend: bool,
    /// Stops the job for good. It can't be taken back.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cancel: bool,
    /// Seconds after its end until the object is deleted; never where neither the job nor its ProverCluster says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 315_360_000))]
    pub ttl_seconds_after_finished: Option<i64>,
    /// Controller that looks after this object, as `domain/path`. Set to another than
    /// `proving.rs/prover-operator`, it is left entirely alone. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 3, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9._/-]+$")
    )]
    pub managed_by: Option<String>,
}

/// RFC 3339 from 2000 to 2999. Kubernetes' own format `date-time` takes offsets that are none and the last day of 9999,
/// which clients can't read afterwards: one such object would break the watch over all of them.
const TIME_PATTERN: &str = r"^2[0-9]{3}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$";

/// Value of `managedBy` that means this operator, as does no value.
pub const MANAGED_BY_US: &str = "proving.rs/prover-operator";

impl ProofJob {
    /// Whether this operator looks after the object. Nothing is ever written to one that another looks after.
    pub fn is_managed_by_us(&self) -> bool {
        self.spec
            .managed_by
            .as_deref()
            .is_none_or(|manager| manager == MANAGED_BY_US)
    }
}

/// A ProverCluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClusterReference {
    /// Its name.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Its namespace; that of the job where absent. The ProverCluster must allow the job's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub namespace: Option<String>,
}

impl Default for ClusterReference {
    fn default() -> Self {
        ClusterReference {
            name: "default".to_owned(),
            namespace: None,
        }
    }
}

/// Which proof is wanted.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = rules::KIND_FITS_SYSTEM)]
#[x_kube(validation = rules::BACKEND_EXACTLY_FOR_COMMAND)]
pub struct ProofSpec {
    /// The proof system: `risc0` (RISC Zero), `sp1` (Succinct's SP1), `command` (a prover of one's own that
    /// `backend` names), or `emulated`, which proves nothing and only takes the time that its input says.
    pub system: ProofSystem,
    /// The kind of proof that it shall make. risc0: `Composite` (a receipt per segment), `Succinct` (one receipt of
    /// constant size), `Groth16` (for contracts). sp1: `Core` (a proof per shard), `Compressed` (one proof of
    /// constant size), `Groth16` and `Plonk` (for contracts). Both: `ExecuteOnly` (cycles and public values, no
    /// proof). command: `Proof`. emulated: `Emulated`.
    pub kind: ProofKind,
    /// Name of the one of the ProverCluster's `backends` that proves it. For system `command`, and only for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 40),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub backend: Option<String>,
}

impl ProofSpec {
    /// The word under which backends offer to make this proof: the proof system, or for system `command`
    /// `command:<backend>`, so that nobody's own prover is ever taken for another.
    pub fn offered_as(&self) -> Cow<'static, str> {
        match &self.backend {
            Some(backend) if self.system == ProofSystem::Command => command_offer(backend).into(),
            _ => self.system.as_str().into(),
        }
    }
}

/// The word under which the command backend of this name offers its proofs.
pub fn command_offer(backend: &str) -> String {
    format!("{}:{backend}", ProofSystem::Command)
}

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$variant_meta])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &[$name] = &[$($name::$variant),*];

            /// As manifests write it.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.pad(self.as_str())
            }
        }
    };
}

words! {
    /// A proof system.
    #[derive(Default)]
    ProofSystem {
        /// RISC Zero.
        #[default]
        Risc0 = "risc0",
        /// SP1 of Succinct.
        Sp1 = "sp1",
        /// A prover of one's own: programs that prove and verify, named by the ProverCluster.
        Command = "command",
        /// No prover: durations from a model, for tests and scale. Its jobs never claim a proof.
        Emulated = "emulated",
    }
}

words! {
    /// A kind of proof.
    #[derive(Default)]
    ProofKind {
        /// RISC Zero: one receipt per segment.
        Composite = "Composite",
        /// RISC Zero: one receipt of constant size.
        #[default]
        Succinct = "Succinct",
        /// Both: a Groth16 proof over BN254 that a contract can verify.
        Groth16 = "Groth16",
        /// SP1: one proof per shard.
        Core = "Core",
        /// SP1: one proof of constant size.
        Compressed = "Compressed",
        /// SP1: a PLONK proof over BN254 that a contract can verify.
        Plonk = "Plonk",
        /// Both: execute and report cycles and public values, prove nothing.
        ExecuteOnly = "ExecuteOnly",
        /// Command: whatever the prover of the ProverCluster's backend makes.
        Proof = "Proof",
        /// Emulated: nothing is proved.
        Emulated = "Emulated",
    }
}

words! {
    /// Where a job stands. Scripts should rather wait for the conditions.
    #[derive(Default)]
    Phase {
        /// Seen, not yet accepted.
        #[default]
        Pending = "Pending",
        /// Accepted, waits for its turn; `reason` says for what.
        Queued = "Queued",
        /// Its planner was given to a worker.
        Running = "Running",
        /// Nothing of it runs, finished tasks are kept.
        Suspended = "Suspended",
        /// The proof is in the store and verified.
        Succeeded = "Succeeded",
        /// It ended without a proof; `failure` says why.
        Failed = "Failed",
        /// The user stopped it.
        Cancelled = "Cancelled",
    }
}

impl Phase {
    /// Nothing follows.
    pub fn is_terminal(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed | Phase::Cancelled)
    }
}

/// What became of a job. Written by the coordinator alone (and `Accepted=False` by the operator while no
/// ProverCluster takes it).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProofJobStatus {
    /// `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Where it stands. Scripts should rather wait for the condition `Finished`, `Succeeded` or `Failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Why it waits or how it ended: one of the documented reasons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub reason: Option<String>,
    /// The same in a sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// `Accepted`, `Running`, `Suspended`, `Finished`, and then `Succeeded`, `Failed` or `Cancelled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::conditions::conditions_schema")]
    pub conditions: Vec<Condition>,
    /// How far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// How its attempts ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<AttemptCounts>,
    /// When its cluster accepted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_time: Option<Time>,
    /// When its first task was given to a worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Time between start and end without suspended time, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub active_milliseconds: Option<i64>,
    /// What executing the program told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<Execution>,
    /// Total cycles divided by the elapsed seconds from start to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub effective_hz: Option<i64>,
    /// Prover gas units (PGU) divided by the elapsed seconds from start to end, where the gas is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub pgu_per_second: Option<i64>,
    /// What it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<JobUsage>,
    /// The proof. Only set once it has been verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<ProofResult>,
    /// What the program made public. For `ExecuteOnly` there is nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_values: Option<StoredArtifact>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<JobFailure>,
    /// True where durations came from a model and nothing was proved.
    #[serde(default, skip_serializing_if = "is_false")]
    pub emulated: bool,
}

/// How far a job is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// For the column of `kubectl get`: finished and known tasks of all stages, such as `412/1031`.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub summary: String,
    /// Stages in the order in which they are shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub stages: Vec<StageProgress>,
}

/// How far a stage is, such as `Execute`, `Prove`, `Join`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StageProgress {
    /// As the backend names it.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Finished tasks.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub done: i64,
    /// Tasks known so far; it grows while the program still executes.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub total: i64,
    /// Tasks that run now.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub running: i64,
    /// When its first task started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When its last task ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Device time of its attempts in milliseconds.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub device_milliseconds: i64,
}

/// How attempts ended.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AttemptCounts {
    /// Given to a worker.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub started: i64,
    /// Accepted results.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub succeeded: i64,
    /// Failures of the attempts themselves: they count toward `retryLimit`.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub failed: i64,
    /// Lost with their worker (eviction, preemption, node or process gone): they do not count toward `retryLimit`.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub lost: i64,
    /// Times that the whole job was planned again with a smaller segment, since memory ran out.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub replans: i64,
}

/// What executing the program told.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Execution {
    /// Identity of the program: RISC Zero's image id, SP1's verifying key hash; hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub program_id: Option<String>,
    /// Segments (SP1: shards) known so far.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub segments: i64,
    /// Cycles of the program itself.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub user_cycles: i64,
    /// Cycles that are proved, padding and paging among them.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub total_cycles: i64,
    /// Segment size that was used, as a power of two of cycles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 64))]
    pub segment_po2: Option<i32>,
    /// With which the program ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -4_294_967_296_i64, max = 4_294_967_296_i64))]
    pub exit_code: Option<i64>,
    /// SP1's prover gas units (PGU), which measure the work of proving. For `ExecuteOnly`, and with `spec.reportGas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub gas: Option<i64>,
    /// SHA-256 of what the program made public, hexadecimal, where the execution tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 64, max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub public_values_sha256: Option<String>,
}

/// What a job used. Time and energy of a device are divided among the attempts that overlap on it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct JobUsage {
    /// Device time in milliseconds.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub device_milliseconds: i64,
    /// Energy of the devices in joules, where they can measure it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub energy_joules: Option<i64>,
    /// Device time at the worker groups' prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

/// An amount of money.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    /// Decimal number, such as `0.0421`.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[0-9]+(\.[0-9]+)?$"))]
    pub amount: String,
    /// Currency of the worker groups' prices, such as `USD`.
    #[schemars(length(min = 3, max = 3), regex(pattern = r"^[A-Z]{3}$"))]
    pub currency: String,
}

/// Bytes in the artifact store.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StoredArtifact {
    /// Where, such as `s3://bucket/prefix/jobs/<uid>/proof` or `file:///...`.
    #[schemars(length(min = 1, max = 4096))]
    pub uri: String,
    /// SHA-256 of the bytes, hexadecimal.
    #[schemars(length(min = 64, max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: String,
    /// Size in bytes.
    #[schemars(range(min = 0))]
    pub size_bytes: i64,
}

/// A proof that has been verified.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ProofResult {
    /// Where, such as `s3://bucket/prefix/jobs/<uid>/proof` or `file:///...`.
    #[schemars(length(min = 1, max = 4096))]
    pub uri: String,
    /// SHA-256 of the bytes, hexadecimal.
    #[schemars(length(min = 64, max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: String,
    /// Size in bytes.
    #[schemars(range(min = 0))]
    pub size_bytes: i64,
    /// Identity of the program that it was verified against, hexadecimal.
    #[schemars(length(max = 128))]
    pub program_id: String,
    /// Which verifier accepted it, such as `risc0-zkvm 3.1.0-rc.1`.
    #[schemars(length(max = 128))]
    pub verifier: String,
}

/// Why a job failed.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct JobFailure {
    /// One of the documented reasons, or one of the backend's, such as `GuestPanicked`.
    #[schemars(length(min = 1, max = 256))]
    pub reason: String,
    /// What was wrong, where, and what to do, in the prover's own words where it has any.
    #[schemars(length(max = 4096))]
    pub message: String,
    /// Whether program or input are at fault: trying again would fail again.
    #[serde(default, skip_serializing_if = "is_false")]
    pub invalid_input: bool,
    /// Stage that failed, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub stage: Option<String>,
}
