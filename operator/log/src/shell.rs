//! Runs the machine over an artifact store.

use std::sync::Arc;

use bytes::Bytes;
use prover_artifacts::{ArtifactStore, Prefix, StoreOptions};
use tokio::sync::watch;

use crate::error::{AppendError, CheckpointError, LogError};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::model::{Index, Progress, Replayed};

/// The options for a store of its own that a log wants: no retries inside one request, since the machine tries again
/// itself and tells so; no longer wait for an answer than the machine waits.
pub fn store_options(_options: StoreOptions, _limits: &Limits) -> StoreOptions {
    unimplemented!()
}

/// Reads a log on and takes it over.
#[derive(Debug)]
pub struct Follower {}

/// What a take-over gives.
#[derive(Debug)]
pub struct TakenOver {
    /// Writes the log from now on.
    pub appender: Appender,
    /// The epoch, higher than all before.
    pub epoch: u64,
    /// What was read since the last `catch_up`.
    pub replayed: Vec<Replayed>,
}

/// Writes a log as its leader. Cloning it gives another handle of the same; dropping the last one (and the follower)
/// stops the work.
#[derive(Debug, Clone)]
pub struct Appender {}

impl Follower {
    /// Opens the log below a prefix. A store that can't be written or ignores conditional creation is refused.
    pub async fn open(
        _store: Arc<dyn ArtifactStore>,
        _prefix: Prefix,
        _limits: Limits,
    ) -> Result<Self, LogError> {
        unimplemented!()
    }

    /// Reads to the end of the log and answers what was read, from the newest checkpoint on the first time. While the
    /// store is away it tries on: `progress` tells so. Nothing is lost if the call is dropped.
    pub async fn catch_up(&mut self) -> Result<Vec<Replayed>, LogError> {
        unimplemented!()
    }

    /// Reads to the end, appends the next epoch and becomes the leader. A call that is dropped goes on in the next one.
    pub async fn take_over(&mut self) -> Result<TakenOver, LogError> {
        unimplemented!()
    }

    /// How the reading does.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        unimplemented!()
    }

    /// What this log did so far.
    pub fn metrics(&self) -> Metrics {
        unimplemented!()
    }
}

impl Appender {
    /// Takes records for commit, in order; answers the index of the last one. All of them or none are taken; those of
    /// one call are committed together if they fit into one object. Never waits.
    pub fn append<R: AsRef<[u8]>>(&self, _records: &[R]) -> Result<Index, AppendError> {
        unimplemented!()
    }

    /// Takes a checkpoint: records that say the same as everything before this epoch and all records up to `through`.
    /// It is written in the background; `Progress::checkpointed` tells when it is complete.
    pub fn checkpoint(&self, _records: Vec<Bytes>, _through: Index) -> Result<(), CheckpointError> {
        unimplemented!()
    }

    /// How far the log is; changes with every commit.
    pub fn committed(&self) -> watch::Receiver<Progress> {
        unimplemented!()
    }

    /// The epoch of this leader.
    pub fn epoch(&self) -> u64 {
        unimplemented!()
    }

    /// What this log did so far.
    pub fn metrics(&self) -> Metrics {
        unimplemented!()
    }
}
