//! Attempts that may run on a worker though nothing is booked there for them: their leases were lost while it was
//! silent, or nothing is known of what they need.
//!
//! Owns that such a worker is given nothing before each of them is booked again or known to have left: whatever came
//! would take room that they still use.

use crate::action::{Action, StopReason};
use crate::model::{AttemptId, WorkerId};
use crate::state::State;

/// Strays that are known of a worker: as many as it may name at once. Who names ever more is in error, and is given
/// nothing because of these.
const STRAYS_PER_WORKER: u32 = 16_384;

impl State {
    /// An attempt may be on a worker, or on its way to it, though nothing is booked for it.
    pub(crate) fn add_stray(&mut self, worker: u32, attempt: AttemptId) {
        if self.workers[worker].strays < STRAYS_PER_WORKER && self.strays.insert((attempt, worker)) {
            self.workers[worker].strays += 1;
            self.mark_dirty(worker);
        }
    }

    /// Tells a worker to stop an attempt for which nothing is booked there.
    pub(crate) fn stop_stray(&mut self, worker: u32, attempt: AttemptId, out: &mut Vec<Action>) {
        self.add_stray(worker, attempt);
        out.push(lease_lost(self.workers[worker].id, attempt));
    }

    /// An attempt has left its worker, whatever its end, or is booked there again.
    pub(crate) fn stray_ended(&mut self, attempt: AttemptId) {
        if self.strays.is_empty() {
            return;
        }
        let there: Vec<u32> = self.holders_of_stray(attempt).collect();
        for worker in there {
            self.take_stray_off(worker, attempt);
        }
    }

    /// A worker has said that it does not have an attempt that is not its own, or has it no more.
    pub(crate) fn stray_left(&mut self, worker: WorkerId, attempt: AttemptId) {
        if let Some(worker) = self.worker_by_id.get(&worker).copied() {
            self.take_stray_off(worker, attempt);
        }
    }

    /// A worker has said what it holds, or is gone: nothing that it was given before can still come.
    pub(crate) fn forget_strays(&mut self, worker: u32) {
        if self.workers[worker].strays == 0 {
            return;
        }
        for attempt in self.strays_of(worker) {
            self.take_stray_off(worker, attempt);
        }
    }

    /// In the order of their identities.
    pub(crate) fn strays_of(&self, worker: u32) -> Vec<AttemptId> {
        let strays = self.strays.iter();
        let here = strays.filter(|(_, holder)| *holder == worker);
        here.map(|(attempt, _)| *attempt).collect()
    }

    /// The workers that may still have an attempt that is not booked there.
    pub(crate) fn holders_of_stray(&self, attempt: AttemptId) -> impl Iterator<Item = u32> {
        let strays = self.strays.range((attempt, 0)..=(attempt, u32::MAX));
        strays.map(|(_, worker)| *worker)
    }

    fn take_stray_off(&mut self, worker: u32, attempt: AttemptId) {
        if !self.strays.remove(&(attempt, worker)) {
            return;
        }
        let holder = &mut self.workers[worker];
        holder.strays -= 1;
        if holder.strays > 0 {
            return;
        }
        self.mark_dirty(worker);
        let jobs = self.jobs.iter();
        let reserved = jobs.filter(|(_, job)| {
            let reservation = job.reservation.as_ref();
            reservation.is_some_and(|reservation| reservation.worker == worker)
        });
        let reserved: Vec<u32> = reserved.map(|(job, _)| job).collect();
        self.chain_jobs.extend(reserved);
    }
}

/// The attempt has lost its lease: its worker shall stop it.
pub(crate) fn lease_lost(worker: WorkerId, attempt: AttemptId) -> Action {
    Action::Stop {
        worker,
        attempt,
        reason: StopReason::LeaseLost,
    }
}
