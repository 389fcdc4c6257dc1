//! Leaving: nothing new, nothing lost, in bounded time.

use prover_wire::protocol::{self as wire, FailureClass};
use tokio::time::Instant;

use super::{Agent, Departure};
use crate::attempt::Stage;
use crate::limits::LEAVE_WITHIN;

/// An agent that leaves.
#[derive(Debug)]
pub(super) struct Draining {
    pub(super) reason: String,
    /// When running attempts are stopped.
    pub(super) deadline: Instant,
    /// It ends when nothing is left to do. Else it waits until it is asked to.
    pub(super) leaves: bool,
    /// Attempts that were stopped at the deadline; none before.
    stopped: Option<usize>,
}

/// A deadline that never comes, for a loop that always waits for one.
const NEVER: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

impl Agent {
    /// Takes nothing more, and leaves when nothing is left, if that is asked.
    pub(super) fn start_drain(&mut self, reason: &str, leaves: bool) {
        if let Some(draining) = &mut self.draining {
            draining.leaves |= leaves;
            return;
        }
        tracing::info!(
            attempts = self.attempts.len(),
            seconds = self.config.drain.as_secs(),
            reason,
            "leaving"
        );
        let deadline = Instant::now() + self.config.drain;
        self.draining = Some(Draining {
            reason: reason.to_owned(),
            deadline,
            leaves,
            stopped: None,
        });
        self.tell_draining();
        let unstarted: Vec<u64> = self
            .attempts
            .values()
            .filter(|a| !a.stage.has_started())
            .map(|a| a.assign.attempt_id)
            .collect();
        for attempt in unstarted {
            self.give_back(attempt);
        }
    }

    /// Tells the coordinator, at the start of the drain and on each new stream.
    pub(super) fn tell_draining(&mut self) {
        if let Some(Draining { reason, deadline, .. }) = &self.draining {
            let seconds_left = deadline.saturating_duration_since(Instant::now()).as_secs();
            let draining = wire::Draining {
                reason: reason.clone(),
                seconds_left,
            };
            self.send(draining);
        }
    }

    /// When the loop must look at the drain again.
    pub(super) fn next_deadline(&self) -> Instant {
        match &self.draining {
            None => Instant::now() + NEVER,
            Some(Draining {
                deadline,
                stopped: None,
                ..
            }) => *deadline,
            Some(Draining {
                deadline,
                stopped: Some(_),
                leaves: true,
                ..
            }) => *deadline + LEAVE_WITHIN,
            Some(Draining { leaves: false, .. }) => Instant::now() + NEVER,
        }
    }

    /// The drain time is over: what still runs is given up and reported as such.
    pub(super) fn deadline_passed(&mut self) {
        let Some(draining) = &mut self.draining else {
            return;
        };
        if draining.stopped.is_some() {
            return;
        }
        draining.stopped = Some(0);
        let left: Vec<u64> = self
            .attempts
            .values()
            .filter(|attempt| !matches!(attempt.stage, Stage::Reported(_)))
            .map(|attempt| attempt.assign.attempt_id)
            .collect();
        let stopped = left.len();
        for attempt in left {
            let message = format!(
                "worker {} left before the attempt was done",
                self.config.worker_id
            );
            self.fail(
                attempt,
                FailureClass::WorkerLeaving,
                "WorkerLeaving",
                &message,
                None,
            );
        }
        if let Some(draining) = &mut self.draining {
            draining.stopped = Some(stopped);
        }
    }

    /// How the agent leaves, when it is time to.
    pub(super) fn departure(&self) -> Option<Departure> {
        let draining = self.draining.as_ref().filter(|draining| draining.leaves)?;
        let stopped = draining.stopped.unwrap_or_default();
        let out_of_time = draining.stopped.is_some() && Instant::now() >= draining.deadline + LEAVE_WITHIN;
        if self.attempts.is_empty() && stopped == 0 {
            return Some(Departure::Empty);
        }
        (self.attempts.is_empty() || out_of_time).then_some(Departure::OutOfTime {
            stopped,
            unacknowledged: self.attempts.len(),
        })
    }
}
