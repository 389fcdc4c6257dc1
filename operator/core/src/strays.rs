//! Attempts that may run on a worker though nothing is booked there for them: their leases were lost while it was
//! silent, or nothing is known of what they need.
//!
//! Owns that such a worker is given nothing before each of them is booked again or known to have left: whatever came
//! would take room that they still use.

use crate::action::{Action, StopReason};
use crate::model::{AttemptId, WorkerId};
use crate::state::State;

impl State {
    /// An attempt may be on a worker, or on its way to it, though nothing is booked for it.
    pub(crate) fn add_stray(&mut self, worker: u32, attempt: AttemptId) {
        if let Some(before) = self.strays.insert(attempt, worker) {
            self.one_stray_less(before);
        }
        self.workers[worker].strays += 1;
        self.mark_dirty(worker);
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
        if let Some(worker) = self.strays.remove(&attempt) {
            self.one_stray_less(worker);
        }
    }

    /// A worker has said what it holds, or is gone: nothing that it was given before can still come.
    pub(crate) fn forget_strays(&mut self, worker: u32) {
        if self.workers[worker].strays == 0 {
            return;
        }
        for attempt in self.strays_of(worker) {
            self.stray_ended(attempt);
        }
    }

    /// In the order of their identities.
    pub(crate) fn strays_of(&self, worker: u32) -> Vec<AttemptId> {
        let strays = self.strays.iter();
        let here = strays.filter(|(_, holder)| **holder == worker);
        here.map(|(attempt, _)| *attempt).collect()
    }

    fn one_stray_less(&mut self, worker: u32) {
        let holder = &mut self.workers[worker];
        holder.strays -= 1;
        if holder.strays > 0 {
            return;
        }
        self.mark_dirty(worker);
        let waits = |reservation: &crate::control::Reservation| reservation.worker == worker;
        let jobs = self.jobs.iter();
        let chains = jobs.filter(|(_, job)| job.reservation.as_ref().is_some_and(waits));
        let chains: Vec<u32> = chains.map(|(job, _)| job).collect();
        self.chain_jobs.extend(chains);
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
