//! What can go wrong with a log, each with a metric label and whether trying again helps.

use std::sync::Arc;

pub use prover_artifacts::Retry;
use prover_artifacts::StoreError;

use crate::model::Index;

/// Why a log can't be opened, read or taken over.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The store refused something that trying again doesn't help. One that ignores conditional creation is refused so.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// The same, as the pure machine was told it.
    #[error("the store refuses `{key}`: {problem}")]
    Refused {
        /// The object.
        key: String,
        /// The category of the store's error.
        category: &'static str,
        /// What the store said.
        problem: String,
    },
    /// An object's bytes are not those that were written.
    #[error(
        "the object `{key}` of the log is damaged: {problem}. Restore it from a backup or an older version of the \
         object; without it the jobs of this cluster can't be recovered"
    )]
    Damaged {
        /// The object.
        key: String,
        /// How that was found.
        problem: String,
    },
    /// An object is missing although later ones are there and no checkpoint covers it.
    #[error(
        "the object `{key}` of the log is missing, though later ones are there. Restore it; only prover-operator may \
         delete objects below its prefix (no lifecycle rule may)"
    )]
    Missing {
        /// The object.
        key: String,
    },
    /// An object is of a format that this version doesn't know.
    #[error(
        "the object `{key}` of the log was written by a newer version (format {found}, known is {known}): upgrade"
    )]
    NewerFormat {
        /// The object.
        key: String,
        /// Its format.
        found: u8,
        /// The newest that this version knows.
        known: u8,
    },
    /// Objects contradict each other, as when two clusters use one prefix or an old backup was restored beside newer
    /// objects.
    #[error(
        "the object `{key}` of the log contradicts those before it: {problem}. Does another cluster use this prefix?"
    )]
    Contradiction {
        /// The object.
        key: String,
        /// What contradicts what.
        problem: String,
    },
    /// Others were faster again and again.
    #[error("other writers were faster {tries} times in a row: another replica leads or takes over")]
    Contended {
        /// How often.
        tries: u32,
    },
    /// This follower has become the leader, or was fenced as one: open a new one.
    #[error("this follower has taken over before: open another one to follow again")]
    Spent,
    /// The task that works for this log is gone, as when the process shuts down.
    #[error("the log has stopped: this process is shutting down")]
    Stopped,
}

impl LogError {
    /// The metric label of this error: a fixed, small set.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Store(error) => error.category(),
            Self::Refused { category, .. } => category,
            Self::Damaged { .. } => "damaged",
            Self::Missing { .. } => "missing",
            Self::NewerFormat { .. } => "newer_format",
            Self::Contradiction { .. } => "contradiction",
            Self::Contended { .. } => "contended",
            Self::Spent => "spent",
            Self::Stopped => "stopped",
        }
    }

    /// Whether the same call may succeed later.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Store(error) => error.retry(),
            Self::Contended { .. } => Retry::Backoff,
            Self::Refused { .. }
            | Self::Damaged { .. }
            | Self::Missing { .. }
            | Self::NewerFormat { .. }
            | Self::Contradiction { .. }
            | Self::Spent
            | Self::Stopped => Retry::Never,
        }
    }
}

impl PartialEq for LogError {
    fn eq(&self, other: &Self) -> bool {
        // Causes of the operating system can't be compared; what is told of them can.
        self.category() == other.category() && self.to_string() == other.to_string()
    }
}

impl Eq for LogError {}

/// Why records were not taken. None of them was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The store doesn't keep up or is away, and enough waits already.
    #[error(
        "{queued} bytes of records wait for the log already, {more} more would pass the limit of {limit}"
    )]
    QueueFull {
        /// Bytes that wait.
        queued: usize,
        /// Bytes that were refused.
        more: usize,
        /// The limit.
        limit: usize,
    },
    /// A record doesn't fit into an object.
    #[error("a record of {bytes} bytes is larger than the limit of {limit}")]
    RecordTooLarge {
        /// Its size, its length included.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Another leader follows.
    #[error("another leader with epoch {epoch} follows: this one must stop")]
    Fenced {
        /// Its epoch.
        epoch: u64,
    },
    /// The log has failed for good.
    #[error("the log has failed: {0}")]
    Failed(Arc<LogError>),
    /// This machine does not lead.
    #[error("only a leader appends")]
    NotLeading,
}

impl AppendError {
    /// The metric label of this error.
    pub fn category(&self) -> &'static str {
        match self {
            Self::QueueFull { .. } => "queue_full",
            Self::RecordTooLarge { .. } => "record_too_large",
            Self::Fenced { .. } => "fenced",
            Self::Failed(_) => "failed",
            Self::NotLeading => "not_leading",
        }
    }

    /// Whether the same call may succeed later.
    pub fn retry(&self) -> Retry {
        match self {
            Self::QueueFull { .. } => Retry::Backoff,
            Self::RecordTooLarge { .. } | Self::Fenced { .. } | Self::Failed(_) | Self::NotLeading => {
                Retry::Never
            }
        }
    }
}

/// Why a checkpoint was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// One is being written.
    #[error("a checkpoint is being written already")]
    Running,
    /// It has more parts than allowed.
    #[error("a checkpoint of {parts} parts is larger than the limit of {limit}")]
    TooLarge {
        /// Its parts.
        parts: usize,
        /// The limit.
        limit: usize,
    },
    /// A record doesn't fit into a part.
    #[error("a record of {bytes} bytes is larger than the limit of {limit}")]
    RecordTooLarge {
        /// Its size, its length included.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// It covers more than was appended, or less than the last one does.
    #[error("a checkpoint through {through:?} is not between {least:?} and {most:?}")]
    OutOfRange {
        /// What was asked for.
        through: Index,
        /// The last checkpoint.
        least: Index,
        /// The last append.
        most: Index,
    },
    /// Another leader follows, the log has failed, or this machine never led.
    #[error("only a leader writes checkpoints")]
    NotLeading,
}

impl CheckpointError {
    /// The metric label of this error.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::TooLarge { .. } => "too_large",
            Self::RecordTooLarge { .. } => "record_too_large",
            Self::OutOfRange { .. } => "out_of_range",
            Self::NotLeading => "not_leading",
        }
    }

    /// Whether the same call may succeed later.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Running => Retry::Backoff,
            Self::TooLarge { .. }
            | Self::RecordTooLarge { .. }
            | Self::OutOfRange { .. }
            | Self::NotLeading => Retry::Never,
        }
    }
}
