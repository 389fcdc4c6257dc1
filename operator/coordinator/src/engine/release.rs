//! Jobs that users have deleted: which of what they made must stay, since other jobs read it.
//!
//! Owns when that may be said. Does not own the deletes: whoever asked sweeps the job's prefix, and the core deletes what
//! stays with its last name.

use std::sync::Arc;

use prover_artifacts::Prefix;
use tokio::sync::oneshot;

use super::Engine;
use super::durable::Held;
use crate::command::Released;
use crate::error::ReleaseError;

/// Keys of one job that are told as held by others: as many as a large job has tasks.
pub(crate) const HELD_KEYS: usize = 1 << 16;

/// A job whose attempts have not all left yet.
#[derive(Debug)]
pub(super) struct Releasing {
    uid: Arc<str>,
    prefix: Prefix,
    reply: oneshot::Sender<Released>,
}

impl Engine {
    /// Forgets a job whose object is gone, and answers once none of its attempts can write any more.
    pub(super) fn release(&mut self, uid: Arc<str>, prefix: Prefix, reply: oneshot::Sender<Released>) {
        self.cancel(&uid);
        let known = self.state.job_by_uid(&uid);
        // One that was forgotten before may still have attempts on their way out.
        if known.is_some_and(|job| self.jobs.contains_key(&job)) {
            self.forget(&uid);
        }
        self.releasing.push(Releasing { uid, prefix, reply });
    }

    /// Answers about released jobs that are forgotten. An action cache that still knew one could give away what
    /// was said to be held by nobody, so the log must have that first: also a later leader knows nothing of it then.
    pub(super) fn answer_releases(&mut self) {
        if self.releasing.is_empty() {
            return;
        }
        let mut waiting = Vec::new();
        for releasing in std::mem::take(&mut self.releasing) {
            if releasing.reply.is_closed() {
                continue;
            }
            if self.state.job_by_uid(&releasing.uid).is_some() {
                waiting.push(releasing);
                continue;
            }
            let held = self.state.held_keys(releasing.prefix.as_str());
            let keys: Vec<Arc<str>> = held.take(HELD_KEYS + 1).cloned().collect();
            let answer = match keys.len() > HELD_KEYS {
                true => Err(ReleaseError::TooManyHeld { limit: HELD_KEYS }),
                false => Ok(keys),
            };
            let reply = releasing.reply;
            self.hold(Held::Release { reply, answer });
        }
        self.releasing = waiting;
    }
}
