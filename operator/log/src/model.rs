//! What crosses the border of the log: indexes, what is replayed, progress.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::error::LogError;

/// How many records this leader has appended, up to and including one: the first record has index 1, 0 means none.
/// Counts from 0 again in each epoch; never compare those of different appenders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Index(pub u64);

/// Tells the objects of one writer from those of all others. Random, and used by one [`Machine`](crate::Machine) only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriterId(pub u128);

/// What a reader of the log gets, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replayed {
    /// Forget everything; these records say what is so at this point. A follower that fell behind gets it again.
    Checkpoint {
        /// The epoch of the leader that wrote it.
        epoch: u64,
        /// The leader's records, in its order.
        records: Vec<Bytes>,
    },
    /// What one object adds. The beginning of an epoch is one without records.
    Entry {
        /// The object's place in the log.
        sequence: u64,
        /// The epoch of its leader; it never falls, except after a `Checkpoint`.
        epoch: u64,
        /// The records, in the order in which they were appended.
        records: Vec<Bytes>,
    },
}

/// What a machine does now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Reads; has not been at the end since it was asked to catch up.
    Reading,
    /// Has read everything that was there when it looked last.
    CaughtUp,
    /// Appends its epoch, or makes sure that no checkpoint passed it meanwhile.
    TakingOver,
    /// Appends.
    Leading {
        /// Its epoch.
        epoch: u64,
    },
    /// Another leader follows; nothing more will be committed here.
    Fenced {
        /// The epoch of the object that lies where this leader wanted to write.
        epoch: u64,
    },
    /// Something is wrong that no later try can mend.
    Failed(Arc<LogError>),
}

/// How the log of a leader does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum State {
    /// The last request succeeded, or there was none yet.
    #[default]
    Healthy,
    /// The store refuses or doesn't answer; the same is tried again and again, and what is appended waits.
    Retrying {
        /// When the first of these failures was, on the clock that the machine is given.
        since: Duration,
        /// What the store said last.
        error: Arc<str>,
    },
    /// Another leader follows. What is not committed by now may or may not have been; the log of the new leader says.
    Fenced {
        /// The epoch of the other leader.
        epoch: u64,
    },
    /// Something is wrong that no later try can mend: a damaged object, or one of a newer version.
    Failed {
        /// What is wrong.
        error: Arc<LogError>,
    },
}

/// How far a leader's log is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// All records up to this one are in the log for good.
    pub committed: Index,
    /// All records up to this one are covered by a complete checkpoint of this leader.
    pub checkpointed: Index,
    /// Whether the log has grown enough for a checkpoint, and none is being written.
    pub checkpoint_due: bool,
    /// What the store said last to the requests of the running checkpoint, if it refuses or doesn't answer. Only at
    /// [`Limits::max_objects`](crate::Limits::max_objects) do commits wait for it.
    pub checkpoint_error: Option<Arc<str>>,
    /// How the log does.
    pub state: State,
}
