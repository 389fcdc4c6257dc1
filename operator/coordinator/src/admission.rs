//! From a ProofJob to what the scheduling core takes: checks, sources, the spec of the job and of its root task.
//!
//! Owns everything that can be told about a job before a worker sees it. Does not own the choice of a backend.

use std::sync::Arc;

use prost::Message;
use prover_artifacts::{ArtifactStore, Prefix};
use prover_backend::protocol;
use prover_core::{
    ArtifactName, Binding, DeviceClass, JobPolicy, JobSpec, Lane, Milliseconds, Requirements, TaskSpec,
    Timestamp, WorkerSpec,
};
use prover_crds::{Destination, InputFormat, MANAGED_BY_US, ProofJob, ProofJobSpec, ProofKind};

use crate::catalogue::{Backend, Offer};
use crate::error::AdmissionError;
use crate::handle::SourceAccess;
use crate::program;
use crate::remembered::JobTaken;
use crate::sources::{self, Found, Reading, Source, SourceError};

/// Artifact name of the proof.
pub const PROOF: &str = "proof";
/// Artifact name of what the program made public.
pub const PUBLIC_VALUES: &str = "public-values";
/// Artifact name of the program.
pub const PROGRAM: &str = "program";
/// Artifact name of the input.
pub const INPUT: &str = "input";
/// Request id of the root task: no backend can choose it, since names begin with a letter or digit.
pub(crate) const ROOT_REQUEST: &str = "@root";
/// Failures that a job survives where its manifest does not say.
const DEFAULT_RETRY_LIMIT: u32 = 3;
/// Longest uid, which is a part of artifact keys.
const UID_BYTES: usize = 128;

/// What admission is bounded by.
#[derive(Clone, Debug)]
pub(crate) struct AdmissionLimits {
    pub(crate) program_bytes: u64,
    pub(crate) input_bytes: u64,
    /// Of all keys, without slashes at its ends.
    pub(crate) artifact_prefix: String,
}

/// A checked job whose sources are in the store.
#[derive(Clone, Debug)]
pub struct JobRequest {
    pub(crate) uid: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) tenant: Arc<str>,
    /// The word under which backends offer the proof.
    pub(crate) system: Arc<str>,
    pub(crate) kind: Arc<str>,
    pub(crate) execute_only: bool,
    pub(crate) policy: JobPolicy,
    pub(crate) cancelled: bool,
    pub(crate) retry_limit: u32,
    pub(crate) prefix: Prefix,
    pub(crate) sources: Vec<(ArtifactName, Binding)>,
    pub(crate) input_format: protocol::InputFormat,
    pub(crate) assumptions: Vec<String>,
    pub(crate) max_cycles: u64,
    pub(crate) segment_po2: u32,
    pub(crate) program_id: String,
    /// The report shall have the gas.
    pub(crate) report_gas: bool,
}

/// What the workers of a backend have, as far as a planner must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BackendCapacity {
    /// Smallest share of a worker's host memory that one of its devices can have, in bytes.
    pub(crate) smallest_memory_bytes: u64,
    /// Smallest device memory, in bytes; 0 for processor cores.
    pub(crate) smallest_vram_bytes: u64,
    pub(crate) device_class: DeviceClass,
    /// Slots of all devices.
    pub(crate) slots: u32,
}

impl BackendCapacity {
    /// Of these workers, counting only what has devices of the class. A worker's memory is shared by its devices.
    pub(crate) fn of<'a>(workers: impl Iterator<Item = &'a WorkerSpec>, device_class: DeviceClass) -> Self {
        let mut smallest: Option<(u64, u64)> = None;
        let mut slots: u32 = 0;
        for worker in workers {
            let share = worker.host_memory_bytes / worker.devices.len().max(1) as u64;
            for device in worker
                .devices
                .iter()
                .filter(|device| device.class == device_class)
            {
                let (memory, vram) = smallest.unwrap_or((u64::MAX, u64::MAX));
                smallest = Some((memory.min(share), vram.min(device.vram_bytes)));
                slots = slots.saturating_add(u32::from(device.slots));
            }
        }
        let (smallest_memory_bytes, smallest_vram_bytes) = smallest.unwrap_or_default();
        BackendCapacity {
            smallest_memory_bytes,
            smallest_vram_bytes,
            device_class,
            slots,
        }
    }
}

/// Tasks in flight per slot, so that the next task is fetched while one runs.
const IN_FLIGHT_PER_SLOT: u32 = 4;
/// Fewest tasks that a planner may have in flight: a join tree needs some to be wide.
const LEAST_IN_FLIGHT: u32 = 32;
/// Most tasks that a planner may have in flight.
const MOST_IN_FLIGHT: u32 = 4096;

/// Checks a job and puts its sources into the store.
pub(crate) async fn prepare(
    job: ProofJob,
    access: &SourceAccess,
    store: &dyn ArtifactStore,
    limits: &AdmissionLimits,
) -> Result<JobRequest, AdmissionError> {
    let name = job.metadata.name.clone().unwrap_or_else(|| "unnamed".to_owned());
    let tenant = job
        .metadata
        .namespace
        .clone()
        .unwrap_or_else(|| "default".to_owned());
    let uid = job
        .metadata
        .uid
        .clone()
        .unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let spec = &job.spec;
    let invalid = |violations| AdmissionError::InvalidSpec {
        job: name.clone(),
        violations,
    };
    let violations = violations(&job, &uid, access);
    if !violations.is_empty() {
        return Err(invalid(violations));
    }
    if let Some(other) = spec
        .managed_by
        .as_deref()
        .filter(|manager| *manager != MANAGED_BY_US)
    {
        return Err(AdmissionError::NotSupported {
            field: "spec.managedBy".to_owned(),
            reason: format!("the job belongs to {other}; leave the field out"),
        });
    }
    let prefix = job_prefix(&limits.artifact_prefix, &uid)
        .map_err(|error| invalid(vec![format!("metadata.uid: {error}")]))?;
    let found = find_sources(spec, &tenant, access, store, limits).await?;
    if let Some(program) = found.first() {
        program::check(
            spec.proof.system.as_str(),
            &program.origin,
            &program.head,
            program.size_bytes,
        )?;
    }
    let mut bound = Vec::with_capacity(found.len());
    for source in &found {
        bound.push(sources::upload(store, &prefix, &uid, source).await?);
    }
    Ok(request(spec, uid, name, tenant, prefix, bound))
}

fn job_prefix(artifact_prefix: &str, uid: &str) -> Result<Prefix, prover_artifacts::StoreError> {
    let job = Prefix::job(uid)?;
    match artifact_prefix {
        "" => Ok(job),
        prefix => Prefix::new(format!("{prefix}/{}", job.as_str())),
    }
}

/// Each broken rule of the resource type as a sentence.
fn violations(job: &ProofJob, uid: &str, access: &SourceAccess) -> Vec<String> {
    let destination = match access {
        SourceAccess::Local { .. } => Destination::LocalMode,
        SourceAccess::Cluster(_) => Destination::Cluster,
    };
    let broken = job.validate(destination).err();
    let mut violations: Vec<String> = broken
        .iter()
        .flat_map(|broken| broken.as_slice())
        .map(ToString::to_string)
        .collect();
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    if uid.is_empty() || uid.len() > UID_BYTES || !uid.chars().all(plain) {
        violations.push("metadata.uid: must be 1 to 128 letters, digits, '-', '_' or '.'".to_owned());
    }
    violations
}

async fn find_sources(
    spec: &ProofJobSpec,
    tenant: &str,
    access: &SourceAccess,
    store: &dyn ArtifactStore,
    limits: &AdmissionLimits,
) -> Result<Vec<Found>, AdmissionError> {
    let one = |field: &str| SourceError::NotOneSource {
        field: field.to_owned(),
    };
    let mut sources = vec![Source {
        field: "spec.program".to_owned(),
        name: PROGRAM.to_owned(),
        place: Some(spec.program.place().ok_or_else(|| one("spec.program"))?),
        sha256: spec.program.sha256.as_deref(),
        limit_bytes: limits.program_bytes,
    }];
    sources.push(input_source(spec, limits)?);
    for (index, assumption) in spec.assumptions.iter().enumerate() {
        let field = format!("spec.assumptions[{index}]");
        sources.push(Source {
            place: Some(assumption.place().ok_or_else(|| one(&field))?),
            field,
            name: assumption_name(index),
            sha256: assumption.sha256.as_deref(),
            limit_bytes: limits.input_bytes,
        });
    }
    let reading = Reading {
        access,
        store,
        tenant,
    };
    let mut found = Vec::with_capacity(sources.len());
    for source in &sources {
        found.push(reading.find(source).await?);
    }
    Ok(found)
}

/// An absent input is one of no bytes, so that a planner always finds it.
fn input_source<'a>(spec: &'a ProofJobSpec, limits: &AdmissionLimits) -> Result<Source<'a>, SourceError> {
    let input = spec.input.as_ref();
    let place = input.and_then(prover_crds::Input::place);
    let named = input.is_some_and(|input| {
        [
            input.s3.is_some(),
            input.http.is_some(),
            input.config_map.is_some(),
            input.secret.is_some(),
            input.inline.is_some(),
            input.text.is_some(),
            input.file.is_some(),
        ]
        .contains(&true)
    });
    if named && place.is_none() {
        return Err(SourceError::NotOneSource {
            field: "spec.input".to_owned(),
        });
    }
    Ok(Source {
        field: "spec.input".to_owned(),
        name: INPUT.to_owned(),
        place,
        sha256: input.and_then(|input| input.sha256.as_deref()),
        limit_bytes: limits.input_bytes,
    })
}

fn assumption_name(index: usize) -> String {
    format!("assumption-{index}")
}

fn request(
    spec: &ProofJobSpec,
    uid: String,
    name: String,
    tenant: String,
    prefix: Prefix,
    sources: Vec<(ArtifactName, Binding)>,
) -> JobRequest {
    let input_format = spec.input.as_ref().map_or(InputFormat::Raw, |input| input.format);
    JobRequest {
        uid: uid.into(),
        name: name.into(),
        tenant: tenant.into(),
        system: spec.proof.offered_as().into(),
        kind: spec.proof.kind.as_str().into(),
        execute_only: spec.proof.kind == ProofKind::ExecuteOnly,
        policy: policy(spec),
        cancelled: spec.cancel,
        retry_limit: spec
            .retry_limit
            .map_or(DEFAULT_RETRY_LIMIT, |limit| u32::try_from(limit).unwrap_or(0)),
        prefix,
        sources,
        input_format: match input_format {
            InputFormat::Raw => protocol::InputFormat::Raw,
            InputFormat::Frames => protocol::InputFormat::Frames,
            InputFormat::Stdin => protocol::InputFormat::Stdin,
        },
        assumptions: (0..spec.assumptions.len()).map(assumption_name).collect(),
        max_cycles: spec
            .max_cycles
            .map_or(0, |cycles| u64::try_from(cycles).unwrap_or(0)),
        segment_po2: spec.segment_po2.map_or(0, |po2| u32::try_from(po2).unwrap_or(0)),
        program_id: spec.program.program_id.clone().unwrap_or_default(),
        report_gas: spec.report_gas || spec.proof.kind == ProofKind::ExecuteOnly,
    }
}

/// The part of a spec that may change while the job runs, in the core's words.
#[must_use]
pub fn policy(spec: &ProofJobSpec) -> JobPolicy {
    let seconds = |seconds: i64| Milliseconds(u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000));
    JobPolicy {
        priority: spec.priority,
        deadline: spec
            .deadline
            .as_ref()
            .map(|time| Timestamp(u64::try_from(time.0.as_millisecond()).unwrap_or(0))),
        active_deadline: spec.active_deadline_seconds.map(seconds),
        max_workers: spec
            .max_workers
            .map(|workers| u32::try_from(workers).unwrap_or(1)),
        suspended: spec.suspend,
    }
}

impl JobRequest {
    /// A job whose sources are in the store already, without any check of it.
    ///
    /// # Errors
    /// Prefix and uid make no key.
    pub fn unchecked(
        job: &ProofJob,
        artifact_prefix: &str,
        sources: Vec<(ArtifactName, Binding)>,
    ) -> Result<JobRequest, prover_artifacts::StoreError> {
        let uid = job.metadata.uid.clone().unwrap_or_default();
        let name = job.metadata.name.clone().unwrap_or_default();
        let tenant = job.metadata.namespace.clone().unwrap_or_default();
        let prefix = job_prefix(artifact_prefix, &uid)?;
        Ok(request(&job.spec, uid, name, tenant, prefix, sources))
    }

    /// The job as a coordinator before took it. None where that can't be read.
    pub(crate) fn remembered(uid: &str, taken: &JobTaken, policy: JobPolicy) -> Option<JobRequest> {
        let sources = taken.sources.iter().map(|source| {
            let binding = Binding {
                key: source.key.as_str().into(),
                sha256: source.sha256_bytes().ok()?,
                size_bytes: source.size_bytes,
            };
            Some((source.name.as_str().into(), binding))
        });
        Some(JobRequest {
            uid: uid.into(),
            name: taken.name.as_str().into(),
            tenant: taken.tenant.as_str().into(),
            system: taken.system.as_str().into(),
            kind: taken.kind.as_str().into(),
            execute_only: taken.execute_only,
            policy,
            cancelled: false,
            retry_limit: taken.retry_limit,
            prefix: Prefix::new(taken.prefix.as_str()).ok()?,
            sources: sources.collect::<Option<_>>()?,
            input_format: protocol::InputFormat::try_from(taken.input_format).ok()?,
            assumptions: taken.assumptions.clone(),
            max_cycles: taken.max_cycles,
            segment_po2: taken.segment_po2,
            program_id: taken.program_id.clone(),
            report_gas: taken.report_gas,
        })
    }

    /// The job in the core's words, pinned to a backend.
    pub(crate) fn job_spec(&self, backend: &Backend, offer: &Offer) -> JobSpec {
        let root_requirements = offer
            .parent_chain
            .first()
            .cloned()
            .unwrap_or_else(|| Requirements {
                lane: Lane::Control,
                device_class: DeviceClass::Cpu,
                host_memory_bytes: 0,
                vram_bytes: 0,
                backend: backend.version.clone(),
            });
        JobSpec {
            uid: self.uid.clone(),
            tenant: self.tenant.clone(),
            policy: JobPolicy {
                // One that is cancelled already gets nothing before it is ended.
                suspended: self.policy.suspended || self.cancelled,
                ..self.policy
            },
            retry_limit: self.retry_limit,
            root: TaskSpec {
                request_id: ROOT_REQUEST.into(),
                task_type: offer.root_task_type.clone(),
                requirements: root_requirements,
                depends_on: Vec::new(),
                inputs: self.sources.iter().map(|(name, _)| name.clone()).collect(),
                outputs: Vec::new(),
                parameters: Arc::from([]),
                cache_key: None,
                estimated_device_time: None,
                completes: Vec::new(),
                concludes_job: false,
                marker: false,
            },
            root_concludes: self.execute_only,
            parent_chain: offer.parent_chain.clone(),
            largest_leaf: offer.largest_leaf.clone(),
            sources: self.sources.clone(),
            retained: vec![PROOF.into(), PUBLIC_VALUES.into()],
        }
    }

    /// Everything that the planner must know, as it stands when it is dispatched.
    pub(crate) fn encoded_plan(&self, capacity: BackendCapacity, replans: u32) -> Vec<u8> {
        let in_flight = capacity
            .slots
            .saturating_mul(IN_FLIGHT_PER_SLOT)
            .clamp(LEAST_IN_FLIGHT, MOST_IN_FLIGHT);
        let device_class = match capacity.device_class {
            DeviceClass::Cpu => protocol::DeviceClass::Cpu,
            DeviceClass::Gpu => protocol::DeviceClass::Gpu,
        };
        let assumptions = self
            .assumptions
            .iter()
            .map(|proof| protocol::Assumption { proof: proof.clone() });
        protocol::JobPlan {
            system: self.system.to_string(),
            kind: self.kind.to_string(),
            program: PROGRAM.to_owned(),
            input: INPUT.to_owned(),
            input_format: self.input_format.into(),
            assumptions: assumptions.collect(),
            max_cycles: self.max_cycles,
            segment_po2: self.segment_po2,
            segment_po2_reduction: replans,
            smallest_worker_memory_bytes: capacity.smallest_memory_bytes,
            smallest_vram_bytes: capacity.smallest_vram_bytes,
            device_class: device_class.into(),
            proof_output: PROOF.to_owned(),
            public_values_output: PUBLIC_VALUES.to_owned(),
            max_in_flight: in_flight,
            execute_only: self.execute_only,
            expected_program_id: self.program_id.clone(),
            report_gas: self.report_gas,
        }
        .encode_to_vec()
    }
}

#[cfg(test)]
mod tests {
    use prover_core::{BackendVersion, DeviceSpec};

    use super::*;

    fn mk_worker(host_memory_bytes: u64, devices: &[(DeviceClass, u64, u16)]) -> WorkerSpec {
        WorkerSpec {
            name: "worker".into(),
            group: "group".into(),
            host_memory_bytes,
            devices: devices
                .iter()
                .map(|(class, vram_bytes, slots)| DeviceSpec {
                    class: *class,
                    vram_bytes: *vram_bytes,
                    slots: *slots,
                })
                .collect(),
            backend: BackendVersion {
                name: "risc0".into(),
                version: "1".into(),
            },
        }
    }

    #[test]
    fn a_planner_is_told_the_smallest_share_of_memory_that_a_device_has() {
        use DeviceClass::{Cpu, Gpu};
        let workers = [
            mk_worker(64, &[(Gpu, 24, 1), (Gpu, 16, 1)]),
            mk_worker(48, &[(Gpu, 80, 4)]),
            // It has no device of the class, so its memory says nothing.
            mk_worker(8, &[(Cpu, 0, 1)]),
        ];
        let told = BackendCapacity::of(workers.iter(), Gpu);
        assert_eq!(
            (told.smallest_memory_bytes, told.smallest_vram_bytes, told.slots),
            (32, 16, 6)
        );
        let told = BackendCapacity::of(workers.iter(), Cpu);
        assert_eq!(
            (told.smallest_memory_bytes, told.smallest_vram_bytes, told.slots),
            (8, 0, 1)
        );
    }

    #[test]
    fn without_workers_there_is_nothing_to_tell() {
        let told = BackendCapacity::of([].iter(), DeviceClass::Cpu);
        assert_eq!(
            (told.smallest_memory_bytes, told.smallest_vram_bytes, told.slots),
            (0, 0, 0)
        );
    }
}
