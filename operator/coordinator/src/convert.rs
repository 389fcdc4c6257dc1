//! Between the messages of the worker plane and the words of the scheduling core.
//!
//! Owns translation only; what a message means is decided in the engine and in the core.

use std::sync::Arc;

use prost::Message;
use prover_backend::protocol as backend;
use prover_core::{
    ArtifactName, AttemptId, Binding, CallId, DeviceClass, DeviceIndex, DeviceSpec, Event, FailureClass,
    HeldAttempt, Milliseconds, Refusal, StopReason, TaskId, TaskSpec, Usage, WorkerId, WorkerSpec,
};
use prover_wire::protocol as wire;
use prover_wire::{Validate, WireError};

use crate::catalogue::Backend;
use crate::identity::WORKER_ID_SEPARATOR;
use crate::view::ExecutionReport;

/// A worker's calls are numbered below this, so that a call of any worker has a number of its own.
const CALLS_PER_WORKER: u64 = 1 << 40;
/// Workers that one coordinator can number.
const WORKERS: u64 = 1 << 24;

/// A message that can't be taken.
#[derive(Debug, thiserror::Error)]
pub enum ConversionError {
    /// It is malformed or passes a limit of the worker plane.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// What a backend passes through its agent breaks a rule of the backend's protocol.
    #[error(transparent)]
    Backend(#[from] prover_backend::validate::ValidationError),
    /// A part of it has no meaning.
    #[error("{field} is malformed: {problem}")]
    Malformed {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The hello came twice.
    #[error("a hello opens a stream and comes only once")]
    SecondHello,
    /// The device was not in the hello.
    #[error("device {0:?} was not in the hello")]
    UnknownDevice(String),
}

impl ConversionError {
    /// Short name for metrics.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            ConversionError::Wire(error) => error.category(),
            ConversionError::Backend(_) => "backend_rule",
            ConversionError::Malformed { .. } => "malformed",
            ConversionError::SecondHello => "second_hello",
            ConversionError::UnknownDevice(_) => "unknown_device",
        }
    }
}

/// What a worker says of itself when it opens its stream.
#[derive(Debug)]
pub struct Hello {
    pub(crate) spec: WorkerSpec,
    pub(crate) device_ids: Vec<Arc<str>>,
    pub(crate) backend: Arc<Backend>,
    pub(crate) held: Vec<HeldAttempt>,
    pub(crate) highest_epoch: u64,
    pub(crate) process_id: u64,
    pub(crate) stream: u64,
    pub(crate) process_nonce: u64,
}

/// What a worker reports, in the core's words where the core decides about it.
#[derive(Debug)]
pub enum Report {
    Heartbeat {
        sequence: u64,
        attempts: Vec<AttemptId>,
        host_memory_used_bytes: u64,
    },
    Progress {
        attempt: AttemptId,
        execution: Option<ExecutionReport>,
    },
    Succeeded(Box<Completion>),
    Failed {
        attempt: AttemptId,
        execution: Option<ExecutionReport>,
        event: Event,
    },
    DeviceChanged {
        device: DeviceIndex,
        usable: bool,
        reason: String,
    },
    Draining {
        reason: String,
    },
    Event(Event),
}

impl Report {
    /// The attempt that it is about; none where it is about several or none.
    pub(crate) fn attempt(&self) -> Option<AttemptId> {
        match self {
            Report::Progress { attempt, .. } | Report::Failed { attempt, .. } => Some(*attempt),
            Report::Succeeded(completion) => Some(completion.attempt),
            Report::Event(
                Event::AttemptStarted { attempt }
                | Event::AttemptStopped { attempt }
                | Event::RecallAnswered { attempt, .. },
            ) => Some(*attempt),
            Report::Heartbeat { .. }
            | Report::DeviceChanged { .. }
            | Report::Draining { .. }
            | Report::Event(_) => None,
        }
    }

    /// Whether the worker has its attempt no more.
    pub(crate) fn is_end(&self) -> bool {
        match self {
            Report::Succeeded(_) | Report::Failed { .. } => true,
            Report::Event(event) => event.ended().is_some(),
            _ => false,
        }
    }
}

/// A completion before it is judged.
#[derive(Debug)]
pub struct Completion {
    pub(crate) attempt: AttemptId,
    pub(crate) outputs: Vec<(ArtifactName, Binding)>,
    pub(crate) result: Arc<[u8]>,
    pub(crate) execution: Option<ExecutionReport>,
    pub(crate) proof: Option<backend::ProofReport>,
    pub(crate) usage: Usage,
}

pub(crate) fn hello(message: wire::WorkerHello) -> Result<Hello, ConversionError> {
    message.validate()?;
    let description = message.backend.unwrap_or_default();
    let backend = Arc::new(Backend::from_wire(&description)?);
    let devices = message.devices.iter().map(device).collect();
    let device_ids: Vec<Arc<str>> = message
        .devices
        .iter()
        .map(|device| device.id.as_str().into())
        .collect();
    let held = message.held.iter().map(|held| held_attempt(held, &device_ids));
    let held = held.collect::<Result<_, _>>()?;
    Ok(Hello {
        held,
        spec: WorkerSpec {
            name: message.worker_id.into(),
            group: message.worker_group.into(),
            host_memory_bytes: message.host_memory_bytes,
            devices,
            backend: backend.version.clone(),
        },
        device_ids,
        backend,
        highest_epoch: message.highest_epoch,
        process_id: message.process_id,
        stream: message.stream,
        process_nonce: message.process_nonce,
    })
}

/// A held attempt, and the devices of the hello that it came in.
fn held_attempt(held: &wire::HeldAttempt, devices: &[Arc<str>]) -> Result<HeldAttempt, ConversionError> {
    let device = match held.device_id.as_str() {
        "" => None,
        id => Some(device_index(id, devices)?),
    };
    Ok(HeldAttempt {
        attempt: AttemptId(held.attempt_id),
        // An agent that was made before these were told says 0: no task has this identity, so that after a takeover
        // the attempt is stopped.
        task: TaskId(held.task_id),
        device,
        number: held.attempt_number,
        epoch: held.plan_epoch,
        started: held.started,
        completed: held.completed,
    })
}

fn device_index(id: &str, devices: &[Arc<str>]) -> Result<DeviceIndex, ConversionError> {
    let index = devices.iter().position(|known| **known == *id);
    index
        .and_then(|index| u16::try_from(index).ok())
        .map(DeviceIndex)
        .ok_or_else(|| ConversionError::UnknownDevice(id.to_owned()))
}

fn device(device: &wire::Device) -> DeviceSpec {
    DeviceSpec {
        class: match device.class() {
            wire::DeviceClass::Gpu => DeviceClass::Gpu,
            wire::DeviceClass::Cpu | wire::DeviceClass::Unspecified => DeviceClass::Cpu,
        },
        vram_bytes: device.vram_bytes,
        // Bounded by the worker plane's own limit.
        slots: u16::try_from(device.attempts_at_once).unwrap_or(u16::MAX),
    }
}

/// Everything but hellos and calls.
pub(crate) fn report(
    worker: WorkerId,
    devices: &[Arc<str>],
    message: wire::worker_message::Message,
) -> Result<Report, ConversionError> {
    use wire::worker_message::Message;
    Ok(match message {
        Message::Hello(_) => return Err(ConversionError::SecondHello),
        // Calls are told apart before, since they are answered and not refused as a whole.
        Message::Call(_) => {
            return Err(ConversionError::Malformed {
                field: "call",
                problem: "misplaced".into(),
            });
        }
        // Its messages are taken out before.
        Message::Batch(_) => {
            return Err(ConversionError::Malformed {
                field: "batch",
                problem: "misplaced".into(),
            });
        }
        Message::Heartbeat(heartbeat) => Report::Heartbeat {
            sequence: heartbeat.sequence,
            attempts: heartbeat.attempts.into_iter().map(AttemptId).collect(),
            host_memory_used_bytes: heartbeat.host_memory_used_bytes,
        },
        Message::Started(started) => Report::Event(Event::AttemptStarted {
            attempt: AttemptId(started.attempt_id),
        }),
        Message::Progress(progress) => {
            let told = decode::<backend::AttemptProgress>("progress.encoded", &progress.encoded)?;
            Report::Progress {
                attempt: AttemptId(progress.attempt_id),
                execution: told.and_then(|told| told.execution).map(execution_report),
            }
        }
        Message::Succeeded(succeeded) => Report::Succeeded(Box::new(completion(succeeded)?)),
        Message::Failed(failed) => failure(failed)?,
        Message::RecallAnswer(answer) => Report::Event(Event::RecallAnswered {
            attempt: AttemptId(answer.attempt_id),
            given_back: answer.given_back,
        }),
        Message::Stopped(stopped) => Report::Event(Event::AttemptStopped {
            attempt: AttemptId(stopped.attempt_id),
        }),
        Message::DeviceChanged(change) => Report::DeviceChanged {
            device: device_index(&change.device_id, devices)?,
            usable: change.usable,
            reason: change.reason,
        },
        Message::Draining(draining) => {
            tracing::debug!(%worker, seconds_left = draining.seconds_left, "the worker drains");
            Report::Draining {
                reason: draining.reason,
            }
        }
    })
}

fn decode<M: Message + Default>(field: &'static str, bytes: &[u8]) -> Result<Option<M>, ConversionError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let decoded = M::decode(bytes);
    decoded.map(Some).map_err(|error| ConversionError::Malformed {
        field,
        problem: error.to_string(),
    })
}

fn completion(message: wire::AttemptSucceeded) -> Result<Completion, ConversionError> {
    let outputs = message
        .outputs
        .into_iter()
        .map(binding)
        .collect::<Result<_, _>>()?;
    let execution = decode::<backend::ExecutionReport>("succeeded.execution", &message.execution)?;
    Ok(Completion {
        attempt: AttemptId(message.attempt_id),
        outputs,
        result: message.result.into(),
        execution: execution.map(execution_report),
        proof: decode("succeeded.proof", &message.proof)?,
        usage: usage(message.usage),
    })
}

fn failure(message: wire::AttemptFailed) -> Result<Report, ConversionError> {
    let class = failure_class(message.class());
    let attempt = AttemptId(message.attempt_id);
    let execution = decode::<backend::ExecutionReport>("failed.execution", &message.execution)?;
    let event = Event::AttemptFailed {
        attempt,
        class,
        reason: message.reason.into(),
        message: message.message.into(),
        usage: usage(message.usage),
    };
    Ok(Report::Failed {
        attempt,
        execution: execution.map(execution_report),
        event,
    })
}

fn failure_class(class: wire::FailureClass) -> FailureClass {
    match class {
        // Unspecified is refused by the checks of the worker plane.
        wire::FailureClass::Retryable | wire::FailureClass::Unspecified => FailureClass::Retryable,
        wire::FailureClass::OutOfMemory => FailureClass::OutOfMemory,
        wire::FailureClass::Fatal => FailureClass::Fatal,
        wire::FailureClass::InvalidInput => FailureClass::InvalidInput,
        wire::FailureClass::Artifact => FailureClass::Artifact,
        wire::FailureClass::ChildCrashed => FailureClass::ChildCrashed,
        wire::FailureClass::ChildHung => FailureClass::ChildHung,
        wire::FailureClass::ChildOutOfMemory => FailureClass::ChildOutOfMemory,
        wire::FailureClass::WorkerLeaving => FailureClass::WorkerLost,
    }
}

fn usage(usage: Option<wire::Usage>) -> Usage {
    let usage = usage.unwrap_or_default();
    Usage {
        device_time: Milliseconds(usage.device_milliseconds),
        energy_millijoules: usage.energy_millijoules,
    }
}

pub(crate) fn execution_report(report: backend::ExecutionReport) -> ExecutionReport {
    ExecutionReport {
        segments: report.segments,
        user_cycles: report.user_cycles,
        total_cycles: report.total_cycles,
        program_id: report.program_id,
        exit_code: report.exit_code,
        segment_po2: report.segment_po2,
        gas: report.gas,
        public_values_sha256: report.public_values_sha256,
    }
}

/// The same in the backend's words.
pub(crate) fn told_execution(report: &ExecutionReport) -> backend::ExecutionReport {
    backend::ExecutionReport {
        segments: report.segments,
        user_cycles: report.user_cycles,
        total_cycles: report.total_cycles,
        program_id: report.program_id.clone(),
        exit_code: report.exit_code,
        segment_po2: report.segment_po2,
        gas: report.gas,
        public_values_sha256: report.public_values_sha256.clone(),
    }
}

fn binding(artifact: wire::Artifact) -> Result<(ArtifactName, Binding), ConversionError> {
    let sha256 = artifact.sha256_bytes()?;
    let binding = Binding {
        key: artifact.key.into(),
        sha256,
        size_bytes: artifact.size_bytes,
    };
    Ok((artifact.name.into(), binding))
}

pub(crate) fn artifact(name: &str, binding: &Binding) -> wire::Artifact {
    prover_wire::artifact(name, binding.key.to_string(), binding.sha256, binding.size_bytes)
}

/// The number of a worker's call among the calls of all workers, which is unique and tells both.
pub(crate) fn call_id(worker: WorkerId, call: u64) -> Result<CallId, ConversionError> {
    if call >= CALLS_PER_WORKER || worker.0 >= WORKERS {
        let problem = format!(
            "calls are numbered from 1 to {}, this is {call}",
            CALLS_PER_WORKER - 1
        );
        return Err(ConversionError::Malformed {
            field: "call.call_id",
            problem,
        });
    }
    Ok(CallId((worker.0 << 40) | call))
}

/// The worker's own number of a call.
pub(crate) fn worker_call_id(call: CallId) -> u64 {
    call.0 % CALLS_PER_WORKER
}

/// A call of an attempt as the event that it is.
pub(crate) fn call(
    worker: WorkerId,
    backend: &Backend,
    message: wire::Call,
) -> Result<Event, ConversionError> {
    use wire::call::Call;
    let call = call_id(worker, message.call_id)?;
    let attempt = AttemptId(message.attempt_id);
    let missing = || ConversionError::Wire(WireError::EmptyMessage { message: "call" });
    Ok(match message.call.ok_or_else(missing)? {
        Call::SubmitTasks(submit) => Event::TasksSubmitted {
            call,
            attempt,
            tasks: submitted_tasks(backend, &submit.encoded)?,
        },
        Call::CompleteMarker(marker) => Event::MarkerCompleted {
            call,
            attempt,
            marker: marker.request_id.into(),
        },
        Call::SubscribeTasks(subscribe) => Event::TasksSubscribed {
            call,
            attempt,
            tasks: subscribe.request_ids.into_iter().map(Into::into).collect(),
        },
        Call::SendChannelMessage(send) => Event::ChannelMessageSent {
            call,
            attempt,
            task: (!send.request_id.is_empty()).then(|| send.request_id.into()),
            number: send.number,
            payload: send.payload.into(),
        },
        Call::ReadChannel(read) => Event::ChannelOpened {
            call,
            attempt,
            task: read.request_id.into(),
            start_offset: read.start_offset,
        },
        Call::BindArtifact(bind) => {
            let (name, binding) = binding(bind.artifact.unwrap_or_default())?;
            Event::ArtifactBound {
                call,
                attempt,
                name,
                binding,
            }
        }
        Call::ResolveArtifact(resolve) => Event::ArtifactResolved {
            call,
            attempt,
            name: resolve.name.into(),
        },
        Call::DeleteArtifacts(delete) => Event::ArtifactsDeleted {
            call,
            attempt,
            names: delete.names.into_iter().map(Into::into).collect(),
        },
        Call::AddReference(add) => Event::ReferenceAdded {
            call,
            attempt,
            name: add.name.into(),
            reference: add.reference.into(),
        },
        Call::RemoveReference(remove) => Event::ReferenceRemoved {
            call,
            attempt,
            name: remove.name.into(),
            reference: remove.reference.into(),
        },
        Call::AcquirePermit(permit) => Event::PermitRequested {
            call,
            attempt,
            name: permit.name.into(),
            bytes: permit.bytes,
        },
    })
}

fn submitted_tasks(backend: &Backend, encoded: &[u8]) -> Result<Vec<TaskSpec>, ConversionError> {
    let request = decode::<backend::SubmitTasksRequest>("submit_tasks.encoded", encoded)?.unwrap_or_default();
    prover_backend::validate::submit_tasks(&backend.description, &request)?;
    Ok(request.tasks.into_iter().map(|task| backend.task(task)).collect())
}

/// How a refusal is told to the attempt whose call it answers.
pub(crate) fn refusal_kind(refusal: &Refusal) -> wire::ErrorKind {
    match refusal {
        Refusal::LeaseLost | Refusal::JobOver => wire::ErrorKind::LeaseLost,
        Refusal::NotFound(_) => wire::ErrorKind::NotFound,
        Refusal::LimitExceeded { .. } => wire::ErrorKind::LimitExceeded,
        Refusal::UnknownDependency { .. }
        | Refusal::OtherBackend(_)
        | Refusal::RequestIdReused(_)
        | Refusal::NotAMarker(_) => wire::ErrorKind::InvalidArgument,
    }
}

/// Name of the pod that an agent's name begins with.
pub(crate) fn pod_of(worker_id: &str) -> &str {
    worker_id
        .split_once(WORKER_ID_SEPARATOR)
        .map_or(worker_id, |(pod, _)| pod)
}

/// As the worker's log shows it.
pub(crate) fn stop_reason(reason: StopReason) -> &'static str {
    match reason {
        StopReason::Cancelled => "Cancelled",
        StopReason::Suspended => "Suspended",
        StopReason::DeadlinePassed => "DeadlinePassed",
        StopReason::JobFailed => "JobFailed",
        StopReason::Superseded => "Superseded",
        StopReason::LeaseLost => "LeaseLost",
        StopReason::Replanned => "Replanned",
        StopReason::Preempted => "Preempted",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_different_workers_have_different_numbers_and_keep_their_own() {
        let first = call_id(WorkerId(1), 7).unwrap();
        let second = call_id(WorkerId(2), 7).unwrap();
        assert_ne!(first, second);
        assert_eq!((worker_call_id(first), worker_call_id(second)), (7, 7));
    }

    #[test]
    fn a_call_number_that_would_reach_into_another_workers_is_refused() {
        let message = call_id(WorkerId(1), 1 << 40).unwrap_err().to_string();
        assert!(message.contains("call.call_id"), "{message}");
    }

    #[test]
    fn a_held_attempt_is_told_as_the_worker_has_it() {
        let devices = ["gpu-0".into(), "gpu-1".into()];
        let mk_held = |device_id: &str| wire::HeldAttempt {
            attempt_id: 7,
            started: true,
            completed: false,
            task_id: 5,
            device_id: device_id.to_owned(),
            attempt_number: 2,
            plan_epoch: 3,
        };
        let told = |device| HeldAttempt {
            attempt: AttemptId(7),
            task: TaskId(5),
            device,
            number: 2,
            epoch: 3,
            started: true,
            completed: false,
        };
        for (device_id, device) in [("gpu-1", Some(DeviceIndex(1))), ("", None)] {
            assert_eq!(held_attempt(&mk_held(device_id), &devices).unwrap(), told(device));
        }
        let error = held_attempt(&mk_held("gpu-2"), &devices).unwrap_err();
        assert_eq!(error.to_string(), "device \"gpu-2\" was not in the hello");
    }

    #[test]
    fn an_agent_of_the_version_before_tells_no_task_of_what_it_holds() {
        let before = wire::HeldAttempt {
            attempt_id: 7,
            started: true,
            ..wire::HeldAttempt::default()
        };
        let told = held_attempt(&before, &[]).unwrap();
        assert_eq!((told.task, told.device, told.number), (TaskId(0), None, 0));
    }

    #[test]
    fn every_class_of_failure_keeps_its_meaning() {
        let cases = [
            (wire::FailureClass::Retryable, FailureClass::Retryable),
            (wire::FailureClass::OutOfMemory, FailureClass::OutOfMemory),
            (wire::FailureClass::Fatal, FailureClass::Fatal),
            (wire::FailureClass::InvalidInput, FailureClass::InvalidInput),
            (wire::FailureClass::Artifact, FailureClass::Artifact),
            (wire::FailureClass::ChildCrashed, FailureClass::ChildCrashed),
            (wire::FailureClass::ChildHung, FailureClass::ChildHung),
            (
                wire::FailureClass::ChildOutOfMemory,
                FailureClass::ChildOutOfMemory,
            ),
            (wire::FailureClass::WorkerLeaving, FailureClass::WorkerLost),
        ];
        for (told, meant) in cases {
            let message = wire::AttemptFailed {
                attempt_id: 3,
                class: told.into(),
                reason: "Reason".to_owned(),
                message: "words".to_owned(),
                ..wire::AttemptFailed::default()
            };
            let Report::Failed {
                event:
                    Event::AttemptFailed {
                        attempt,
                        class,
                        reason,
                        message,
                        ..
                    },
                ..
            } = failure(message).unwrap()
            else {
                panic!("a failure became something else");
            };
            assert_eq!(
                (attempt, class, &*reason, &*message),
                (AttemptId(3), meant, "Reason", "words")
            );
        }
    }

    #[test]
    fn a_device_is_named_by_its_place_in_the_hello() {
        let devices = ["gpu-0".into(), "gpu-1".into()];
        let message = |device_id: &str| {
            wire::worker_message::Message::DeviceChanged(wire::DeviceChanged {
                device_id: device_id.to_owned(),
                usable: false,
                reason: "hot".to_owned(),
            })
        };
        let told = report(WorkerId(1), &devices, message("gpu-1")).unwrap();
        assert!(
            matches!(
                told,
                Report::DeviceChanged {
                    device: DeviceIndex(1),
                    usable: false,
                    ..
                }
            ),
            "{told:?}"
        );
        let error = report(WorkerId(1), &devices, message("gpu-2")).unwrap_err();
        assert_eq!(error.to_string(), "device \"gpu-2\" was not in the hello");
    }

    #[test]
    fn a_report_that_can_not_be_decoded_is_refused_with_its_field() {
        let message = wire::AttemptSucceeded {
            attempt_id: 1,
            proof: vec![0xff; 3],
            ..wire::AttemptSucceeded::default()
        };
        let message = completion(message).unwrap_err().to_string();
        assert!(message.starts_with("succeeded.proof is malformed"), "{message}");
    }
}
