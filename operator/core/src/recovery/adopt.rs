//! What workers still hold from the epoch before: whether it gets its lease back, and where it is booked.

use crate::action::{Action, StopReason, TaskChange};
use crate::attempts::{Attempt, Lease, NO_DEVICE, Place};
use crate::classes::ClassKey;
use crate::model::{HeldAttempt, Lane};
use crate::slab::NONE;
use crate::state::State;
use crate::tasks::Stage;

impl State {
    /// The order in which held attempts are looked at: parents before the children of their chain, then what runs
    /// before what was fetched ahead.
    pub(crate) fn held_in_order(&self, held: &[HeldAttempt]) -> Vec<HeldAttempt> {
        let mut held = held.to_vec();
        held.sort_by_key(|held| {
            let is_root = self
                .tasks
                .find(held.task.0)
                .is_some_and(|task| self.jobs[self.tasks[task].job].root == task);
            (held.device.is_some(), !is_root, !(held.started || held.completed))
        });
        held
    }

    /// Takes on an attempt of an earlier epoch that a worker holds. False: nothing is known of its task, or the
    /// attempt is complete and its task has ended.
    ///
    /// It gets its lease back if its task has not ended, it did not lose the lease before, and no later
    /// attempt is there. Else it is stopped and holds its place until it has left; if it is complete, its
    /// report is judged as that of any lost attempt.
    pub(crate) fn adopt(&mut self, worker: u32, held: HeldAttempt, out: &mut Vec<Action>) -> bool {
        let Some(task) = self.tasks.find(held.task.0) else {
            return false;
        };
        let ended = self.tasks[task].stage.is_terminal();
        let device = held.device.map_or(NO_DEVICE, |device| device.0);
        let misplaced = (self.tasks[task].spec.requirements.lane == Lane::Control) != (device == NO_DEVICE);
        let this_epoch = self.attempts.is_of_this_epoch(held.attempt.0);
        if this_epoch || misplaced || self.tasks[task].marker || (ended && held.completed) {
            return false;
        }
        let Some(attempt) = self.adopted_attempt(worker, task, device, held) else {
            return false;
        };
        let entry = &self.tasks[task];
        let job = entry.job;
        // Numbers begin anew where an epoch did not know of an attempt: then the later epoch's counts.
        let rank = |attempt: &Attempt| (attempt.number, attempt.id);
        let newer = self
            .attempts
            .get(entry.current)
            .is_none_or(|current| rank(current) < (held.number, held.attempt.0));
        let same_plan = held.epoch == entry.epoch;
        let wanted = !ended && same_plan && held.number > entry.fence && newer && self.jobs[job].may_run();
        let place = if held.completed {
            self.place_completed(attempt, worker).filter(|_| wanted)
        } else {
            self.place_adopted(attempt, worker, held.started, wanted)
        };
        let Some(place) = place.filter(|_| wanted) else {
            self.refuse_adopted(attempt, worker, held, place, out);
            return true;
        };
        self.take_out(task);
        if self.jobs[job].root == task {
            self.release_reservation(job);
        }
        self.stop_attempts(task, StopReason::LeaseLost, out);
        if self.tasks[task].stage != Stage::Active {
            self.set_stage(task, Stage::Active);
        }
        let told = self.counts_of(task);
        let entry = &mut self.tasks[task];
        // One that was counted already is not counted again when it ends.
        self.attempts[attempt].regained = held.number <= entry.attempts;
        entry.attempts = entry.attempts.max(held.number);
        entry.fence = entry.fence.min(held.number - 1);
        entry.current = attempt;
        let alone = entry.alone;
        // Others that this epoch knows nothing of may have been before it.
        if self.counts_of(task) != told {
            self.record_counts(task, out);
        }
        self.attempts[attempt].lease = Lease::Held;
        // What is complete books nothing but its place.
        self.attempts[attempt].left = held.completed;
        self.book_adopted(attempt, worker, place);
        if place != Place::Control {
            let charged = self.expected_microseconds(task);
            self.attempts[attempt].charged = charged;
            self.charge(job, charged);
            if alone && place == Place::Slot {
                self.attempts[attempt].alone = true;
                self.workers[worker].devices[usize::from(device)].reserved_for = task;
            }
        }
        if self.jobs[job].root == task {
            self.root_started(job, out);
        }
        let (id, worker_id) = (held.attempt, self.workers[worker].id);
        let prefetch = place == Place::Ahead;
        let change = TaskChange::Assigned {
            attempt: id,
            worker: worker_id,
            prefetch,
        };
        self.task_changed(task, change, out);
        if held.completed {
            self.attempts[attempt].started_at = Some(self.now);
        } else if held.started {
            self.attempt_started(id, out);
        }
        true
    }

    /// An entry for an attempt of an earlier epoch, without lease and place. None: there is no class for its needs.
    fn adopted_attempt(&mut self, worker: u32, task: u32, device: u16, held: HeldAttempt) -> Option<u32> {
        let entry = &self.tasks[task];
        let job = entry.job;
        let class = if entry.stage.is_terminal() {
            // The class that it had may be another one by now.
            self.class_of(ClassKey::of(&entry.spec.clone().requirements))
                .ok()?
        } else {
            entry.class
        };
        let slots = self.workers[worker]
            .devices
            .get(usize::from(device))
            .map_or(1, |device| device.slots.max(1));
        let attempt = self.attempts.insert(Attempt {
            id: held.attempt.0,
            number: held.number,
            adopted_slots: slots,
            ..self.blank_attempt(task, worker, device, class, device == NO_DEVICE)
        });
        self.jobs[job].last_attempt = attempt;
        self.adopted.insert(held.attempt.0, attempt);
        Some(attempt)
    }

    /// Stops an attempt that is not wanted, unless it is complete: then its report is judged when it comes.
    fn refuse_adopted(
        &mut self,
        attempt: u32,
        worker: u32,
        held: HeldAttempt,
        place: Option<Place>,
        out: &mut Vec<Action>,
    ) {
        let task = self.attempts[attempt].task;
        let entry = &mut self.tasks[task];
        // What an attempt of another plan submitted is dropped, or was never recorded.
        self.attempts[attempt].discarded = held.epoch != entry.epoch;
        if !entry.stage.is_terminal() && held.number > entry.attempts {
            entry.attempts = held.number;
            self.fence(task, out);
        }
        if held.completed {
            return;
        }
        let Some(place) = place else {
            return self.stop_stray(worker, held.attempt, out);
        };
        let device = self.attempts[attempt].device;
        self.put(attempt, worker, device, place);
        if place == Place::Control {
            self.book_own(attempt, worker);
        }
        self.mark_dirty(worker);
        self.stop_attempt(attempt, StopReason::LeaseLost, out);
    }

    /// An attempt that is complete needs nothing any more, but is its worker's until its report is judged.
    fn place_completed(&self, attempt: u32, worker: u32) -> Option<Place> {
        let device = self.attempts[attempt].device;
        if device == NO_DEVICE {
            return Some(Place::Control);
        }
        let known = self.workers[worker].devices.get(usize::from(device));
        known.map(|_| Place::Leaving)
    }

    fn place_adopted(&self, attempt: u32, worker: u32, started: bool, wanted: bool) -> Option<Place> {
        let entry = &self.attempts[attempt];
        let holder = &self.workers[worker];
        if entry.device != NO_DEVICE {
            let secluded = wanted && self.tasks[entry.task].alone;
            let taken = holder
                .devices
                .get(usize::from(entry.device))
                .is_none_or(|device| {
                    !(device.running.is_empty() && device.ahead.is_empty() && device.leaving.is_empty())
                });
            if secluded && taken {
                return None;
            }
            return self.place_again(attempt, worker, started, wanted);
        }
        let is_root = self.jobs[entry.job].root == entry.task;
        if wanted && !is_root && self.free_level(attempt, worker).is_some() {
            return Some(Place::Control);
        }
        let bytes = if wanted && is_root {
            self.classes.host_bytes[usize::from(entry.class)]
        } else {
            entry.needs_host_bytes
        };
        // A later attempt of a root takes over the memory that an earlier one keeps for the chain.
        let kept = self.jobs[entry.job].reservation.as_ref();
        let kept = kept.filter(|kept| wanted && is_root && kept.worker == worker);
        let freed: u64 = kept.map_or(0, |kept| {
            let unused = kept.levels.iter().filter(|level| level.used_by == NONE);
            unused.map(|level| level.bytes).sum()
        });
        (holder.host_free + freed >= bytes).then_some(Place::Control)
    }

    /// A level of its job's chain that a child of it can take.
    fn free_level(&self, attempt: u32, worker: u32) -> Option<u8> {
        let entry = &self.attempts[attempt];
        let reservation = self.jobs[entry.job].reservation.as_ref();
        let reservation = reservation.filter(|reservation| reservation.worker == worker)?;
        let level = reservation
            .levels
            .iter()
            .position(|level| level.used_by == NONE && level.bytes >= entry.needs_host_bytes)?;
        Some(level as u8)
    }

    fn book_adopted(&mut self, attempt: u32, worker: u32, place: Place) {
        let entry = &self.attempts[attempt];
        let (device, class, job, task) = (entry.device, entry.class, entry.job, entry.task);
        // What is complete holds its place only.
        let complete = place == Place::Leaving || (place == Place::Control && entry.left);
        self.put(attempt, worker, device, place);
        self.mark_dirty(worker);
        if place != Place::Control || complete {
            return;
        }
        match self
            .free_level(attempt, worker)
            .filter(|_| self.jobs[job].root != task)
        {
            Some(level) => {
                self.attempts[attempt].level = Some(level);
                if let Some(reservation) = &mut self.jobs[job].reservation {
                    reservation.levels[usize::from(level)].used_by = attempt;
                }
            }
            None => self.book_control(attempt, worker, class),
        }
    }
}
