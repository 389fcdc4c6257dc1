//! The limits of a log. Each is a bound on memory, on requests that are paid, or on the time to start again.

use std::time::Duration;

/// The limits and intervals of one log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Least time between the beginnings of two commits: each is a paid request. What is appended after a pause goes
    /// at once; what is appended meanwhile waits and goes as one object. A full object never waits.
    pub commit_interval: Duration,
    /// The most bytes of records in one object, their lengths included, and so of one record.
    pub object_bytes: usize,
    /// The most bytes that may wait for their commit, those in flight included.
    pub queue_bytes: usize,
    /// Bytes of one part of a checkpoint.
    pub part_bytes: usize,
    /// The most parts of one checkpoint.
    pub checkpoint_parts: usize,
    /// A checkpoint is due once so many objects follow the last one.
    pub checkpoint_due_objects: u64,
    /// A checkpoint is due once so many bytes follow the last one, or as many as that one has, if these are more.
    pub checkpoint_due_bytes: u64,
    /// The most objects that follow a checkpoint. At this limit commits wait for a checkpoint, so that starting again
    /// never takes longer than reading so many.
    pub max_objects: u64,
    /// Objects that are kept although a checkpoint covers them, so that followers which read on don't start again.
    pub retained_objects: u64,
    /// Requests that read ahead at once.
    pub parallel_reads: usize,
    /// Requests that delete at once.
    pub parallel_deletes: usize,
    /// Objects of unknown kind that one sweep below a checkpoint reads; the next sweep goes on.
    pub sweep_reads: usize,
    /// The most objects that one listing answers.
    pub listed_objects: usize,
    /// How often a follower at the end of the log looks whether a checkpoint passed it.
    pub relist_interval: Duration,
    /// A request without an answer counts as lost after this.
    pub request_timeout: Duration,
    /// Wait before a failed request is sent again; doubles with each failure.
    pub first_backoff: Duration,
    /// Bound of that doubling.
    pub longest_backoff: Duration,
    /// How often a damaged object is read again before the log counts as damaged: the damage may be on the way.
    pub damaged_reads: u32,
    /// How often a take-over may lose the race for the next object against others before it gives up.
    pub take_over_tries: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            commit_interval: Duration::from_millis(50),
            object_bytes: 4 << 20,
            queue_bytes: 64 << 20,
            part_bytes: 8 << 20,
            checkpoint_parts: 1_024,
            checkpoint_due_objects: 1_024,
            checkpoint_due_bytes: 64 << 20,
            max_objects: 4_096,
            retained_objects: 256,
            parallel_reads: 32,
            parallel_deletes: 4,
            sweep_reads: 256,
            listed_objects: 10_000,
            relist_interval: Duration::from_secs(30),
            request_timeout: Duration::from_secs(10),
            first_backoff: Duration::from_millis(100),
            longest_backoff: Duration::from_secs(5),
            damaged_reads: 3,
            take_over_tries: 100,
        }
    }
}
