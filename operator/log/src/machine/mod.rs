//! The protocol as a pure state machine.

use std::time::Duration;

use bytes::Bytes;

use crate::error::{AppendError, CheckpointError, LogError};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::model::{Index, Phase, Progress, Replayed, WriterId};
use crate::request::{Answer, Request, RequestId};

/// The protocol of one reader or leader: answers of the store in, requests to the store out. `now` is the time since
/// any fixed moment and never falls.
#[derive(Debug)]
pub struct Machine {}

impl Machine {
    /// A machine that reads from the newest checkpoint on. Two machines never share a writer id.
    pub fn new(_writer: WriterId, _limits: Limits) -> Self {
        Self {}
    }

    /// Reads on to the end, once. The phase is `CaughtUp` when that is done.
    pub fn catch_up(&mut self) {
        unimplemented!()
    }

    /// Reads on to the end and appends the next epoch. The phase is `Leading` when that is done. One that gives up
    /// (`Contended`) is `CaughtUp` or `Reading` again.
    pub fn take_over(&mut self) {
        unimplemented!()
    }

    /// Goes back to reading, unless it leads already.
    pub fn give_up_taking_over(&mut self) {
        unimplemented!()
    }

    /// Takes what the store answered. Unknown ids (late and repeated answers) change nothing.
    pub fn answer(&mut self, _id: RequestId, _answer: Answer, _now: Duration) {
        unimplemented!()
    }

    /// The requests to send now. Call it after every other call and at `wake_at`.
    pub fn poll(&mut self, _now: Duration) -> Vec<Request> {
        unimplemented!()
    }

    /// When to call `poll` again if nothing else happens before.
    pub fn wake_at(&self) -> Option<Duration> {
        unimplemented!()
    }

    /// What was read since the last call, in order.
    pub fn take_replayed(&mut self) -> Vec<Replayed> {
        unimplemented!()
    }

    /// Takes records for commit, in order; answers the index of the last one. All of them or none are taken; those of
    /// one call are committed together if they fit into one object.
    pub fn append<R: AsRef<[u8]>>(&mut self, _records: &[R]) -> Result<Index, AppendError> {
        unimplemented!()
    }

    /// Takes a checkpoint: records that say the same as all up to `through`. It is written once these are committed;
    /// afterwards everything that it covers is deleted, except the beginnings of epochs.
    pub fn checkpoint(&mut self, _records: Vec<Bytes>, _through: Index) -> Result<(), CheckpointError> {
        unimplemented!()
    }

    /// What the machine does now.
    pub fn phase(&self) -> Phase {
        unimplemented!()
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        unimplemented!()
    }

    /// What ended the last `take_over` without success, once.
    pub fn take_refusal(&mut self) -> Option<LogError> {
        unimplemented!()
    }

    /// What it did so far.
    pub fn metrics(&self) -> &Metrics {
        unimplemented!()
    }
}
