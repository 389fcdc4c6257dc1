//! What the log says so far: kept by a coordinator that follows, so that it can take over at once.

use bytes::Bytes;
use prover_core::{Fact, Limits, RecoveryError, Replay, Timestamp};
use prover_log::Replayed;

use crate::engine::{Engine, EngineParts};
use crate::remembered::{Memory, Record, RecordError};

/// Why records add up to nothing. Never worth a retry.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// A record can't be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A fact contradicts those before it.
    #[error("the log contradicts itself: {0}")]
    Fact(#[from] RecoveryError),
}

impl ReplicaError {
    /// Short name for metrics.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            ReplicaError::Record(RecordError::Newer { .. }) => "newer_record",
            ReplicaError::Record(_) => "unreadable_record",
            ReplicaError::Fact(error) => error.category(),
        }
    }
}

/// A copy of what the leader must not forget.
#[derive(Debug)]
pub struct Replica {
    limits: Limits,
    replay: Replay,
    memory: Memory,
}

impl Replica {
    /// Nothing known yet.
    #[must_use]
    pub fn new(limits: Limits) -> Replica {
        Replica {
            replay: Replay::new(limits.clone()),
            memory: Memory::default(),
            limits,
        }
    }

    /// What was read from the log.
    ///
    /// # Errors
    /// The replica is of no use any more.
    pub fn apply(&mut self, replayed: Replayed) -> Result<(), ReplicaError> {
        let records: Vec<Bytes> = match replayed {
            Replayed::Checkpoint { records, .. } => {
                *self = Replica::new(self.limits.clone());
                records
            }
            Replayed::Entry { records, .. } => records,
        };
        for record in records {
            self.record(Record::decode(&record)?)?;
        }
        Ok(())
    }

    /// The next record.
    ///
    /// # Errors
    /// The replica is of no use any more.
    pub fn record(&mut self, record: Record) -> Result<(), ReplicaError> {
        match record {
            Record::Core(fact) => self.fact(fact)?,
            Record::Shell(fact) => self.memory.shell(fact),
        }
        Ok(())
    }

    fn fact(&mut self, fact: Fact) -> Result<(), RecoveryError> {
        self.memory.core(&fact);
        self.replay.apply(fact)
    }

    /// Goes on from here as the leader, in the epoch of `parts`, which is higher than all before.
    ///
    /// # Errors
    /// What is known makes no state.
    pub fn lead(self, parts: EngineParts) -> Result<Engine, ReplicaError> {
        let now = Timestamp(parts.clock.now_milliseconds());
        let state = self.replay.finish(parts.epoch, now)?;
        Ok(Engine::recovered(parts, state, self.memory))
    }
}
