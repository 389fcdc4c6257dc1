//! Conversions between messages and plain values.

use crate::protocol::{
    Answer, Artifact, Assign, AttemptFailed, AttemptProgress, AttemptStarted, AttemptStopped,
    AttemptSucceeded, Call, ChannelMessage, CompletionAcknowledged, CoordinatorBatch, CoordinatorMessage,
    DeviceChanged, Drain, Draining, Heartbeat, HeartbeatAnswer, NotLeader, Recall, RecallAnswer, StopAttempt,
    TaskResult, Welcome, WorkerBatch, WorkerHello, WorkerMessage, coordinator_message, worker_message,
};
use crate::validate::WireError;

/// Bytes of a SHA-256 hash.
const SHA256_BYTES: usize = 32;

/// The bytes of a hash that is written as 64 hexadecimal digits.
///
/// # Errors
/// The text is not 64 hexadecimal digits.
pub fn sha256_bytes(text: &str) -> Result<[u8; SHA256_BYTES], WireError> {
    let mut bytes = [0; SHA256_BYTES];
    hex::decode_to_slice(text, &mut bytes).map_err(|source| WireError::MalformedHash {
        text: text.chars().take(2 * SHA256_BYTES).collect(),
        source,
    })?;
    Ok(bytes)
}

/// A name and what it is bound to.
#[must_use]
pub fn artifact(
    name: impl Into<String>,
    key: impl Into<String>,
    sha256: [u8; SHA256_BYTES],
    size_bytes: u64,
) -> Artifact {
    Artifact {
        name: name.into(),
        key: key.into(),
        sha256: hex::encode(sha256),
        size_bytes,
    }
}

impl Artifact {
    /// The bytes of its hash.
    ///
    /// # Errors
    /// The hash is not 64 hexadecimal digits.
    pub fn sha256_bytes(&self) -> Result<[u8; SHA256_BYTES], WireError> {
        sha256_bytes(&self.sha256)
    }
}

macro_rules! envelope {
    ($envelope:ident, $module:ident: $($message:ident => $variant:ident),* $(,)?) => {
        $(impl From<$message> for $envelope {
            fn from(message: $message) -> Self {
                Self { message: Some($module::Message::$variant(message)) }
            }
        })*
    };
}
envelope!(WorkerMessage, worker_message:
    WorkerHello => Hello,
    Heartbeat => Heartbeat,
    AttemptStarted => Started,
    AttemptProgress => Progress,
    AttemptSucceeded => Succeeded,
    AttemptFailed => Failed,
    RecallAnswer => RecallAnswer,
    AttemptStopped => Stopped,
    DeviceChanged => DeviceChanged,
    Draining => Draining,
    Call => Call,
    WorkerBatch => Batch,
);
envelope!(CoordinatorMessage, coordinator_message:
    Welcome => Welcome,
    Assign => Assign,
    Recall => Recall,
    StopAttempt => Stop,
    CompletionAcknowledged => Acknowledged,
    Answer => Answer,
    TaskResult => TaskResult,
    ChannelMessage => ChannelMessage,
    HeartbeatAnswer => Heartbeat,
    Drain => Drain,
    NotLeader => NotLeader,
    CoordinatorBatch => Batch,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_keeps_its_hash() {
        let hash = [0xab; 32];
        let message = artifact("proof", "jobs/a/proof", hash, 7);
        assert_eq!(message.sha256, "ab".repeat(32));
        assert_eq!(message.sha256_bytes().unwrap(), hash);
    }

    #[test]
    fn a_short_hash_is_refused_with_its_text() {
        let error = sha256_bytes("abcd").unwrap_err();
        assert!(error.to_string().contains("abcd"), "{error}");
    }
}
