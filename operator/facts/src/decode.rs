//! From messages to facts.

use std::sync::Arc;

use prover_core::{
    ArtifactFacts, ArtifactName, AttemptId, BackendVersion, Binding, DeviceClass, Fact, FailureClass, JobId,
    JobPhase, JobPolicy, JobSpec, Lane, Milliseconds, Requirements, TaskCounts, TaskId, TaskSpec,
    TaskSuccess, TenantPolicy, Timestamp,
};

use crate::FactError;
use crate::protocol as proto;
use crate::protocol::fact::Kind;

fn needed<T>(part: Option<T>, field: &'static str) -> Result<T, FactError> {
    part.ok_or(FactError::MissingField { field })
}

pub(crate) fn fact(message: proto::Fact) -> Result<Fact, FactError> {
    Ok(match needed(message.kind, "kind")? {
        Kind::JobAdmitted(message) => Fact::JobAdmitted {
            job: JobId(message.job),
            root: TaskId(message.root),
            spec: Arc::new(job_spec(needed(message.spec, "spec")?)?),
            at: Timestamp(message.at),
        },
        Kind::JobPolicyChanged(message) => Fact::JobPolicyChanged {
            job: JobId(message.job),
            policy: job_policy(&needed(message.policy, "policy")?),
            at: Timestamp(message.at),
        },
        Kind::JobActive(message) => Fact::JobActive {
            job: JobId(message.job),
            at: Timestamp(message.at),
        },
        Kind::JobCounted(message) => Fact::JobCounted {
            job: JobId(message.job),
            failures: message.failures,
            infrastructure_failures: message.infrastructure_failures,
        },
        Kind::JobReplanned(message) => Fact::JobReplanned {
            job: JobId(message.job),
            at: Timestamp(message.at),
        },
        Kind::JobFinished(message) => Fact::JobFinished {
            job: JobId(message.job),
            at: Timestamp(message.at),
            phase: phase(message)?,
        },
        Kind::JobForgotten(job) => Fact::JobForgotten { job: JobId(job) },
        Kind::JobStands(message) => Fact::JobStands {
            job: JobId(message.job),
            epoch: message.epoch,
            root_epoch: message.root_epoch,
            replans: message.replans,
            started_at: message.started_at.map(Timestamp),
            active_since: message.active_since.map(Timestamp),
            active_before: Milliseconds(message.active_before_milliseconds),
        },
        kind => return fact_of_task(kind),
    })
}

fn fact_of_task(kind: Kind) -> Result<Fact, FactError> {
    Ok(match kind {
        Kind::TaskSubmitted(message) => Fact::TaskSubmitted {
            job: JobId(message.job),
            task: TaskId(message.task),
            parent: (message.parent != 0).then_some(TaskId(message.parent)),
            epoch: message.epoch,
            spec: Arc::new(task_spec(needed(message.spec, "spec")?)?),
            at: Timestamp(message.at),
        },
        Kind::ParentRestarted(message) => Fact::ParentRestarted {
            task: TaskId(message.task),
            at: Timestamp(message.at),
        },
        Kind::TaskCounted(message) => Fact::TaskCounted(Box::new(TaskCounts {
            task: TaskId(message.task),
            attempts: message.attempts,
            fence: message.fence,
            failures: message.failures,
            crashes: message.crashes,
            suspected: message.suspected,
            alone: message.alone,
            sent: message.sent,
            minimum_host_bytes: message.minimum_host_bytes,
            minimum_vram_bytes: message.minimum_vram_bytes,
            device_microseconds: message.device_microseconds,
            energy_millijoules: message.energy_millijoules,
            last_failure: message.last_failure.map(Arc::from),
        })),
        Kind::TaskSucceeded(message) => Fact::TaskSucceeded(Box::new(TaskSuccess {
            task: TaskId(message.task),
            attempt: (message.attempt != 0).then_some(AttemptId(message.attempt)),
            attempts: message.attempts,
            outputs: named_bindings(message.outputs)?,
            result: message.result.into(),
            device_microseconds: message.device_microseconds,
            energy_millijoules: message.energy_millijoules,
            started_at: message.started_at.map(Timestamp),
            from_cache: message.from_cache,
            at: Timestamp(message.at),
        })),
        Kind::TaskCached(task) => Fact::TaskCached { task: TaskId(task) },
        Kind::MarkerCompleted(message) => Fact::MarkerCompleted {
            task: TaskId(message.task),
            at: Timestamp(message.at),
        },
        Kind::TaskFailed(message) => Fact::TaskFailed {
            task: TaskId(message.task),
            message: message.message.into(),
            at: Timestamp(message.at),
        },
        Kind::TaskDropped(message) => Fact::TaskDropped {
            task: TaskId(message.task),
            at: Timestamp(message.at),
        },
        Kind::TaskLeftPlan(task) => Fact::TaskLeftPlan { task: TaskId(task) },
        kind => return fact_of_others(kind),
    })
}

fn fact_of_others(kind: Kind) -> Result<Fact, FactError> {
    Ok(match kind {
        Kind::ArtifactBound(message) => Fact::ArtifactBound {
            job: JobId(message.job),
            name: message.name.into(),
            binding: binding(needed(message.binding, "binding")?)?,
        },
        Kind::ArtifactDropped(message) => Fact::ArtifactDropped {
            job: JobId(message.job),
            name: message.name.into(),
        },
        Kind::ArtifactReleased(message) => Fact::ArtifactReleased {
            job: JobId(message.job),
            name: message.name.into(),
        },
        Kind::ArtifactStands(message) => Fact::ArtifactStands(Box::new(ArtifactFacts {
            job: JobId(message.job),
            name: message.name.into(),
            binding: message.binding.map(binding).transpose()?,
            shared: message.shared,
            gone: message.gone,
            consumed: message.consumed,
            references: names(message.references),
        })),
        Kind::ReferenceAdded(message) => Fact::ReferenceAdded {
            job: JobId(message.job),
            name: message.name.into(),
            reference: message.reference.into(),
        },
        Kind::ReferenceRemoved(message) => Fact::ReferenceRemoved {
            job: JobId(message.job),
            name: message.name.into(),
            reference: message.reference.into(),
        },
        Kind::ChannelMessageSent(message) => Fact::ChannelMessageSent {
            task: TaskId(message.task),
            sender: (message.sender != 0).then_some(TaskId(message.sender)),
            attempt: AttemptId(message.attempt),
            number: message.number,
            payload: message.payload.into(),
        },
        Kind::CacheEntryStands(message) => Fact::CacheEntryStands {
            job: JobId(message.job),
            key: message.key.into(),
            outputs: named_bindings(message.outputs)?,
            result: message.result.into(),
        },
        Kind::CacheEntryDropped(key) => Fact::CacheEntryDropped { key: key.into() },
        Kind::TenantPolicyChanged(message) => Fact::TenantPolicyChanged {
            tenant: message.tenant.into(),
            policy: TenantPolicy {
                weight: message.weight,
                max_devices: message.max_devices,
            },
        },
        Kind::WorkerJoined(name) => Fact::WorkerJoined { name: name.into() },
        Kind::WorkerGone(name) => Fact::WorkerGone { name: name.into() },
        _ => unreachable!("facts about jobs and tasks are translated before"),
    })
}

fn names(names: Vec<String>) -> Vec<Arc<str>> {
    names.into_iter().map(Arc::from).collect()
}

fn binding(message: proto::Binding) -> Result<Binding, FactError> {
    let sha256 = message.sha256.try_into();
    Ok(Binding {
        key: message.key.into(),
        sha256: sha256.map_err(|_| FactError::MissingField { field: "sha256" })?,
        size_bytes: message.size_bytes,
    })
}

fn named_bindings(messages: Vec<proto::NamedBinding>) -> Result<Vec<(ArtifactName, Binding)>, FactError> {
    messages
        .into_iter()
        .map(|message| Ok((message.name.into(), binding(needed(message.binding, "binding")?)?)))
        .collect()
}

fn requirements(message: proto::Requirements) -> Result<Requirements, FactError> {
    Ok(Requirements {
        lane: match message.lane {
            0 => Lane::Device,
            1 => Lane::Control,
            _ => return Err(FactError::WrittenByNewerVersion),
        },
        device_class: match message.device_class {
            0 => DeviceClass::Cpu,
            1 => DeviceClass::Gpu,
            _ => return Err(FactError::WrittenByNewerVersion),
        },
        host_memory_bytes: message.host_memory_bytes,
        vram_bytes: message.vram_bytes,
        backend: BackendVersion {
            name: message.backend.into(),
            version: message.backend_version.into(),
        },
    })
}

fn task_spec(message: proto::TaskSpec) -> Result<TaskSpec, FactError> {
    Ok(TaskSpec {
        request_id: message.request_id.into(),
        task_type: message.task_type.into(),
        requirements: requirements(needed(message.requirements, "requirements")?)?,
        depends_on: names(message.depends_on),
        inputs: names(message.inputs),
        outputs: names(message.outputs),
        parameters: message.parameters.into(),
        cache_key: message.cache_key.map(Arc::from),
        estimated_device_time: message.estimated_device_milliseconds.map(Milliseconds),
        completes: names(message.completes),
        concludes_job: message.concludes_job,
        marker: message.marker,
    })
}

fn job_policy(message: &proto::JobPolicy) -> JobPolicy {
    JobPolicy {
        priority: message.priority,
        deadline: message.deadline.map(Timestamp),
        active_deadline: message.active_deadline_milliseconds.map(Milliseconds),
        max_workers: message.max_workers,
        suspended: message.suspended,
    }
}

fn job_spec(message: proto::JobSpec) -> Result<JobSpec, FactError> {
    let chain = message.parent_chain.into_iter().map(requirements);
    Ok(JobSpec {
        uid: message.uid.into(),
        tenant: message.tenant.into(),
        policy: job_policy(&needed(message.policy, "policy")?),
        retry_limit: message.retry_limit,
        root: task_spec(needed(message.root, "root")?)?,
        root_concludes: message.root_concludes,
        parent_chain: chain.collect::<Result<_, _>>()?,
        largest_leaf: requirements(needed(message.largest_leaf, "largest_leaf")?)?,
        sources: named_bindings(message.sources)?,
        retained: names(message.retained),
    })
}

fn phase(message: proto::JobFinished) -> Result<JobPhase, FactError> {
    use proto::job_finished::End;
    Ok(match End::try_from(message.end) {
        Ok(End::Succeeded) => JobPhase::Succeeded,
        Ok(End::Cancelled) => JobPhase::Cancelled,
        Ok(End::Failed) => JobPhase::Failed {
            class: failure_class(message.class)?,
            reason: message.reason.into(),
            message: message.message.into(),
        },
        Ok(End::Unspecified) => return Err(FactError::MissingField { field: "end" }),
        Err(_) => return Err(FactError::WrittenByNewerVersion),
    })
}

fn failure_class(class: i32) -> Result<Option<FailureClass>, FactError> {
    let class = proto::FailureClass::try_from(class).map_err(|_| FactError::WrittenByNewerVersion)?;
    Ok(match class {
        proto::FailureClass::None => None,
        proto::FailureClass::Retryable => Some(FailureClass::Retryable),
        proto::FailureClass::OutOfMemory => Some(FailureClass::OutOfMemory),
        proto::FailureClass::Fatal => Some(FailureClass::Fatal),
        proto::FailureClass::InvalidInput => Some(FailureClass::InvalidInput),
        proto::FailureClass::Artifact => Some(FailureClass::Artifact),
        proto::FailureClass::ChildCrashed => Some(FailureClass::ChildCrashed),
        proto::FailureClass::ChildHung => Some(FailureClass::ChildHung),
        proto::FailureClass::ChildOutOfMemory => Some(FailureClass::ChildOutOfMemory),
        proto::FailureClass::WorkerLost => Some(FailureClass::WorkerLost),
    })
}
