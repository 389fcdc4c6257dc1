//! Second attempts for the last stragglers, while devices would idle otherwise.
//!
//! Owns which attempt gets a second one beside it, and where. Both hold a lease; the first valid result counts and the
//! other one is stopped. A failure or a loss of one of them changes nothing as long as the other one runs.

use crate::action::{Action, StopReason};
use crate::attempts::{Lease, NO_DEVICE, Place};
use crate::classes::{TIER_IDLE, TIER_SLOT};
use crate::model::{Lane, Milliseconds, Timestamp};
use crate::slab::NONE;
use crate::state::State;
use crate::timers::Timer;

/// Measured tasks of a type without which nothing is known of how long they take.
const MEASURED: u32 = 8;
/// Least time between two looks at what runs.
const INTERVAL: Milliseconds = Milliseconds(100);

impl State {
    /// Whether the task of an attempt may be run twice at once: no parent, no channel writer, nothing that must be
    /// alone.
    fn may_speculate(&self, attempt: u32) -> bool {
        let entry = &self.attempts[attempt];
        let task = &self.tasks[entry.task];
        entry.lease == Lease::Held
            && entry.place == Place::Slot
            && entry.device != NO_DEVICE
            && entry.started_at.is_some()
            && task.current == attempt
            && !task.sent
            && !task.submits
            && !task.alone
            // It may have outlived the leader that knew what it had waited for.
            && task.pending == 0
            && self.jobs[entry.job].root != entry.task
            && !self.twins.contains_key(&entry.task)
    }

    /// When an attempt has run for so long that it may get a second one.
    fn is_late_at(&self, attempt: u32) -> Option<Timestamp> {
        let entry = &self.attempts[attempt];
        let kind = &self.types.entries[self.tasks[entry.task].kind as usize];
        if kind.measurements < MEASURED {
            return None;
        }
        let percent = u64::from(self.limits.speculate_after_percent);
        let usual = Milliseconds(kind.mean_microseconds.saturating_mul(percent) / 100_000);
        Some(entry.started_at? + usual.max(self.limits.speculate_after))
    }

    /// A worker has room: others may run too long meanwhile.
    pub(crate) fn watch_stragglers(&mut self, worker: u32) {
        let room = self.workers[worker].published;
        let idle = (room[TIER_IDLE] | room[TIER_SLOT]) & !self.classes.control;
        if self.straggler_timer.is_some() || idle == 0 {
            return;
        }
        let known = self.types.entries.iter().any(|kind| {
            kind.running > 0 && kind.measurements >= MEASURED && kind.requirements.2 == Lane::Device
        });
        if known {
            self.set_straggler_timer(self.now + INTERVAL);
        }
    }

    /// An attempt has started: it may run too long while others have room.
    pub(crate) fn watch_straggler(&mut self, attempt: u32) {
        if self.straggler_timer.is_none()
            && let Some(at) = self.is_late_at(attempt)
            && self.has_room_elsewhere(attempt)
        {
            self.set_straggler_timer(at);
        }
    }

    fn set_straggler_timer(&mut self, at: Timestamp) {
        if self.limits.speculate_after_percent > 0 {
            self.straggler_timer = Some(at);
            self.timers.set(at, Timer::Stragglers);
        }
    }

    /// Gives second attempts to those that are late, the latest first, and looks again when the next one may be.
    pub(crate) fn stragglers_due(&mut self, out: &mut Vec<Action>) {
        self.straggler_timer = None;
        let slots: usize = self
            .workers
            .iter()
            .filter(|(_, worker)| worker.takes_work())
            .flat_map(|(_, worker)| worker.devices.iter())
            .filter(|device| device.usable)
            .map(|device| usize::from(device.slots))
            .sum();
        let most = (slots * self.limits.speculate_share_percent as usize / 100).max(1);
        let mut next: Option<Timestamp> = None;
        let mut late: Vec<(Timestamp, u32)> = Vec::new();
        for (_, worker) in self.workers.iter() {
            for attempt in worker
                .devices
                .iter()
                .flat_map(|device| device.running.iter().copied())
            {
                if !self.may_speculate(attempt) || !self.has_room_elsewhere(attempt) {
                    continue;
                }
                match self.is_late_at(attempt) {
                    Some(at) if at <= self.now => late.push((at, attempt)),
                    Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                    None => {}
                }
            }
        }
        late.sort_unstable();
        let mut left = false;
        for (_, attempt) in late {
            left |= self.twins.len() >= most || !self.speculate(attempt, out);
        }
        if left {
            next = Some(self.now + self.limits.speculate_after);
        }
        if let Some(next) = next {
            self.set_straggler_timer(next.max(self.now + INTERVAL));
        }
    }

    fn has_room_elsewhere(&self, attempt: u32) -> bool {
        let class = &self.classes.entries[usize::from(self.attempts[attempt].class)];
        class.room[TIER_IDLE].first().is_some() || class.room[TIER_SLOT].first().is_some()
    }

    /// Starts a second attempt beside another one. False: there is no place for it.
    fn speculate(&mut self, attempt: u32, out: &mut Vec<Action>) -> bool {
        let entry = &self.attempts[attempt];
        let (task, job, class, beside) = (entry.task, entry.job, entry.class, entry.worker);
        let tenant = self.jobs[job].tenant;
        let stays_with = self.tenants[tenant as usize].capped.then_some(tenant);
        if self.jobs[job].capped || !self.jobs[job].may_run() {
            return false;
        }
        for tier in [TIER_IDLE, TIER_SLOT] {
            let found = self.classes.entries[usize::from(class)].room[tier]
                .iter()
                .filter(|worker| *worker != beside && self.room(*worker).0[tier] & (1 << class) != 0)
                .find_map(|worker| Some((worker, self.choose_device(worker, class, false, stays_with)?)));
            let Some((worker, device)) = found else { continue };
            self.start_twin(task, worker, device, out);
            let room = self.room(worker);
            self.publish_room(worker, room);
            return true;
        }
        false
    }

    /// An attempt has left its task. Where it was one of two, the other one is the task's now.
    pub(crate) fn detach(&mut self, attempt: u32) {
        let task = self.attempts[attempt].task;
        let is_current = self.tasks[task].current == attempt;
        match self.twins.get(&task).copied() {
            Some(twin) if twin == attempt => {
                self.twins.remove(&task);
            }
            Some(twin) if is_current => {
                self.twins.remove(&task);
                self.tasks[task].current = twin;
                self.tasks[task].started_at = self.attempts[twin].started_at;
            }
            _ if is_current => self.tasks[task].current = NONE,
            _ => {}
        }
    }

    /// Whether a task is run by another attempt than one that has been detached.
    pub(crate) fn runs_on(&self, task: u32) -> bool {
        self.tasks[task].current != NONE
    }

    /// Tells the workers of all attempts of a task to stop.
    pub(crate) fn stop_attempts(&mut self, task: u32, reason: StopReason, out: &mut Vec<Action>) {
        while self.tasks[task].current != NONE {
            self.stop_attempt(self.tasks[task].current, reason, out);
        }
    }
}
