//! Attempts: where each one is, when it starts, how it ends, what it used.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::action::{Action, Assignment, StopReason, TaskChange};
use crate::fact::{Fact, TaskSuccess};
use crate::model::{
    ArtifactName, AttemptId, Binding, DeviceIndex, FailureClass, Milliseconds, TaskId, Timestamp, Usage,
    WorkerId,
};
use crate::slab::{NONE, Slab};
use crate::state::State;
use crate::tasks::Stage;
use crate::workers::{Device, Held};

/// No device: the control lane.
pub(crate) const NO_DEVICE: u16 = u16::MAX;

/// What an attempt takes of its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nothing any more.
    None,
    /// Fetched ahead: no slot and no memory yet.
    Ahead,
    /// A slot and memory.
    Slot,
    /// Its successor has its slot and its memory.
    Leaving,
    /// Host memory of the control lane.
    Control,
}

/// Where an attempt stands with its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lease {
    /// Holds the lease of its task.
    Held,
    /// Was told to stop: its results are discarded.
    Stopping(StopReason),
    /// Its worker was silent for too long or is gone. Its result may still be the first valid one.
    Lost,
    /// Has reported how it ended; true: its result counts.
    Ended(bool),
}

/// One try of a task.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Its identity: that of its entry, unless it is of an earlier epoch.
    pub(crate) id: u64,
    pub(crate) task: u32,
    pub(crate) job: u32,
    /// Slab index; only to be used while it has a place.
    pub(crate) worker: u32,
    pub(crate) worker_id: WorkerId,
    pub(crate) number: u32,
    pub(crate) device: u16,
    pub(crate) class: u8,
    pub(crate) place: Place,
    pub(crate) lease: Lease,
    pub(crate) alone: bool,
    pub(crate) recalling: bool,
    /// Known to have left its slot.
    pub(crate) left: bool,
    /// Was told to stop once: its result never counts, even if its worker was lost since.
    pub(crate) discarded: bool,
    /// Ran beside an attempt whose child died.
    pub(crate) suspect: bool,
    /// Had lost the lease and has it again.
    pub(crate) regained: bool,
    /// Slots of its device if it is of an earlier epoch, else 0: of its time before only its worker knows.
    pub(crate) adopted_slots: u16,
    /// Level of its job's reservation that it uses.
    pub(crate) level: Option<u8>,
    /// What it needs of its worker when it runs.
    pub(crate) needs_host_bytes: u64,
    pub(crate) needs_vram_bytes: u64,
    /// What it holds of its worker.
    pub(crate) host_bytes: u64,
    pub(crate) vram_bytes: u64,
    /// Device time that its job was charged when it was assigned.
    pub(crate) charged: u64,
    pub(crate) clock_start: u64,
    pub(crate) on_clock: bool,
    pub(crate) device_microseconds: u64,
    pub(crate) assigned_at: Timestamp,
    /// When its worker last said that it has it.
    pub(crate) confirmed_at: Timestamp,
    pub(crate) started_at: Option<Timestamp>,
    /// The attempt of its job that was assigned before it.
    pub(crate) older: u32,
    /// Neighbours in its class's list of attempts fetched ahead.
    pub(crate) previous: u32,
    pub(crate) next: u32,
    /// Runs beside another attempt of its task, which took too long.
    pub(crate) speculative: bool,
    /// Worker for whose free slot it is recalled.
    pub(crate) recalled_for: u64,
}

impl Attempt {
    /// Whether it counts against the workers that its job may use.
    pub(crate) fn holds_worker(&self) -> bool {
        matches!(self.place, Place::Ahead | Place::Slot | Place::Leaving)
    }
}

impl State {
    pub(crate) fn attempt_id(&self, attempt: u32) -> AttemptId {
        AttemptId(self.attempts[attempt].id)
    }

    pub(crate) fn find_attempt(&self, id: AttemptId) -> Option<u32> {
        find_attempt(&self.attempts, &self.adopted, id)
    }

    /// All attempts of a job in the order of assignment.
    pub(crate) fn attempts_of(&self, job: u32) -> Vec<u32> {
        let mut attempts = Vec::new();
        let mut at = self.jobs[job].last_attempt;
        while at != NONE {
            attempts.push(at);
            at = self.attempts[at].older;
        }
        attempts.reverse();
        attempts
    }

    /// Gives a ready task, which is in no queue any more, to a worker that has room for it.
    pub(crate) fn start_attempt(
        &mut self,
        task: u32,
        worker: u32,
        device: u16,
        place: Place,
        out: &mut Vec<Action>,
    ) -> u32 {
        self.set_stage(task, Stage::Active);
        let attempt = self.begin_attempt(task, worker, device, place, false);
        self.tasks[task].current = attempt;
        let job = self.attempts[attempt].job;
        if self.jobs[job].root == task {
            self.root_started(job, out);
        }
        self.announce(attempt, out);
        attempt
    }

    /// Gives a task that runs already to another worker too.
    pub(crate) fn start_twin(&mut self, task: u32, worker: u32, device: u16, out: &mut Vec<Action>) {
        let attempt = self.begin_attempt(task, worker, device, Place::Slot, true);
        let former = self.twins.insert(task, attempt);
        assert!(former.is_none(), "a task has at most two attempts at once");
        self.jobs[self.attempts[attempt].job].speculative += 1;
        self.announce(attempt, out);
    }

    fn begin_attempt(&mut self, task: u32, worker: u32, device: u16, place: Place, speculative: bool) -> u32 {
        let entry = &mut self.tasks[task];
        entry.attempts += 1;
        let (job, class, alone) = (entry.job, entry.class, entry.alone);
        let number = entry.attempts;
        self.classes.entries[usize::from(class)].served_at = self.now;
        let charged = if place == Place::Control {
            0
        } else {
            self.expected_microseconds(task)
        };
        let attempt = self.attempts.insert(Attempt {
            number,
            lease: Lease::Held,
            alone: alone && place == Place::Slot,
            charged,
            speculative,
            ..self.blank_attempt(task, worker, device, class, place == Place::Control)
        });
        self.attempts[attempt].id = self.attempts.id(attempt);
        self.jobs[job].last_attempt = attempt;
        self.put(attempt, worker, device, place);
        self.charge(job, charged);
        attempt
    }

    /// The entry of an attempt that has no id, lease and place yet. `class` is that of its needs.
    pub(crate) fn blank_attempt(
        &self,
        task: u32,
        worker: u32,
        device: u16,
        class: u8,
        in_control: bool,
    ) -> Attempt {
        let job = self.tasks[task].job;
        let at = usize::from(class);
        Attempt {
            id: 0,
            task,
            job,
            worker,
            worker_id: self.workers[worker].id,
            number: 0,
            device,
            class,
            place: Place::None,
            lease: Lease::Lost,
            alone: false,
            recalling: false,
            left: false,
            discarded: false,
            suspect: false,
            regained: false,
            adopted_slots: 0,
            level: None,
            needs_host_bytes: if in_control {
                self.classes.entries[at].key.requirements.host_memory_bytes
            } else {
                self.classes.host_bytes[at]
            },
            needs_vram_bytes: self.classes.vram_bytes[at],
            host_bytes: 0,
            vram_bytes: 0,
            charged: 0,
            clock_start: 0,
            on_clock: false,
            device_microseconds: 0,
            assigned_at: self.now,
            confirmed_at: self.now,
            started_at: None,
            older: self.jobs[job].last_attempt,
            previous: NONE,
            next: NONE,
            recalled_for: 0,
            speculative: false,
        }
    }

    /// Books a place of a worker for an attempt that has none.
    pub(crate) fn put(&mut self, attempt: u32, worker: u32, device: u16, place: Place) {
        let class = usize::from(self.attempts[attempt].class);
        let entry = &mut self.attempts[attempt];
        let (host_bytes, vram_bytes) = (entry.needs_host_bytes, entry.needs_vram_bytes);
        debug_assert!(entry.place == Place::None);
        let job = entry.job;
        entry.place = place;
        self.classes.entries[class].references += 1;
        let holder = &mut self.workers[worker];
        holder.told_empty = false;
        self.jobs[job].placed += 1;
        match place {
            Place::Slot => {
                entry.host_bytes = host_bytes;
                entry.vram_bytes = vram_bytes;
                assert!(holder.host_free >= host_bytes, "host memory is never overbooked");
                holder.host_free -= host_bytes;
                let holder = &mut holder.devices[usize::from(device)];
                assert!(
                    holder.vram_free >= vram_bytes,
                    "device memory is never overbooked"
                );
                assert!(
                    holder.running.len() < usize::from(holder.slots),
                    "slots are never overbooked"
                );
                holder.vram_free -= vram_bytes;
                holder.running.push(attempt);
            }
            Place::Ahead => {
                holder.devices[usize::from(device)].ahead.push(attempt);
                self.link_ahead(attempt);
            }
            Place::Control => holder.control.push(attempt),
            Place::Leaving => holder.devices[usize::from(device)].leaving.push(attempt),
            Place::None => {}
        }
        if place == Place::Control {
            return;
        }
        if self.jobs[job].policy.max_workers.is_some() {
            *self.jobs[job].workers.entry(worker).or_insert(0) += 1;
            self.refresh_cap(job);
        }
        self.tenant_takes(self.jobs[job].tenant, worker, device);
    }

    fn announce(&mut self, attempt: u32, out: &mut Vec<Action>) {
        let entry = &self.attempts[attempt];
        let (task, job) = (&self.tasks[entry.task], &self.jobs[entry.job]);
        let id = self.attempt_id(attempt);
        let prefetch = entry.place == Place::Ahead;
        let inputs: Vec<(ArtifactName, Binding)> = task
            .inputs
            .iter()
            .filter_map(|input| {
                let artifact = &job.artifacts[*input as usize];
                artifact
                    .binding
                    .as_deref()
                    .map(|binding| (artifact.name.clone(), binding.clone()))
            })
            .collect();
        assert!(
            inputs.len() == task.inputs.len(),
            "the inputs of a task that is dispatched are bound"
        );
        let dependency_results: Vec<Arc<[u8]>> = task
            .dependencies
            .iter()
            .map(|dependency| self.tasks[*dependency].result.clone().unwrap_or_default())
            .collect();
        out.push(Action::Assign(Assignment {
            worker: entry.worker_id,
            device: (entry.device != NO_DEVICE).then_some(DeviceIndex(entry.device)),
            attempt: id,
            job: self.job_id(entry.job),
            task: TaskId(self.tasks.id(entry.task)),
            number: entry.number,
            epoch: task.epoch,
            prefetch,
            alone: entry.alone,
            replans: job.replans,
            speculative: entry.speculative,
            inputs,
            dependency_results,
        }));
        let change = TaskChange::Assigned {
            attempt: id,
            worker: entry.worker_id,
            prefetch,
        };
        self.task_changed(entry.task, change, out);
    }

    fn link_ahead(&mut self, attempt: u32) {
        let class = usize::from(self.attempts[attempt].class);
        let last = self.classes.entries[class].ahead_last;
        self.attempts[attempt].previous = last;
        self.attempts[attempt].next = NONE;
        if last == NONE {
            self.classes.entries[class].ahead_first = attempt;
        } else {
            self.attempts[last].next = attempt;
        }
        self.classes.entries[class].ahead_last = attempt;
    }

    fn unlink_ahead(&mut self, attempt: u32) {
        let entry = &self.attempts[attempt];
        let (class, previous, next) = (usize::from(entry.class), entry.previous, entry.next);
        if previous == NONE {
            self.classes.entries[class].ahead_first = next;
        } else {
            self.attempts[previous].next = next;
        }
        if next == NONE {
            self.classes.entries[class].ahead_last = previous;
        } else {
            self.attempts[next].previous = previous;
        }
    }

    /// Stops the clock of an attempt that leaves its slot.
    fn stop_clock(&mut self, attempt: u32) {
        let entry = &mut self.attempts[attempt];
        if !std::mem::replace(&mut entry.on_clock, false) {
            return;
        }
        let device = &mut self.workers[entry.worker].devices[usize::from(entry.device)];
        device.advance(self.now);
        device.sharing -= 1;
        entry.device_microseconds += device.clock - entry.clock_start;
    }

    fn start_clock(&mut self, attempt: u32) {
        let entry = &mut self.attempts[attempt];
        if entry.device == NO_DEVICE || entry.on_clock {
            return;
        }
        let device = &mut self.workers[entry.worker].devices[usize::from(entry.device)];
        device.advance(self.now);
        device.sharing += 1;
        entry.clock_start = device.clock;
        entry.on_clock = true;
    }

    /// Takes an attempt from its place and gives back what it held.
    pub(crate) fn release(&mut self, attempt: u32, out: &mut Vec<Action>) {
        if self.attempts[attempt].place == Place::None {
            return;
        }
        self.stop_clock(attempt);
        let entry = &mut self.attempts[attempt];
        let (worker, job, class, place) = (entry.worker, entry.job, entry.class, entry.place);
        let (host_bytes, vram_bytes) = (entry.host_bytes, entry.vram_bytes);
        (entry.host_bytes, entry.vram_bytes, entry.place) = (0, 0, Place::None);
        let (device, task) = (usize::from(entry.device), entry.task);
        let current = self.tasks[task].current;
        let followed = current != attempt
            && self.attempts.get(current).is_some_and(|other| {
                (other.place, other.worker, usize::from(other.device)) == (Place::Slot, worker, device)
            });
        let holder = &mut self.workers[worker];
        match place {
            Place::Ahead => {
                holder.devices[device].ahead.retain(|other| *other != attempt);
                self.unlink_ahead(attempt);
            }
            Place::Slot => {
                holder.host_free += host_bytes;
                let holder = &mut holder.devices[device];
                holder.vram_free += vram_bytes;
                remove_from(&mut holder.running, attempt);
                // An older attempt of the same task, which came back late, does not end the seclusion of the new one.
                if !followed && holder.reserved_for == task {
                    holder.reserved_for = NONE;
                }
                self.seat_again(worker, device);
            }
            Place::Leaving => {
                let holder = &mut holder.devices[device];
                remove_from(&mut holder.leaving, attempt);
                if !followed && holder.reserved_for == task {
                    holder.reserved_for = NONE;
                }
            }
            Place::Control => {
                remove_from(&mut holder.control, attempt);
                self.release_control(attempt, host_bytes);
            }
            Place::None => {}
        }
        self.classes.entries[usize::from(class)].references -= 1;
        self.end_recall(attempt);
        self.mark_dirty(worker);
        let entry = &mut self.jobs[job];
        entry.placed -= 1;
        if place != Place::Control && entry.policy.max_workers.is_some() {
            if let Some(count) = entry.workers.get_mut(&worker) {
                *count -= 1;
                if *count == 0 {
                    entry.workers.remove(&worker);
                }
            }
            self.refresh_cap(job);
        }
        if place != Place::Control {
            self.tenant_leaves(self.jobs[job].tenant, worker, device as u16);
        }
        if self.jobs[job].forget {
            self.to_forget.push(job);
        }
        let _ = out;
    }

    pub(crate) fn end_recall(&mut self, attempt: u32) {
        let entry = &mut self.attempts[attempt];
        if std::mem::replace(&mut entry.recalling, false)
            && let Some(worker) = self.workers.find(entry.recalled_for)
        {
            self.workers[worker].recalls -= 1;
        }
    }

    /// What an attempt used: its part of the time of its device, its part of the energy.
    pub(crate) fn settle_usage(&mut self, attempt: u32, reported: Usage) -> Usage {
        let entry = &mut self.attempts[attempt];
        let mut taken = entry.device_microseconds;
        let reported_microseconds = reported.device_time.0.saturating_mul(1000);
        if entry.adopted_slots > 0 && entry.device != NO_DEVICE {
            // What overlapped before the recovery is not known: at most its slots did.
            taken = taken.max(reported_microseconds / u64::from(entry.adopted_slots));
        }
        let elapsed = entry
            .started_at
            .map_or(0, |start| (self.now - start).0.saturating_mul(1000));
        let mut energy = reported.energy_millijoules;
        if taken < elapsed && entry.device != NO_DEVICE {
            energy = (u128::from(energy) * u128::from(taken) / u128::from(elapsed)) as u64;
        }
        if reported.device_time.0 > 0 {
            taken = taken.min(reported_microseconds);
        }
        let (task, job, charged) = (
            entry.task,
            entry.job,
            std::mem::replace(&mut entry.charged, taken),
        );
        self.tasks[task].device_microseconds += taken;
        self.tasks[task].energy_millijoules += energy;
        self.jobs[job].device_microseconds += taken;
        self.jobs[job].energy_millijoules += energy;
        self.correct(job, charged, taken);
        Usage {
            device_time: Milliseconds(taken / 1000),
            energy_millijoules: energy,
        }
    }

    /// Fills a device's free slots with what was fetched ahead for it.
    pub(crate) fn promote(&mut self, worker: u32) {
        for device in 0..self.workers[worker].devices.len() {
            loop {
                let holder = &self.workers[worker];
                let entry = &holder.devices[device];
                if entry.running.len() >= usize::from(entry.slots) {
                    break;
                }
                // One that was overtaken may need more than is free yet: the worker starts what it likes of those that
                // wait, so one of them is booked.
                let next = entry.ahead.iter().copied().find(|attempt| {
                    let attempt = &self.attempts[*attempt];
                    attempt.needs_host_bytes <= holder.host_free
                        && attempt.needs_vram_bytes <= entry.vram_free
                });
                let Some(attempt) = next else { break };
                self.take_slot(attempt);
            }
        }
    }

    /// What those that a device has fetched ahead need at most, beside one of them.
    fn largest_ahead(&self, holder: &Device, beside: u32) -> (u64, u64) {
        let others = holder.ahead.iter().filter(|other| **other != beside);
        others.fold((0, 0), |largest, other| {
            let other = &self.attempts[*other];
            (
                largest.0.max(other.needs_host_bytes),
                largest.1.max(other.needs_vram_bytes),
            )
        })
    }

    /// Moves an attempt that was fetched ahead into a slot that is free. As far as that is free, it holds what the largest of
    /// those needs that it overtakes: the worker starts that one in whichever slot ends first, without asking.
    fn take_slot(&mut self, attempt: u32) {
        let entry = &self.attempts[attempt];
        let device = usize::from(entry.device);
        let holder = &self.workers[entry.worker];
        let kept = self.largest_ahead(&holder.devices[device], attempt);
        let host_bytes = entry.needs_host_bytes.max(kept.0.min(holder.host_free));
        let vram_bytes = entry
            .needs_vram_bytes
            .max(kept.1.min(holder.devices[device].vram_free));
        let entry = &mut self.attempts[attempt];
        (entry.host_bytes, entry.vram_bytes, entry.place) = (host_bytes, vram_bytes, Place::Slot);
        let holder = &mut self.workers[entry.worker];
        holder.host_free -= host_bytes;
        let holder = &mut holder.devices[device];
        holder.vram_free -= vram_bytes;
        if holder.ahead.first() == Some(&attempt) {
            holder.ahead.remove(0);
        } else {
            holder.ahead.retain(|other| *other != attempt);
        }
        holder.running.push(attempt);
        self.unlink_ahead(attempt);
    }

    /// The worker has started an attempt in a slot that counts as taken. Either it overtook one that has not
    /// started, and the two change places; or it follows one whose outputs are still on their way: the smallest
    /// of those that run counts as leaving then, so that what is booked is never less than what is used.
    fn take_over_slot(&mut self, attempt: u32) {
        let (worker, device) = (
            self.attempts[attempt].worker,
            usize::from(self.attempts[attempt].device),
        );
        let holder = &self.workers[worker];
        let entry = &holder.devices[device];
        let needs = (
            self.attempts[attempt].needs_host_bytes,
            self.attempts[attempt].needs_vram_bytes,
        );
        let fits = |free_host: u64, free_vram: u64| free_host >= needs.0 && free_vram >= needs.1;
        if entry.running.len() < usize::from(entry.slots) && fits(holder.host_free, entry.vram_free) {
            return self.take_slot(attempt);
        }
        let smallest = entry
            .running
            .iter()
            .copied()
            .filter(|other| {
                let other = &self.attempts[*other];
                fits(
                    holder.host_free + other.host_bytes,
                    entry.vram_free + other.vram_bytes,
                )
            })
            .min_by_key(|other| {
                let other = &self.attempts[*other];
                (other.started_at.is_some(), other.host_bytes, other.vram_bytes)
            });
        // Where nothing can make room the attempt keeps its place until something leaves.
        let Some(leaving) = smallest else { return };
        self.stop_clock(leaving);
        let left = &mut self.attempts[leaving];
        let (host_bytes, vram_bytes) = (left.host_bytes, left.vram_bytes);
        let overtaken = left.started_at.is_none();
        let place = if overtaken { Place::Ahead } else { Place::Leaving };
        (left.host_bytes, left.vram_bytes, left.place) = (0, 0, place);
        let holder = &mut self.workers[worker];
        holder.host_free += host_bytes;
        let holder = &mut holder.devices[device];
        holder.vram_free += vram_bytes;
        remove_from(&mut holder.running, leaving);
        if overtaken {
            holder.ahead.insert(0, leaving);
            self.link_ahead(leaving);
        } else {
            holder.leaving.push(leaving);
        }
        self.take_slot(attempt);
    }

    /// Where several run at once, nobody says whose slot a successor took: when one of the others is the first to
    /// end, one that counts as leaving may have stayed, and takes the slot that is free now.
    fn seat_again(&mut self, worker: u32, device: usize) {
        let holder = &self.workers[worker];
        let entry = &holder.devices[device];
        if entry.slots < 2 {
            return;
        }
        // The largest, so that what is booked is never less than what is used; of equals the one whose successor came
        // last.
        let stayed = entry
            .leaving
            .iter()
            .copied()
            .filter(|attempt| {
                let attempt = &self.attempts[*attempt];
                !attempt.left
                    && attempt.needs_host_bytes <= holder.host_free
                    && attempt.needs_vram_bytes <= entry.vram_free
            })
            .max_by_key(|attempt| {
                let attempt = &self.attempts[*attempt];
                (attempt.needs_host_bytes, attempt.needs_vram_bytes)
            });
        let Some(attempt) = stayed else { return };
        let entry = &mut self.attempts[attempt];
        let (host_bytes, vram_bytes) = (entry.needs_host_bytes, entry.needs_vram_bytes);
        (entry.host_bytes, entry.vram_bytes, entry.place) = (host_bytes, vram_bytes, Place::Slot);
        let holder = &mut self.workers[worker];
        holder.host_free -= host_bytes;
        let holder = &mut holder.devices[device];
        holder.vram_free -= vram_bytes;
        remove_from(&mut holder.leaving, attempt);
        holder.running.push(attempt);
        self.start_clock(attempt);
    }

    /// An attempt is known to have left its slot: its worker has completed it.
    pub(crate) fn leave_slot(&mut self, attempt: u32) {
        self.attempts[attempt].left = true;
        if self.attempts[attempt].place != Place::Slot {
            return;
        }
        self.stop_clock(attempt);
        let entry = &mut self.attempts[attempt];
        let (worker, device) = (entry.worker, usize::from(entry.device));
        let (host_bytes, vram_bytes) = (entry.host_bytes, entry.vram_bytes);
        (entry.host_bytes, entry.vram_bytes, entry.place) = (0, 0, Place::Leaving);
        let holder = &mut self.workers[worker];
        holder.host_free += host_bytes;
        let holder = &mut holder.devices[device];
        holder.vram_free += vram_bytes;
        remove_from(&mut holder.running, attempt);
        holder.leaving.push(attempt);
        self.mark_dirty(worker);
    }

    pub(crate) fn attempt_started(&mut self, id: AttemptId, out: &mut Vec<Action>) {
        let Some(attempt) = self.find_attempt(id) else {
            return;
        };
        let entry = &mut self.attempts[attempt];
        if entry.started_at.is_some() || entry.place == Place::None {
            return;
        }
        entry.started_at = Some(self.now);
        entry.confirmed_at = self.now;
        let (task, worker) = (entry.task, entry.worker);
        if entry.place == Place::Ahead {
            self.take_over_slot(attempt);
            self.mark_dirty(worker);
        }
        self.end_recall(attempt);
        if self.attempts[attempt].place == Place::Slot {
            self.start_clock(attempt);
            self.watch_straggler(attempt);
        }
        if self.attempts[attempt].lease == Lease::Held {
            if self.tasks[task].current == attempt {
                self.tasks[task].started_at = Some(self.now);
            }
            self.task_changed(task, TaskChange::Started { attempt: id }, out);
        }
    }

    pub(crate) fn attempt_succeeded(
        &mut self,
        id: AttemptId,
        outputs: Vec<(ArtifactName, Binding)>,
        result: Arc<[u8]>,
        usage: Usage,
        out: &mut Vec<Action>,
    ) {
        let Some(attempt) = self.find_attempt(id) else {
            out.push(Action::CompletionJudged {
                worker: WorkerId::UNKNOWN,
                attempt: id,
                accepted: false,
            });
            return;
        };
        let worker = self.attempts[attempt].worker_id;
        let task = self.attempts[attempt].task;
        let (valid, again) = match self.attempts[attempt].lease {
            Lease::Held => (true, false),
            Lease::Ended(accepted) => (accepted, true),
            Lease::Stopping(_) => (false, false),
            // The first valid result counts, even under a lost lease, unless the plan is another one by now.
            Lease::Lost => {
                let entry = &self.tasks[task];
                let counts = !self.attempts[attempt].discarded && !entry.stage.is_terminal();
                (counts && self.jobs[entry.job].may_run(), false)
            }
        };
        if again {
            out.push(Action::CompletionJudged {
                worker,
                attempt: id,
                accepted: valid,
            });
            return;
        }
        self.release(attempt, out);
        let used = self.settle_usage(attempt, usage);
        if valid && let Err(message) = self.check_outputs(task, &outputs, &result) {
            out.push(Action::CompletionJudged {
                worker,
                attempt: id,
                accepted: false,
            });
            self.attempts[attempt].lease = Lease::Ended(false);
            self.detach(attempt);
            return self.attempt_is_fatal(
                attempt,
                FailureClass::Fatal,
                "OutputsRefused",
                message.into(),
                out,
            );
        }
        self.attempts[attempt].lease = Lease::Ended(valid);
        out.push(Action::CompletionJudged {
            worker,
            attempt: id,
            accepted: valid,
        });
        if valid {
            self.accept(attempt, outputs, result, used, out);
        } else {
            self.record_counts(task, out);
        }
    }

    /// The first valid result of a task.
    fn accept(
        &mut self,
        attempt: u32,
        outputs: Vec<(ArtifactName, Binding)>,
        result: Arc<[u8]>,
        used: Usage,
        out: &mut Vec<Action>,
    ) {
        let task = self.attempts[attempt].task;
        let id = self.attempt_id(attempt);
        self.take_out(task);
        self.detach(attempt);
        self.stop_attempts(task, StopReason::Superseded, out);
        let entry = &self.attempts[attempt];
        if entry.device != NO_DEVICE && entry.started_at.is_some() {
            let (kind, taken, worker) = (self.tasks[task].kind, entry.charged, entry.worker_id);
            let mean = self.types.entries[kind as usize].steady_microseconds;
            let worker = self.worker_by_id.get(&worker).copied();
            if let Some(worker) = worker.filter(|_| self.groups.len() > 1) {
                self.measure_group(worker, taken, mean);
            }
            self.measure_tenant(self.jobs[self.tasks[task].job].tenant, taken, mean);
            self.types.measure(kind, taken);
        }
        let job = self.tasks[task].job;
        self.tasks[task].accepted = id.0;
        self.record(out, || self.success_of(task, outputs.clone(), result.clone()));
        self.bind_outputs(job, task, outputs, out);
        self.remember(task, &result, out);
        self.succeed(task, Some(id), result, used, out);
    }

    /// The fact that a task, as it stands now, succeeds with these outputs and this result.
    pub(crate) fn success_of(
        &self,
        task: u32,
        outputs: Vec<(ArtifactName, Binding)>,
        result: Arc<[u8]>,
    ) -> Fact {
        let entry = &self.tasks[task];
        Fact::TaskSucceeded(Box::new(TaskSuccess {
            task: TaskId(self.tasks.id(task)),
            attempt: (entry.accepted != 0).then_some(AttemptId(entry.accepted)),
            attempts: entry.attempts,
            outputs,
            result,
            device_microseconds: entry.device_microseconds,
            energy_millijoules: entry.energy_millijoules,
            started_at: entry.started_at,
            from_cache: entry.from_cache,
            at: self.now,
        }))
    }

    /// No attempt of a task that there was so far gets the lease again, unless another one beside it runs on.
    pub(crate) fn fence(&mut self, task: u32, out: &mut Vec<Action>) {
        let entry = &self.tasks[task];
        let beside = self
            .attempts
            .get(entry.current)
            .map_or(u32::MAX, |other| other.number - 1);
        self.tasks[task].fence = entry.attempts.min(beside);
        self.record_counts(task, out);
    }

    /// Tells a worker to stop an attempt. It keeps its place until the worker says that it has left.
    pub(crate) fn stop_attempt(&mut self, attempt: u32, reason: StopReason, out: &mut Vec<Action>) {
        let task = self.attempts[attempt].task;
        let was_current = self.tasks[task].current == attempt || self.twins.get(&task) == Some(&attempt);
        self.detach(attempt);
        let entry = &mut self.attempts[attempt];
        if entry.place == Place::None || !matches!(entry.lease, Lease::Held | Lease::Lost) {
            return;
        }
        entry.lease = Lease::Stopping(reason);
        entry.discarded = true;
        out.push(Action::Stop {
            worker: entry.worker_id,
            attempt: AttemptId(entry.id),
            reason,
        });
        if was_current && !self.tasks[task].stage.is_terminal() {
            self.fence(task, out);
        }
    }

    /// A stopped attempt has left its device, whatever it says of its end.
    pub(crate) fn stopped_attempt_left(&mut self, attempt: u32, usage: Usage, out: &mut Vec<Action>) {
        self.release(attempt, out);
        let task = self.attempts[attempt].task;
        let before = self.tasks[task].device_microseconds + self.tasks[task].energy_millijoules;
        self.settle_usage(attempt, usage);
        self.attempts[attempt].lease = Lease::Ended(false);
        if self.tasks[task].device_microseconds + self.tasks[task].energy_millijoules > before {
            self.record_counts(task, out);
        }
    }

    pub(crate) fn attempt_stopped(&mut self, id: AttemptId, out: &mut Vec<Action>) {
        let Some(attempt) = self.find_attempt(id) else {
            return;
        };
        match self.attempts[attempt].lease {
            Lease::Stopping(_) => self.stopped_attempt_left(attempt, Usage::default(), out),
            Lease::Held => self.give_back(attempt, out),
            Lease::Lost => self.attempts[attempt].lease = Lease::Ended(false),
            Lease::Ended(_) => {}
        }
    }

    pub(crate) fn recall_answered(&mut self, id: AttemptId, given_back: bool, out: &mut Vec<Action>) {
        let Some(attempt) = self.find_attempt(id) else {
            return;
        };
        self.end_recall(attempt);
        if !given_back {
            return;
        }
        match self.attempts[attempt].lease {
            Lease::Stopping(_) => self.stopped_attempt_left(attempt, Usage::default(), out),
            Lease::Held => self.give_back(attempt, out),
            Lease::Lost | Lease::Ended(_) => {}
        }
    }

    /// The worker has an attempt no more, and nobody is to blame: its task waits in front of the others.
    pub(crate) fn give_back(&mut self, attempt: u32, out: &mut Vec<Action>) {
        let had_started = self.attempts[attempt].started_at.is_some();
        self.release(attempt, out);
        self.settle_usage(attempt, Usage::default());
        self.attempts[attempt].lease = Lease::Ended(false);
        self.detach(attempt);
        let task = self.attempts[attempt].task;
        if !had_started && !self.attempts[attempt].regained {
            self.tasks[task].attempts -= 1;
        } else if !self.tasks[task].stage.is_terminal() {
            self.fence(task, out);
        }
        if self.tasks[task].stage == Stage::Active && !self.runs_on(task) {
            if self.tasks[task].sent {
                self.restart_parent(task, out);
            } else {
                self.make_ready(task, true, out);
            }
        }
    }
}

/// An attempt by its identity, those of earlier epochs among them.
pub(crate) fn find_attempt(
    attempts: &Slab<Attempt>,
    adopted: &BTreeMap<u64, u32>,
    id: AttemptId,
) -> Option<u32> {
    let found = attempts.find(id.0);
    if found.is_none() && !adopted.is_empty() {
        return adopted.get(&id.0).copied();
    }
    found
}

fn remove_from(list: &mut Held, attempt: u32) {
    if let Some(at) = list.iter().position(|other| *other == attempt) {
        list.swap_remove(at);
    }
}
