//! The named limits of the protocol. Passing one is a typed refusal on either side.

use std::time::Duration;

/// Largest message in either direction, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Largest `SubmitTasks` request in bytes; smaller than a message, because the agent sends it on in an envelope.
/// [`Attempt::submit_tasks`](crate::Attempt::submit_tasks) splits what is larger.
pub const MAX_SUBMISSION_BYTES: usize = 2 * 1024 * 1024;

/// Largest opaque `bytes` field: results, parameters, channel messages.
pub const MAX_OPAQUE_BYTES: usize = 64 * 1024;

/// Longest name of an artifact, task type, request id or reference, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// Longest key of the action cache, in bytes.
pub const MAX_CACHE_KEY_BYTES: usize = 512;

/// Longest failure message, in bytes; what is longer is cut.
pub const MAX_FAILURE_MESSAGE_BYTES: usize = 8 * 1024;

/// Longest reason of a failure, in bytes.
pub const MAX_REASON_BYTES: usize = 64;

/// Longest message about a kind of proof that is not offered, in bytes.
pub const MAX_WITHHELD_MESSAGE_BYTES: usize = 1024;

/// Most inputs, outputs or dependencies of one task.
pub const MAX_TASK_ARTIFACTS: usize = 4096;

/// Most task types, proof offers and kinds of proof that are not offered, of one backend.
pub const MAX_DECLARATIONS: usize = 64;

/// Most attempts in device slots of one backend process.
pub const MAX_ATTEMPTS_AT_ONCE: u32 = 64;

/// Most attempts of the control lane in one backend process; they take no device slot.
pub const MAX_CONTROL_ATTEMPTS: usize = 256;

/// Silence after which a child counts as hung, where its backend does not say.
pub const DEFAULT_HANG_AFTER: Duration = Duration::from_secs(30);

/// Shortest silence that a backend may declare as a hang.
pub const MIN_HANG_AFTER: Duration = Duration::from_millis(500);

/// Pulses sent within the time after which silence counts as a hang.
pub const PULSES_PER_HANG_TIME: u32 = 6;

/// How long a backend tries to reach the socket of its agent before it gives up.
pub const CONNECT_WINDOW: Duration = Duration::from_secs(10);

/// Pause between two tries to reach the agent.
pub const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// How long a backend waits for the agent's welcome.
pub const WELCOME_WITHIN: Duration = Duration::from_secs(10);

/// Events that wait for the agent to read them; a sender waits when they are full.
pub const MAX_QUEUED_EVENTS: usize = 1024;

/// Subscription streams that [`InFlight`](crate::InFlight) keeps open before it joins them into one.
pub const MAX_SUBSCRIPTION_STREAMS: usize = 8;

/// Request ids of one subscription.
pub const MAX_SUBSCRIBED_TASKS: usize = 8192;

/// Pause before a subscription that the agent ended early is made again.
pub const SUBSCRIBE_PAUSE: Duration = Duration::from_millis(200);

/// Largest proof file that `verify` reads, in bytes.
pub const MAX_PROOF_FILE_BYTES: u64 = 1024 * 1024 * 1024;
