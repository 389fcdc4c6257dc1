//! Every limit of the agent, with its unit and its reason.

use std::time::Duration;

/// Messages that wait for the agent's own loop. A sender waits when they are full.
pub(crate) const QUEUED_EVENTS: usize = 4_096;

/// Messages that wait to be sent to the coordinator. When they are full, the coordinator does not read any more:
/// the stream is given up and opened again. All that a new stream must carry at once fits: two messages for each
/// attempt that is held, and each pending call.
pub(crate) const QUEUED_MESSAGES: usize = 65_536;

/// Free places in the queue to the coordinator below which progress is dropped: what follows tells more.
pub(crate) const PLACES_KEPT_FROM_PROGRESS: usize = QUEUED_MESSAGES / 2;

/// Commands that wait to be read by a child. When they are full, the child counts as hung.
pub(crate) const QUEUED_COMMANDS: usize = 1_024;

/// Answers that wait to be read by a subscription or channel reader of a child. When they are full, its stream
/// ends with an error.
pub(crate) const QUEUED_ANSWERS: usize = 16_384;

/// Calls of attempts that wait for an answer of the coordinator.
pub(crate) const PENDING_CALLS: usize = 16_384;

/// Wait before a call that the coordinator can't take now is sent again.
pub(crate) const CALL_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Addresses of one name that are asked for a leader: as many as there are coordinators, and some.
pub(crate) const ADDRESSES: usize = 8;

/// Bytes of the file with the authorities that coordinators' certificates are signed by: hundreds of them.
pub(crate) const CA_BUNDLE_BYTES: u64 = 1 << 20;

/// Bytes of the file with the token.
pub(crate) const TOKEN_BYTES: u64 = 64 << 10;

/// Coordinators that may send a worker on to another one, in a row.
pub(crate) const LEADER_HOPS: u32 = 3;

/// How long connecting to the coordinator may take, the handshake with it.
pub(crate) const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// The same for a coordinator whose stream fell silent, while others may lead already.
pub(crate) const CONNECT_TO_SILENT_WITHIN: Duration = Duration::from_secs(2);

/// How long the coordinator may take to welcome a worker.
pub(crate) const WELCOME_WITHIN: Duration = Duration::from_secs(10);

/// Heartbeats without any word from the coordinator after which the stream counts as broken: a leader that was stopped
/// is left early enough to be with the next one before its reconnect grace of 10 s is over.
pub(crate) const SILENT_HEARTBEATS: u32 = 3;

/// Shortest silence that breaks a stream: a machine that is busy proving may be slow.
pub(crate) const SHORTEST_SILENCE: Duration = Duration::from_secs(5);

/// How long a silent stream is read once more before it counts as broken: the agent itself may have been starved.
pub(crate) const SILENCE_CONFIRMATION: Duration = Duration::from_millis(250);

/// First wait before the stream is opened again; doubles up to [`RECONNECT_LONGEST`], each with jitter.
pub(crate) const RECONNECT_FIRST: Duration = Duration::from_millis(100);

/// Longest wait before the stream is opened again: a new leader holds back what was there before until its workers are
/// back, at most for its reconnect grace of 10 s.
pub(crate) const RECONNECT_LONGEST: Duration = Duration::from_secs(2);

/// How long the supervisor in a backend's container may take to start its program.
pub(crate) const STARTED_WITHIN: Duration = Duration::from_secs(10);

/// How long a slot waits for the supervisor of its container before its device counts as unusable.
pub(crate) const ABSENT_AFTER: Duration = Duration::from_secs(10);

/// Commands to a supervisor, and its news, that wait to be read. It gets few: start, kill, shut down.
pub(crate) const QUEUED_SUPERVISOR_MESSAGES: usize = 16;

/// Supervisors of one slot that wait to be taken: a container that has just ended, and the one after it.
pub(crate) const QUEUED_SUPERVISORS: usize = 4;

/// How long a child may take from its start to its first word.
pub(crate) const HELLO_WITHIN: Duration = Duration::from_secs(60);

/// Starts in a row without a word of the child after which its device counts as unusable.
pub(crate) const FAILED_STARTS: u32 = 3;

/// First wait before a child is started again after a failed start; doubles up to [`RESTART_LONGEST`]. After a
/// crash it is started again at once.
pub(crate) const RESTART_FIRST: Duration = Duration::from_millis(200);

/// Longest wait before a child is started again.
pub(crate) const RESTART_LONGEST: Duration = Duration::from_secs(30);

/// How long a silent child is watched once more before it counts as hung: the agent itself may have been starved.
pub(crate) const HANG_CONFIRMATION: Duration = Duration::from_millis(500);

/// How long a child may take to end after its session ended, or the session after the child.
pub(crate) const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// How long a leaving agent waits for a supervisor that dials again: longer than its longest pause between two tries.
pub(crate) const DIALS_WITHIN: Duration = Duration::from_secs(3);

/// How long the kernel may take to end a killed process. One that waits for a broken driver may never end.
pub(crate) const REAP_WITHIN: Duration = Duration::from_secs(10);

/// How long a child may take to end when it is asked to.
pub(crate) const SHUTDOWN_WITHIN: Duration = Duration::from_millis(500);

/// How long a stopped attempt may take to leave its device. Then its child is killed if nothing else runs in it.
pub(crate) const STOP_WITHIN: Duration = Duration::from_secs(2);

/// How often memory and out-of-memory counters are sampled.
pub(crate) const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Lines of a child's output that are kept for failure messages.
pub(crate) const KEPT_LINES: usize = 20;

/// Bytes of a line of a child's output that are kept; the rest is cut.
pub(crate) const KEPT_LINE_BYTES: usize = 400;

/// Artifacts of one attempt that are transferred at once.
pub(crate) const TRANSFERS_AT_ONCE: usize = 4;

/// Tries to fetch an input, each with the store's own retries in it. Then the attempt fails.
pub(crate) const FETCH_TRIES: u32 = 3;

/// How long an upload is tried again: what it holds took long to prove.
pub(crate) const UPLOAD_PATIENCE: Duration = Duration::from_secs(300);

/// First wait before a transfer is tried again; doubles up to [`TRANSFER_LONGEST`].
pub(crate) const TRANSFER_FIRST: Duration = Duration::from_millis(200);

/// Longest wait before a transfer is tried again.
pub(crate) const TRANSFER_LONGEST: Duration = Duration::from_secs(10);

/// How long a leaving worker waits for acknowledgements after its drain time is over.
pub(crate) const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// Bytes of a socket's path: the kernel allows 108 with the zero at its end.
pub(crate) const SOCKET_PATH_BYTES: usize = 100;

// A new stream must never be given up for what it has to carry at once.
const _: () = assert!(QUEUED_MESSAGES > 2 * prover_wire::limits::ATTEMPTS_PER_WORKER + PENDING_CALLS);
