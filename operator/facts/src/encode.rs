//! From facts to messages.

use std::sync::Arc;

use prover_core::{
    ArtifactName, Binding, DeviceClass, Fact, FailureClass, JobPhase, JobPolicy, JobSpec, Lane, Requirements,
    TaskCounts, TaskSpec, TaskSuccess,
};

use crate::protocol as proto;
use crate::protocol::fact::Kind;

pub(crate) fn fact(fact: &Fact) -> proto::Fact {
    proto::Fact {
        kind: Some(kind(fact)),
    }
}

fn kind(fact: &Fact) -> Kind {
    match fact {
        Fact::JobAdmitted { job, root, spec, at } => Kind::JobAdmitted(proto::JobAdmitted {
            job: job.0,
            root: root.0,
            spec: Some(job_spec(spec)),
            at: at.0,
        }),
        Fact::JobPolicyChanged { job, policy, at } => Kind::JobPolicyChanged(proto::JobPolicyChanged {
            job: job.0,
            policy: Some(job_policy(policy)),
            at: at.0,
        }),
        Fact::JobActive { job, at } => Kind::JobActive(proto::JobAt { job: job.0, at: at.0 }),
        Fact::JobCounted {
            job,
            failures,
            infrastructure_failures,
        } => Kind::JobCounted(proto::JobCounted {
            job: job.0,
            failures: *failures,
            infrastructure_failures: *infrastructure_failures,
        }),
        Fact::JobReplanned { job, at } => Kind::JobReplanned(proto::JobAt { job: job.0, at: at.0 }),
        Fact::JobFinished { job, phase, at } => Kind::JobFinished(job_finished(job.0, phase, at.0)),
        Fact::JobForgotten { job } => Kind::JobForgotten(job.0),
        Fact::JobStands {
            job,
            epoch,
            root_epoch,
            replans,
            started_at,
            active_since,
            active_before,
        } => Kind::JobStands(proto::JobStands {
            job: job.0,
            epoch: *epoch,
            root_epoch: *root_epoch,
            replans: *replans,
            started_at: started_at.map(|at| at.0),
            active_since: active_since.map(|at| at.0),
            active_before_milliseconds: active_before.0,
        }),
        Fact::TaskSubmitted {
            job,
            task,
            parent,
            epoch,
            spec,
            at,
        } => Kind::TaskSubmitted(proto::TaskSubmitted {
            job: job.0,
            task: task.0,
            parent: parent.map_or(0, |parent| parent.0),
            epoch: *epoch,
            spec: Some(task_spec(spec)),
            at: at.0,
        }),
        fact => kind_of_task(fact),
    }
}

fn kind_of_task(fact: &Fact) -> Kind {
    match fact {
        Fact::ParentRestarted { task, at } => Kind::ParentRestarted(task_at(task.0, at.0)),
        Fact::TaskCounted(counts) => Kind::TaskCounted(task_counted(counts)),
        Fact::TaskSucceeded(success) => Kind::TaskSucceeded(task_succeeded(success)),
        Fact::TaskCached { task } => Kind::TaskCached(task.0),
        Fact::MarkerCompleted { task, at } => Kind::MarkerCompleted(task_at(task.0, at.0)),
        Fact::TaskFailed { task, message, at } => Kind::TaskFailed(proto::TaskFailed {
            task: task.0,
            message: message.to_string(),
            at: at.0,
        }),
        Fact::TaskDropped { task, at } => Kind::TaskDropped(task_at(task.0, at.0)),
        Fact::TaskLeftPlan { task } => Kind::TaskLeftPlan(task.0),
        fact => kind_of_others(fact),
    }
}

fn kind_of_others(fact: &Fact) -> Kind {
    match fact {
        Fact::ArtifactBound { job, name, binding } => Kind::ArtifactBound(proto::ArtifactBound {
            job: job.0,
            name: name.to_string(),
            binding: Some(to_binding(binding)),
        }),
        Fact::ArtifactDropped { job, name } => Kind::ArtifactDropped(artifact_name(job.0, name)),
        Fact::ArtifactReleased { job, name } => Kind::ArtifactReleased(artifact_name(job.0, name)),
        Fact::ArtifactStands(facts) => Kind::ArtifactStands(proto::ArtifactStands {
            job: facts.job.0,
            name: facts.name.to_string(),
            binding: facts.binding.as_ref().map(to_binding),
            shared: facts.shared,
            gone: facts.gone,
            consumed: facts.consumed,
            references: strings(&facts.references),
        }),
        Fact::ReferenceAdded { job, name, reference } => {
            Kind::ReferenceAdded(to_reference(job.0, name, reference))
        }
        Fact::ReferenceRemoved { job, name, reference } => {
            Kind::ReferenceRemoved(to_reference(job.0, name, reference))
        }
        Fact::ChannelMessageSent {
            task,
            sender,
            attempt,
            number,
            payload,
        } => Kind::ChannelMessageSent(proto::ChannelMessageSent {
            task: task.0,
            sender: sender.map_or(0, |sender| sender.0),
            attempt: attempt.0,
            number: *number,
            payload: payload.to_vec(),
        }),
        Fact::CacheEntryStands {
            job,
            key,
            outputs,
            result,
        } => Kind::CacheEntryStands(proto::CacheEntryStands {
            job: job.0,
            key: key.to_string(),
            outputs: named_bindings(outputs),
            result: result.to_vec(),
        }),
        Fact::CacheEntryDropped { key } => Kind::CacheEntryDropped(key.to_string()),
        Fact::TenantPolicyChanged { tenant, policy } => {
            Kind::TenantPolicyChanged(proto::TenantPolicyChanged {
                tenant: tenant.to_string(),
                weight: policy.weight,
                max_devices: policy.max_devices,
            })
        }
        Fact::WorkerJoined { name } => Kind::WorkerJoined(name.to_string()),
        Fact::WorkerGone { name } => Kind::WorkerGone(name.to_string()),
        _ => unreachable!("facts about jobs and tasks are translated before"),
    }
}

fn task_at(task: u64, at: u64) -> proto::TaskAt {
    proto::TaskAt { task, at }
}

fn artifact_name(job: u64, name: &ArtifactName) -> proto::ArtifactName {
    proto::ArtifactName {
        job,
        name: name.to_string(),
    }
}

fn to_reference(job: u64, name: &ArtifactName, reference: &Arc<str>) -> proto::Reference {
    proto::Reference {
        job,
        name: name.to_string(),
        reference: reference.to_string(),
    }
}

fn strings(names: &[Arc<str>]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn to_binding(binding: &Binding) -> proto::Binding {
    proto::Binding {
        key: binding.key.to_string(),
        sha256: binding.sha256.to_vec(),
        size_bytes: binding.size_bytes,
    }
}

fn named_bindings(bindings: &[(ArtifactName, Binding)]) -> Vec<proto::NamedBinding> {
    bindings
        .iter()
        .map(|(name, binding)| proto::NamedBinding {
            name: name.to_string(),
            binding: Some(to_binding(binding)),
        })
        .collect()
}

fn requirements(needs: &Requirements) -> proto::Requirements {
    proto::Requirements {
        lane: u32::from(needs.lane == Lane::Control),
        device_class: u32::from(needs.device_class == DeviceClass::Gpu),
        host_memory_bytes: needs.host_memory_bytes,
        vram_bytes: needs.vram_bytes,
        backend: needs.backend.name.to_string(),
        backend_version: needs.backend.version.to_string(),
    }
}

fn task_spec(spec: &TaskSpec) -> proto::TaskSpec {
    proto::TaskSpec {
        request_id: spec.request_id.to_string(),
        task_type: spec.task_type.to_string(),
        requirements: Some(requirements(&spec.requirements)),
        depends_on: strings(&spec.depends_on),
        inputs: strings(&spec.inputs),
        outputs: strings(&spec.outputs),
        parameters: spec.parameters.to_vec(),
        cache_key: spec.cache_key.as_ref().map(ToString::to_string),
        estimated_device_milliseconds: spec.estimated_device_time.map(|span| span.0),
        completes: strings(&spec.completes),
        concludes_job: spec.concludes_job,
        marker: spec.marker,
    }
}

fn job_policy(policy: &JobPolicy) -> proto::JobPolicy {
    proto::JobPolicy {
        priority: policy.priority,
        deadline: policy.deadline.map(|at| at.0),
        active_deadline_milliseconds: policy.active_deadline.map(|span| span.0),
        max_workers: policy.max_workers,
        suspended: policy.suspended,
    }
}

fn job_spec(spec: &JobSpec) -> proto::JobSpec {
    proto::JobSpec {
        uid: spec.uid.to_string(),
        tenant: spec.tenant.to_string(),
        policy: Some(job_policy(&spec.policy)),
        retry_limit: spec.retry_limit,
        root: Some(task_spec(&spec.root)),
        root_concludes: spec.root_concludes,
        parent_chain: spec.parent_chain.iter().map(requirements).collect(),
        largest_leaf: Some(requirements(&spec.largest_leaf)),
        sources: named_bindings(&spec.sources),
        retained: strings(&spec.retained),
    }
}

fn job_finished(job: u64, phase: &JobPhase, at: u64) -> proto::JobFinished {
    use proto::job_finished::End;
    let mut message = proto::JobFinished {
        job,
        at,
        ..proto::JobFinished::default()
    };
    match phase {
        JobPhase::Succeeded => message.set_end(End::Succeeded),
        JobPhase::Cancelled => message.set_end(End::Cancelled),
        JobPhase::Failed {
            reason,
            message: words,
            class,
        } => {
            message.set_end(End::Failed);
            message.reason = reason.to_string();
            message.message = words.to_string();
            message.set_class(failure_class(*class));
        }
        JobPhase::Queued(_) | JobPhase::Running | JobPhase::Suspended => {
            unreachable!("a job finishes with a terminal phase")
        }
    }
    message
}

fn failure_class(class: Option<FailureClass>) -> proto::FailureClass {
    match class {
        None => proto::FailureClass::None,
        Some(FailureClass::Retryable) => proto::FailureClass::Retryable,
        Some(FailureClass::OutOfMemory) => proto::FailureClass::OutOfMemory,
        Some(FailureClass::Fatal) => proto::FailureClass::Fatal,
        Some(FailureClass::InvalidInput) => proto::FailureClass::InvalidInput,
        Some(FailureClass::Artifact) => proto::FailureClass::Artifact,
        Some(FailureClass::ChildCrashed) => proto::FailureClass::ChildCrashed,
        Some(FailureClass::ChildHung) => proto::FailureClass::ChildHung,
        Some(FailureClass::ChildOutOfMemory) => proto::FailureClass::ChildOutOfMemory,
        Some(FailureClass::WorkerLost) => proto::FailureClass::WorkerLost,
    }
}

fn task_counted(counts: &TaskCounts) -> proto::TaskCounted {
    proto::TaskCounted {
        task: counts.task.0,
        attempts: counts.attempts,
        fence: counts.fence,
        failures: counts.failures,
        crashes: counts.crashes,
        suspected: counts.suspected,
        alone: counts.alone,
        sent: counts.sent,
        minimum_host_bytes: counts.minimum_host_bytes,
        minimum_vram_bytes: counts.minimum_vram_bytes,
        device_microseconds: counts.device_microseconds,
        energy_millijoules: counts.energy_millijoules,
        last_failure: counts.last_failure.as_ref().map(ToString::to_string),
    }
}

fn task_succeeded(success: &TaskSuccess) -> proto::TaskSucceeded {
    proto::TaskSucceeded {
        task: success.task.0,
        attempt: success.attempt.map_or(0, |attempt| attempt.0),
        attempts: success.attempts,
        outputs: named_bindings(&success.outputs),
        result: success.result.to_vec(),
        device_microseconds: success.device_microseconds,
        energy_millijoules: success.energy_millijoules,
        started_at: success.started_at.map(|at| at.0),
        from_cache: success.from_cache,
        at: success.at.0,
    }
}
