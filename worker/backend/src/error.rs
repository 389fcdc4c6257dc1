//! Errors: what an attempt may fail with, and what a call to the agent may be answered with.

use std::path::Path;

use crate::limits::MAX_FAILURE_MESSAGE_BYTES;
use crate::protocol::{AttemptFailed, ExecutionReport, FailureClass};

/// Why an attempt failed. The class decides what happens next; the message is shown to the user.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct TaskError {
    /// What happens next.
    pub class: FailureClass,
    /// Short CamelCase word, such as `GuestPanicked`.
    pub reason: String,
    /// What was wrong, where, and what to do.
    pub message: String,
    /// What executing the program told before it failed.
    pub execution: Option<Box<ExecutionReport>>,
}

impl TaskError {
    fn new(class: FailureClass, reason: impl Into<String>, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MAX_FAILURE_MESSAGE_BYTES {
            let mut end = MAX_FAILURE_MESSAGE_BYTES - " ...".len();
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            message.push_str(" ...");
        }
        Self {
            class,
            reason: reason.into(),
            message,
            execution: None,
        }
    }

    /// May succeed elsewhere or later.
    pub fn retryable(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(FailureClass::Retryable, reason, message)
    }

    /// Needs a larger device, or the job a smaller segment.
    pub fn out_of_memory(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(FailureClass::OutOfMemory, reason, message)
    }

    /// Will fail everywhere.
    pub fn fatal(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(FailureClass::Fatal, reason, message)
    }

    /// The user's program or input is at fault.
    pub fn invalid_input(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(FailureClass::InvalidInput, reason, message)
    }

    /// An artifact that the attempt read was missing or damaged.
    pub fn artifact(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(FailureClass::Artifact, reason, message)
    }

    /// A file of the attempt could not be read or written: `action` is such as "write the receipt".
    pub fn file(action: &str, path: &Path, error: &std::io::Error) -> Self {
        let message = format!("could not {action} ({}): {error}", path.display());
        match error.kind() {
            std::io::ErrorKind::NotFound => Self::artifact("FileMissing", message),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::retryable(
                "WorkDirectoryFull",
                format!(
                    "{message}. Make room in the worker's work directory or lower the number of attempts at once"
                ),
            ),
            std::io::ErrorKind::OutOfMemory => Self::out_of_memory("OutOfHostMemory", message),
            _ => Self::retryable("FileError", message),
        }
    }

    /// Adds what executing the program told.
    #[must_use]
    pub fn with_execution(mut self, execution: ExecutionReport) -> Self {
        self.execution = Some(Box::new(execution));
        self
    }

    /// Label for metrics.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self.class {
            FailureClass::Unspecified => "unspecified",
            FailureClass::Retryable => "retryable",
            FailureClass::OutOfMemory => "out_of_memory",
            FailureClass::Fatal => "fatal",
            FailureClass::InvalidInput => "invalid_input",
            FailureClass::Artifact => "artifact",
        }
    }

    /// Whether another attempt may succeed.
    #[must_use]
    pub fn retry(&self) -> bool {
        matches!(
            self.class,
            FailureClass::Retryable | FailureClass::OutOfMemory | FailureClass::Artifact
        )
    }

    /// The event that tells the agent.
    #[must_use]
    pub fn into_event(self, attempt_id: u64) -> AttemptFailed {
        AttemptFailed {
            attempt_id,
            class: self.class.into(),
            message: self.message,
            reason: self.reason,
            execution: self.execution.map(|execution| *execution),
        }
    }
}

/// How the agent answered a call of an attempt, where it did not go well.
///
/// The gRPC status codes that stand for these are part of the protocol; the agent makes its statuses with
/// [`CallError::into_status`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The attempt's lease is lost or its job is over: the attempt must end. `ABORTED`.
    #[error("the attempt has lost its lease: {0}")]
    LeaseLost(String),
    /// The attempt was stopped while the call was under way. Never crosses the socket.
    #[error("the attempt was stopped")]
    Stopped,
    /// Nothing has this name. `NOT_FOUND`.
    #[error("{0}")]
    NotFound(String),
    /// The call breaks a rule of the protocol. `INVALID_ARGUMENT`.
    #[error("{0}")]
    InvalidArgument(String),
    /// A named limit was passed. `RESOURCE_EXHAUSTED`.
    #[error("{0}")]
    LimitExceeded(String),
    /// The agent can't reach the coordinator or the store now. `UNAVAILABLE`.
    #[error("{0}")]
    Unavailable(String),
    /// Bytes of an artifact are not what their hash says. `DATA_LOSS`.
    #[error("{0}")]
    Damaged(String),
    /// The store refuses for good: no space, not writable. `FAILED_PRECONDITION`; the message opens with the
    /// reason (`StoreFull`, `StoreNotWritable`) and a colon.
    #[error("{0}")]
    Store(String),
    /// Anything else. `INTERNAL`.
    #[error("{0}")]
    Internal(String),
}

impl CallError {
    /// Label for metrics.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::LeaseLost(_) => "lease_lost",
            Self::Stopped => "stopped",
            Self::NotFound(_) => "not_found",
            Self::InvalidArgument(_) => "invalid_argument",
            Self::LimitExceeded(_) => "limit_exceeded",
            Self::Unavailable(_) => "unavailable",
            Self::Damaged(_) => "damaged",
            Self::Store(_) => "store",
            Self::Internal(_) => "internal",
        }
    }

    /// Whether the same call may go well later.
    #[must_use]
    pub fn retry(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Damaged(_))
    }

    /// Whether the attempt must end.
    #[must_use]
    pub fn ends_attempt(&self) -> bool {
        matches!(self, Self::LeaseLost(_) | Self::Stopped)
    }

    /// The status by which an agent answers.
    #[must_use]
    pub fn into_status(self) -> tonic::Status {
        match self {
            Self::LeaseLost(message) => tonic::Status::aborted(message),
            Self::Stopped => tonic::Status::cancelled("the attempt was stopped"),
            Self::NotFound(message) => tonic::Status::not_found(message),
            Self::InvalidArgument(message) => tonic::Status::invalid_argument(message),
            Self::LimitExceeded(message) => tonic::Status::resource_exhausted(message),
            Self::Unavailable(message) => tonic::Status::unavailable(message),
            Self::Damaged(message) => tonic::Status::data_loss(message),
            Self::Store(message) => tonic::Status::failed_precondition(message),
            Self::Internal(message) => tonic::Status::internal(message),
        }
    }
}

impl From<tonic::Status> for CallError {
    fn from(status: tonic::Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            tonic::Code::Aborted => Self::LeaseLost(message),
            tonic::Code::Cancelled => Self::Stopped,
            tonic::Code::NotFound => Self::NotFound(message),
            tonic::Code::InvalidArgument | tonic::Code::OutOfRange => Self::InvalidArgument(message),
            tonic::Code::ResourceExhausted => Self::LimitExceeded(message),
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => Self::Unavailable(message),
            tonic::Code::DataLoss => Self::Damaged(message),
            tonic::Code::FailedPrecondition => Self::Store(message),
            code => Self::Internal(format!("{code:?}: {message}")),
        }
    }
}

impl From<CallError> for TaskError {
    fn from(error: CallError) -> Self {
        let message = error.to_string();
        match error {
            CallError::LeaseLost(_) | CallError::Stopped => Self::retryable("LeaseLost", message),
            CallError::NotFound(_) => Self::artifact("NotFound", message),
            CallError::Damaged(_) => Self::artifact("ArtifactDamaged", message),
            CallError::InvalidArgument(_) => Self::fatal("InvalidCall", message),
            CallError::LimitExceeded(_) => Self::fatal("LimitExceeded", message),
            CallError::Unavailable(_) => Self::retryable("Unavailable", message),
            CallError::Store(_) => {
                let reason = message
                    .split(':')
                    .next()
                    .filter(|word| crate::validate::is_reason(word));
                Self::fatal(reason.unwrap_or("StoreRefused").to_owned(), message.clone())
            }
            CallError::Internal(_) => Self::retryable("AgentFault", message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_errors_cross_the_socket_and_stay_what_they_are() {
        let text = || "words".to_owned();
        for error in [
            CallError::LeaseLost(text()),
            CallError::Stopped,
            CallError::NotFound(text()),
            CallError::InvalidArgument(text()),
            CallError::LimitExceeded(text()),
            CallError::Unavailable(text()),
            CallError::Damaged(text()),
            CallError::Store(text()),
        ] {
            assert_eq!(CallError::from(error.clone().into_status()), error);
        }
        let internal = CallError::from(CallError::Internal(text()).into_status());
        assert!(matches!(internal, CallError::Internal(_)));
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let error = TaskError::fatal("Long", "ü".repeat(MAX_FAILURE_MESSAGE_BYTES));
        assert!(error.message.len() <= MAX_FAILURE_MESSAGE_BYTES);
        assert!(error.message.ends_with("ü ..."));
    }

    #[test]
    fn a_full_disk_and_a_missing_file_are_told_apart() {
        let of = |kind: std::io::ErrorKind| TaskError::file("read", Path::new("/x"), &kind.into());
        assert_eq!(of(std::io::ErrorKind::NotFound).class, FailureClass::Artifact);
        assert_eq!(of(std::io::ErrorKind::StorageFull).reason, "WorkDirectoryFull");
        assert_eq!(
            of(std::io::ErrorKind::OutOfMemory).class,
            FailureClass::OutOfMemory
        );
        assert!(of(std::io::ErrorKind::PermissionDenied).retry());
    }
}
