//! What both ends of the worker plane refuse to pass, each limit with its reason.

/// Largest encoded message in bytes. Bulk goes through the store, so this bounds what one peer can make the
/// other hold in memory.
pub const MESSAGE_BYTES: usize = 4 << 20;

/// Messages in one batch: as many as a turn of the coordinator makes, and few enough to be checked at once.
pub const MESSAGES_PER_BATCH: usize = 256;

/// Bytes of the messages in one batch: well below the largest message, so that what follows does not wait for long.
pub const BATCH_BYTES: usize = 256 << 10;

/// Largest opaque field in bytes: parameters, results, channel messages. As in the backend protocol.
pub const OPAQUE_BYTES: usize = 64 << 10;

/// Largest batch of submitted tasks in bytes, encoded. Backends split what is larger.
pub const SUBMISSION_BYTES: usize = 2 << 20;

/// Tasks in one submission, checked by whoever decodes it.
pub const TASKS_PER_SUBMISSION: usize = 8_192;

/// Tasks of one subscription. As in the backend protocol.
pub const TASKS_PER_SUBSCRIPTION: usize = 8_192;

/// Inputs, outputs, dependency results or names in one message. As in the backend protocol.
pub const ARTIFACTS_PER_TASK: usize = 4_096;

/// Bytes of all dependency results of one assignment together.
pub const DEPENDENCY_RESULT_BYTES: usize = 3 << 20;

/// Bytes of a name: artifact, reference, request id, task type, device, worker.
pub const NAME_BYTES: usize = 512;

/// Bytes of a store key: S3's own limit.
pub const KEY_BYTES: usize = 1_024;

/// Bytes of a text for people: reasons and messages. Longer ones are cut where they are made.
pub const TEXT_BYTES: usize = 16 << 10;

/// Devices of one worker.
pub const DEVICES_PER_WORKER: usize = 64;

/// Attempts that one device takes at once.
pub const ATTEMPTS_PER_DEVICE: u32 = 1_024;

/// Attempts that one worker holds at once, those waiting for an acknowledgement among them.
pub const ATTEMPTS_PER_WORKER: usize = 16_384;

/// Bytes of a backend's description of itself.
pub const BACKEND_DESCRIPTION_BYTES: usize = 256 << 10;

/// Longest text that is sent as a reason or message: `text` cut at a character boundary.
#[must_use]
pub fn cut_text(text: &str) -> String {
    const MARK: &str = "...";
    if text.len() <= TEXT_BYTES {
        return text.to_owned();
    }
    let mut end = TEXT_BYTES - MARK.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{MARK}", &text[..end])
}
