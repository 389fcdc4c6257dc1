//! Checks of incoming messages: what fails here is a fault of the peer and never reaches the scheduling core.

use prost::Message as _;

use crate::limits::{
    ARTIFACTS_PER_TASK, ATTEMPTS_PER_DEVICE, ATTEMPTS_PER_WORKER, BACKEND_DESCRIPTION_BYTES,
    DEPENDENCY_RESULT_BYTES, DEVICES_PER_WORKER, KEY_BYTES, MESSAGE_BYTES, MESSAGES_PER_BATCH, NAME_BYTES,
    OPAQUE_BYTES, SUBMISSION_BYTES, TASKS_PER_SUBSCRIPTION, TEXT_BYTES,
};
use crate::protocol::{
    Answer, Artifact, Assign, AttemptFailed, AttemptSucceeded, Call, ChannelMessage, CoordinatorMessage,
    Device, DeviceClass, FailureClass, HeldAttempt, TaskResult, WorkerHello, WorkerMessage, call,
    coordinator_message, worker_message,
};
use crate::{Batched, SUPPORTED_PROTOCOL_VERSIONS, convert};

/// A message that is malformed or passes a limit.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The peer speaks another version.
    #[error(
        "the peer speaks version {version} of the worker plane, this side {first} to {last}: \
         operator and worker may differ by one version",
        first = SUPPORTED_PROTOCOL_VERSIONS.start(), last = SUPPORTED_PROTOCOL_VERSIONS.end()
    )]
    UnsupportedVersion {
        /// As the peer says.
        version: u32,
    },
    /// The oneof of an envelope is not set: an unknown kind of message, from a newer peer.
    #[error("{message} carries nothing that this version knows")]
    EmptyMessage {
        /// Which envelope.
        message: &'static str,
    },
    /// A field must not be empty.
    #[error("{field} is empty")]
    EmptyField {
        /// Which.
        field: &'static str,
    },
    /// A field has more bytes or entries than allowed.
    #[error("{field} has {actual} {unit}, at most {limit} are allowed")]
    TooLarge {
        /// Which.
        field: &'static str,
        /// Bytes or entries.
        unit: &'static str,
        /// As found.
        actual: usize,
        /// As allowed.
        limit: usize,
    },
    /// A hash is not 64 hexadecimal digits.
    #[error("{text:?} is not a SHA-256 hash in 64 hexadecimal digits: {source}")]
    MalformedHash {
        /// As found, cut.
        text: String,
        /// What is wrong with it.
        source: hex::FromHexError,
    },
    /// An enumeration has a value that this version does not know.
    #[error("{field} has the unknown value {value}")]
    UnknownValue {
        /// Which.
        field: &'static str,
        /// As found.
        value: i32,
    },
    /// A number is outside of its range.
    #[error("{field} is {value}, allowed is {low} to {high}")]
    OutOfRange {
        /// Which.
        field: &'static str,
        /// As found.
        value: u64,
        /// Lowest allowed value.
        low: u64,
        /// Highest allowed value.
        high: u64,
    },
    /// A key could leave the store's prefix.
    #[error("{key:?} is no key: keys are relative paths without empty parts, '.' or '..'")]
    MalformedKey {
        /// As found, cut.
        key: String,
    },
    /// A batch has a message that only comes alone.
    #[error("{message} has a message that is never part of a batch")]
    NotInBatch {
        /// Which batch.
        message: &'static str,
    },
    /// Two entries have the same name.
    #[error("{field} names {name:?} twice")]
    Duplicate {
        /// Which list.
        field: &'static str,
        /// The name.
        name: String,
    },
}

impl WireError {
    /// Short name for metrics and events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            WireError::UnsupportedVersion { .. } => "unsupported_version",
            WireError::EmptyMessage { .. } => "empty_message",
            WireError::EmptyField { .. } => "empty_field",
            WireError::TooLarge { .. } => "too_large",
            WireError::MalformedHash { .. } => "malformed_hash",
            WireError::UnknownValue { .. } => "unknown_value",
            WireError::OutOfRange { .. } => "out_of_range",
            WireError::MalformedKey { .. } => "malformed_key",
            WireError::NotInBatch { .. } => "not_in_batch",
            WireError::Duplicate { .. } => "duplicate",
        }
    }

    /// Whether the same message may be sent again: never, since nothing about it would change.
    #[must_use]
    pub fn retry(&self) -> bool {
        false
    }
}

/// A message that can be checked by itself.
pub trait Validate {
    /// Checks limits and forms.
    ///
    /// # Errors
    /// The first fault that is found.
    fn validate(&self) -> Result<(), WireError>;
}

fn at_most(field: &'static str, unit: &'static str, actual: usize, limit: usize) -> Result<(), WireError> {
    if actual > limit {
        return Err(WireError::TooLarge {
            field,
            unit,
            actual,
            limit,
        });
    }
    Ok(())
}

fn name(field: &'static str, value: &str) -> Result<(), WireError> {
    if value.is_empty() {
        return Err(WireError::EmptyField { field });
    }
    at_most(field, "bytes", value.len(), NAME_BYTES)
}

fn text(field: &'static str, value: &str) -> Result<(), WireError> {
    at_most(field, "bytes", value.len(), TEXT_BYTES)
}

fn opaque(field: &'static str, value: &[u8]) -> Result<(), WireError> {
    at_most(field, "bytes", value.len(), OPAQUE_BYTES)
}

fn identity(field: &'static str, value: u64) -> Result<(), WireError> {
    if value == 0 {
        return Err(WireError::EmptyField { field });
    }
    Ok(())
}

fn names(field: &'static str, values: &[String], limit: usize) -> Result<(), WireError> {
    at_most(field, "entries", values.len(), limit)?;
    let mut seen = std::collections::BTreeSet::new();
    for value in values {
        name(field, value)?;
        if !seen.insert(value) {
            return Err(WireError::Duplicate {
                field,
                name: value.clone(),
            });
        }
    }
    Ok(())
}

fn artifacts(field: &'static str, values: &[Artifact]) -> Result<(), WireError> {
    at_most(field, "entries", values.len(), ARTIFACTS_PER_TASK)?;
    let mut seen = std::collections::BTreeSet::new();
    for value in values {
        value.validate()?;
        if !seen.insert(&value.name) {
            return Err(WireError::Duplicate {
                field,
                name: value.name.clone(),
            });
        }
    }
    Ok(())
}

/// The messages of a batch, each by itself.
fn each<M: Batched>(
    batch: &'static str,
    messages: &[M],
    check: impl Fn(&M) -> Result<(), WireError>,
) -> Result<(), WireError> {
    at_most(batch, "entries", messages.len(), MESSAGES_PER_BATCH)?;
    if messages.is_empty() {
        return Err(WireError::EmptyMessage { message: batch });
    }
    for message in messages {
        check(message)?;
        if message.is_alone() {
            return Err(WireError::NotInBatch { message: batch });
        }
    }
    Ok(())
}

fn key(value: &str) -> Result<(), WireError> {
    at_most("artifact.key", "bytes", value.len(), KEY_BYTES)?;
    let well_formed = value.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !well_formed || value.contains('\0') {
        return Err(WireError::MalformedKey {
            key: value.chars().take(NAME_BYTES).collect(),
        });
    }
    Ok(())
}

impl Validate for Artifact {
    fn validate(&self) -> Result<(), WireError> {
        name("artifact.name", &self.name)?;
        key(&self.key)?;
        convert::sha256_bytes(&self.sha256).map(|_| ())
    }
}

impl Validate for Device {
    fn validate(&self) -> Result<(), WireError> {
        name("device.id", &self.id)?;
        if matches!(
            DeviceClass::try_from(self.class),
            Err(_) | Ok(DeviceClass::Unspecified)
        ) {
            return Err(WireError::UnknownValue {
                field: "device.class",
                value: self.class,
            });
        }
        at_most("device.product", "bytes", self.product.len(), NAME_BYTES)?;
        if !(1..=ATTEMPTS_PER_DEVICE).contains(&self.attempts_at_once) {
            return Err(WireError::OutOfRange {
                field: "device.attempts_at_once",
                value: u64::from(self.attempts_at_once),
                low: 1,
                high: u64::from(ATTEMPTS_PER_DEVICE),
            });
        }
        Ok(())
    }
}

impl Validate for HeldAttempt {
    fn validate(&self) -> Result<(), WireError> {
        identity("held.attempt_id", self.attempt_id)?;
        // Empty in the control lane.
        at_most("held.device_id", "bytes", self.device_id.len(), NAME_BYTES)
    }
}

impl Validate for WorkerHello {
    fn validate(&self) -> Result<(), WireError> {
        if !SUPPORTED_PROTOCOL_VERSIONS.contains(&self.protocol_version) {
            return Err(WireError::UnsupportedVersion {
                version: self.protocol_version,
            });
        }
        name("worker_id", &self.worker_id)?;
        at_most("worker_group", "bytes", self.worker_group.len(), NAME_BYTES)?;
        at_most("devices", "entries", self.devices.len(), DEVICES_PER_WORKER)?;
        let mut seen = std::collections::BTreeSet::new();
        for device in &self.devices {
            device.validate()?;
            if !seen.insert(&device.id) {
                return Err(WireError::Duplicate {
                    field: "devices",
                    name: device.id.clone(),
                });
            }
        }
        let backend = self
            .backend
            .as_ref()
            .ok_or(WireError::EmptyField { field: "backend" })?;
        name("backend.name", &backend.name)?;
        name("backend.version", &backend.version)?;
        at_most(
            "backend.encoded",
            "bytes",
            backend.encoded.len(),
            BACKEND_DESCRIPTION_BYTES,
        )?;
        at_most("held", "entries", self.held.len(), ATTEMPTS_PER_WORKER)?;
        let mut held = std::collections::BTreeSet::new();
        for attempt in &self.held {
            attempt.validate()?;
            if !held.insert(attempt.attempt_id) {
                return Err(WireError::Duplicate {
                    field: "held.attempt_id",
                    name: attempt.attempt_id.to_string(),
                });
            }
        }
        Ok(())
    }
}

impl Validate for AttemptSucceeded {
    fn validate(&self) -> Result<(), WireError> {
        identity("succeeded.attempt_id", self.attempt_id)?;
        artifacts("succeeded.outputs", &self.outputs)?;
        opaque("succeeded.result", &self.result)?;
        opaque("succeeded.execution", &self.execution)?;
        opaque("succeeded.proof", &self.proof)
    }
}

impl Validate for AttemptFailed {
    fn validate(&self) -> Result<(), WireError> {
        identity("failed.attempt_id", self.attempt_id)?;
        if matches!(
            FailureClass::try_from(self.class),
            Err(_) | Ok(FailureClass::Unspecified)
        ) {
            return Err(WireError::UnknownValue {
                field: "failed.class",
                value: self.class,
            });
        }
        at_most("failed.reason", "bytes", self.reason.len(), NAME_BYTES)?;
        text("failed.message", &self.message)?;
        opaque("failed.execution", &self.execution)
    }
}

impl Validate for Call {
    fn validate(&self) -> Result<(), WireError> {
        identity("call.call_id", self.call_id)?;
        identity("call.attempt_id", self.attempt_id)?;
        let call = self
            .call
            .as_ref()
            .ok_or(WireError::EmptyMessage { message: "call" })?;
        match call {
            call::Call::SubmitTasks(call) => at_most(
                "submit_tasks.encoded",
                "bytes",
                call.encoded.len(),
                SUBMISSION_BYTES,
            ),
            call::Call::CompleteMarker(call) => name("complete_marker.request_id", &call.request_id),
            call::Call::SubscribeTasks(call) => names(
                "subscribe_tasks.request_ids",
                &call.request_ids,
                TASKS_PER_SUBSCRIPTION,
            ),
            call::Call::SendChannelMessage(call) => {
                // Empty stands for the task that the attempt runs.
                at_most(
                    "send_channel_message.request_id",
                    "bytes",
                    call.request_id.len(),
                    NAME_BYTES,
                )?;
                opaque("send_channel_message.payload", &call.payload)
            }
            call::Call::ReadChannel(call) => name("read_channel.request_id", &call.request_id),
            call::Call::BindArtifact(call) => call
                .artifact
                .as_ref()
                .ok_or(WireError::EmptyField {
                    field: "bind_artifact.artifact",
                })?
                .validate(),
            call::Call::ResolveArtifact(call) => name("resolve_artifact.name", &call.name),
            call::Call::DeleteArtifacts(call) => {
                names("delete_artifacts.names", &call.names, ARTIFACTS_PER_TASK)
            }
            call::Call::AddReference(call) => {
                name("add_reference.name", &call.name)?;
                name("add_reference.reference", &call.reference)
            }
            call::Call::RemoveReference(call) => {
                name("remove_reference.name", &call.name)?;
                name("remove_reference.reference", &call.reference)
            }
            call::Call::AcquirePermit(call) => name("acquire_permit.name", &call.name),
        }
    }
}

impl Validate for WorkerMessage {
    fn validate(&self) -> Result<(), WireError> {
        at_most("worker message", "bytes", self.encoded_len(), MESSAGE_BYTES)?;
        match &self.message {
            Some(worker_message::Message::Batch(batch)) => each("worker batch", &batch.messages, |message| {
                message.validate_alone()
            }),
            _ => self.validate_alone(),
        }
    }
}

impl WorkerMessage {
    /// Checks everything but the size.
    fn validate_alone(&self) -> Result<(), WireError> {
        use worker_message::Message;
        let message = self.message.as_ref().ok_or(WireError::EmptyMessage {
            message: "worker message",
        })?;
        match message {
            Message::Hello(hello) => hello.validate(),
            Message::Heartbeat(heartbeat) => at_most(
                "heartbeat.attempts",
                "entries",
                heartbeat.attempts.len(),
                ATTEMPTS_PER_WORKER,
            ),
            Message::Started(started) => identity("started.attempt_id", started.attempt_id),
            Message::Progress(progress) => {
                identity("progress.attempt_id", progress.attempt_id)?;
                opaque("progress.encoded", &progress.encoded)
            }
            Message::Succeeded(succeeded) => succeeded.validate(),
            Message::Failed(failed) => failed.validate(),
            Message::RecallAnswer(answer) => identity("recall_answer.attempt_id", answer.attempt_id),
            Message::Stopped(stopped) => identity("stopped.attempt_id", stopped.attempt_id),
            Message::DeviceChanged(change) => {
                name("device_changed.device_id", &change.device_id)?;
                text("device_changed.reason", &change.reason)
            }
            Message::Draining(draining) => text("draining.reason", &draining.reason),
            Message::Call(call) => call.validate(),
            // Only in a batch, where it must not be.
            Message::Batch(_) => Err(WireError::NotInBatch {
                message: "worker batch",
            }),
        }
    }
}

impl Validate for Assign {
    fn validate(&self) -> Result<(), WireError> {
        identity("assign.attempt_id", self.attempt_id)?;
        name("assign.job_id", &self.job_id)?;
        key(&self.artifact_prefix)?;
        name("assign.task_type", &self.task_type)?;
        // Empty in the control lane.
        at_most("assign.device_id", "bytes", self.device_id.len(), NAME_BYTES)?;
        artifacts("assign.inputs", &self.inputs)?;
        names("assign.outputs", &self.outputs, ARTIFACTS_PER_TASK)?;
        opaque("assign.parameters", &self.parameters)?;
        opaque("assign.plan", &self.plan)?;
        at_most(
            "assign.dependency_results",
            "entries",
            self.dependency_results.len(),
            ARTIFACTS_PER_TASK,
        )?;
        for result in &self.dependency_results {
            opaque("assign.dependency_results", result)?;
        }
        let total = self.dependency_results.iter().map(Vec::len).sum();
        at_most(
            "assign.dependency_results",
            "bytes",
            total,
            DEPENDENCY_RESULT_BYTES,
        )
    }
}

impl Validate for Answer {
    fn validate(&self) -> Result<(), WireError> {
        identity("answer.call_id", self.call_id)?;
        text("answer.error", &self.error)?;
        self.artifact.as_ref().map_or(Ok(()), Validate::validate)
    }
}

impl Validate for TaskResult {
    fn validate(&self) -> Result<(), WireError> {
        identity("task_result.call_id", self.call_id)?;
        name("task_result.request_id", &self.request_id)?;
        opaque("task_result.result", &self.result)?;
        text("task_result.failure", &self.failure)
    }
}

impl Validate for ChannelMessage {
    fn validate(&self) -> Result<(), WireError> {
        identity("channel_message.call_id", self.call_id)?;
        opaque("channel_message.payload", &self.payload)
    }
}

impl Validate for CoordinatorMessage {
    fn validate(&self) -> Result<(), WireError> {
        at_most("coordinator message", "bytes", self.encoded_len(), MESSAGE_BYTES)?;
        match &self.message {
            Some(coordinator_message::Message::Batch(batch)) => {
                each("coordinator batch", &batch.messages, |message| {
                    message.validate_alone()
                })
            }
            _ => self.validate_alone(),
        }
    }
}

impl CoordinatorMessage {
    /// Checks everything but the size.
    fn validate_alone(&self) -> Result<(), WireError> {
        use coordinator_message::Message;
        let message = self.message.as_ref().ok_or(WireError::EmptyMessage {
            message: "coordinator message",
        })?;
        match message {
            Message::Welcome(welcome) => {
                at_most("welcome.stop", "entries", welcome.stop.len(), ATTEMPTS_PER_WORKER)?;
                identity("welcome.heartbeat_interval_ms", welcome.heartbeat_interval_ms)
            }
            Message::Assign(assign) => assign.validate(),
            Message::Recall(recall) => identity("recall.attempt_id", recall.attempt_id),
            Message::Stop(stop) => {
                identity("stop.attempt_id", stop.attempt_id)?;
                text("stop.reason", &stop.reason)
            }
            Message::Acknowledged(acknowledged) => {
                identity("acknowledged.attempt_id", acknowledged.attempt_id)
            }
            Message::Answer(answer) => answer.validate(),
            Message::TaskResult(result) => result.validate(),
            Message::ChannelMessage(message) => message.validate(),
            Message::Heartbeat(_) => Ok(()),
            Message::Drain(drain) => text("drain.reason", &drain.reason),
            Message::NotLeader(other) => name("not_leader.address", &other.address),
            // Only in a batch, where it must not be.
            Message::Batch(_) => Err(WireError::NotInBatch {
                message: "coordinator batch",
            }),
        }
    }
}

#[cfg(test)]
mod tests;
