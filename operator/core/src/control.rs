//! The control lane: parents, which wait for children, hold host memory but no device slot.
//!
//! A job starts only when its whole parent chain is reserved on one worker and its largest leaf still fits some
//! worker beside all reservations. So there is always a worker on which leaves can run: no state is reached in
//! which only waiting parents are left. Where the loss of a worker breaks this, parents are preempted.

use std::collections::BTreeSet;

use crate::action::{Action, JobPhase, StopReason, WaitReason};
use crate::attempts::{Lease, NO_DEVICE, Place};
use crate::bits::bits;
use crate::classes::TIER_IDLE;
use crate::slab::NONE;
use crate::state::State;
use crate::tasks::Stage;

/// Host memory that a job's parents hold or will hold.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub(crate) worker: u32,
    pub(crate) levels: Vec<Level>,
}

/// One level of the parent chain.
#[derive(Debug)]
pub(crate) struct Level {
    pub(crate) bytes: u64,
    pub(crate) used_by: u32,
}

/// Jobs that wait to start with equal needs.
#[derive(Debug)]
pub(crate) struct WaitGroup {
    pub(crate) reason: WaitReason,
    pub(crate) jobs: BTreeSet<u32>,
}

impl State {
    /// Whether a control task of the class can be placed on the worker now without taking the room of leaves.
    pub(crate) fn control_fits(&self, worker: u32, class: u8) -> bool {
        let entry = &self.workers[worker];
        let bytes = self.classes.host_bytes[usize::from(class)];
        if entry.fits & (1 << class) == 0 || entry.host_free < bytes || entry.is_kept() {
            return false;
        }
        let own = self.classes.entries[usize::from(class)].key.leaf;
        let lost = entry.leaf_fits & !self.leaf_fit(worker, entry.parents_bytes + bytes);
        for leaf in bits(lost) {
            let leaf_class = &self.classes.entries[leaf as usize];
            if leaf_class.leaf_workers == 1 && (leaf_class.leaf_jobs > 0 || own == Some(leaf as u8)) {
                return false;
            }
        }
        own.is_none_or(|leaf| {
            let leaf_class = &self.classes.entries[usize::from(leaf)];
            let is_control = self.classes.control & (1 << leaf) != 0;
            if is_control {
                leaf_class.fit_workers > 0
            } else {
                leaf_class.leaf_workers > 0
            }
        })
    }

    /// Places control tasks: children of a chain into their reservation, others where they fit. With a worker
    /// given, only that one is looked at.
    pub(crate) fn place_control(&mut self, only: Option<u32>, out: &mut Vec<Action>) {
        for job in std::mem::take(&mut self.chain_jobs) {
            if self.jobs.get(job).is_some_and(|entry| entry.may_run()) {
                self.place_chain(job, out);
            }
        }
        loop {
            let queued = self.tenant_order.mask() & self.classes.control;
            let mut placeable = 0u64;
            let mut places = [NONE; crate::classes::CLASSES];
            for class in bits(queued) {
                let place = match only {
                    Some(worker) => Some(worker).filter(|worker| self.control_fits(*worker, class as u8)),
                    None => self.best_for_parent(class as u8),
                };
                if let Some(worker) = place {
                    placeable |= 1 << class;
                    places[class as usize] = worker;
                }
            }
            if placeable == 0 {
                return;
            }
            let Some(job) = self.first_control_job(placeable) else {
                return;
            };
            let Some(task) = self.pop(job, placeable) else {
                return;
            };
            let worker = places[usize::from(self.tasks[task].class)];
            self.start_control(task, worker, None, out);
        }
    }

    /// The worker on which a parent is least in the way: one that keeps room for a leaf, with the most memory free.
    fn best_for_parent(&self, class: u8) -> Option<u32> {
        let bytes = self.classes.host_bytes[usize::from(class)];
        let needed = (0..self.classes.entries.len())
            .filter(|leaf| self.classes.entries[*leaf].leaf_jobs > 0)
            .fold(0u64, |mask, leaf| mask | 1 << leaf)
            | self.classes.entries[usize::from(class)]
                .key
                .leaf
                .map_or(0, |leaf| 1 << leaf);
        self.classes.entries[usize::from(class)].room[TIER_IDLE]
            .iter()
            .filter(|worker| self.control_fits(*worker, class))
            .max_by_key(|worker| {
                let entry = &self.workers[*worker];
                let lost = entry.leaf_fits & needed & !self.leaf_fit(*worker, entry.parents_bytes + bytes);
                (lost == 0, entry.host_free, std::cmp::Reverse(*worker))
            })
    }

    fn first_control_job(&self, classes: u64) -> Option<u32> {
        let tenant = self.tenant_order.first(classes)?;
        Some(self.tenants[tenant.index as usize].jobs.first(classes)?.index)
    }

    fn place_chain(&mut self, job: u32, out: &mut Vec<Action>) {
        loop {
            let entry = &self.jobs[job];
            let Some(reservation) = &entry.reservation else {
                return;
            };
            let worker = reservation.worker;
            let holder = &self.workers[worker];
            if !holder.takes_work() || holder.strays > 0 {
                return;
            }
            let control = entry.queued_mask & self.classes.control;
            let free = bits(control)
                .filter(|class| self.classes.entries[*class as usize].key.leaf.is_none())
                .find_map(|class| {
                    let bytes = self.classes.host_bytes[class as usize];
                    let level = reservation
                        .levels
                        .iter()
                        .position(|level| level.used_by == NONE && level.bytes >= bytes)?;
                    Some((class, level))
                });
            let Some((class, level)) = free else { return };
            let Some(task) = self.pop(job, 1 << class) else {
                return;
            };
            self.start_control(task, worker, Some(level as u8), out);
        }
    }

    fn start_control(&mut self, task: u32, worker: u32, level: Option<u8>, out: &mut Vec<Action>) {
        let (job, class) = (self.tasks[task].job, self.tasks[task].class);
        let attempt = self.start_attempt(task, worker, NO_DEVICE, Place::Control, out);
        self.mark_dirty(worker);
        if level.is_some() {
            self.attempts[attempt].level = level;
            if let (Some(reservation), Some(level)) = (&mut self.jobs[job].reservation, level) {
                reservation.levels[usize::from(level)].used_by = attempt;
            }
            return;
        }
        self.book_control(attempt, worker, class);
    }

    /// Books host memory for an attempt of the control lane; for a root, that of its whole chain.
    pub(crate) fn book_control(&mut self, attempt: u32, worker: u32, class: u8) {
        let (job, task) = (self.attempts[attempt].job, self.attempts[attempt].task);
        let bytes = self.classes.host_bytes[usize::from(class)];
        let holder = &mut self.workers[worker];
        assert!(
            holder.host_free >= bytes,
            "host memory is never overbooked by parents"
        );
        holder.host_free -= bytes;
        holder.parents_bytes += bytes;
        if self.jobs[job].root == task && !self.jobs[job].chain.is_empty() {
            assert!(
                self.jobs[job].reservation.is_none(),
                "a job holds one reservation"
            );
            let mut levels: Vec<Level> = self.jobs[job]
                .chain
                .iter()
                .map(|bytes| Level {
                    bytes: *bytes,
                    used_by: NONE,
                })
                .collect();
            levels[0].used_by = attempt;
            self.jobs[job].reservation = Some(Reservation { worker, levels });
            self.attempts[attempt].level = Some(0);
        } else {
            self.attempts[attempt].host_bytes = bytes;
        }
        self.refresh_leaf_fit(worker);
    }

    /// An attempt of the control lane has left: its memory goes back, or its level of the chain is free again.
    pub(crate) fn release_control(&mut self, attempt: u32, host_bytes: u64) {
        let entry = &mut self.attempts[attempt];
        let (job, worker, task) = (entry.job, entry.worker, entry.task);
        self.waits_changed = true;
        self.control_wanted = true;
        match entry.level.take() {
            Some(level) => {
                if let Some(reservation) = &mut self.jobs[job].reservation {
                    reservation.levels[usize::from(level)].used_by = NONE;
                }
                if self.jobs[job].root == task {
                    self.release_reservation(job);
                } else {
                    self.chain_jobs.push(job);
                }
            }
            None => {
                let holder = &mut self.workers[worker];
                holder.host_free += host_bytes;
                holder.parents_bytes -= host_bytes;
                self.refresh_leaf_fit(worker);
            }
        }
    }

    /// Gives a job's reservation back. What attempts still use of it becomes their own until they leave.
    pub(crate) fn release_reservation(&mut self, job: u32) {
        let Some(reservation) = self.jobs[job].reservation.take() else {
            return;
        };
        let worker = reservation.worker;
        for level in reservation.levels {
            if level.used_by == NONE {
                let holder = &mut self.workers[worker];
                holder.host_free += level.bytes;
                holder.parents_bytes -= level.bytes;
            } else {
                let user = &mut self.attempts[level.used_by];
                user.level = None;
                user.host_bytes = level.bytes;
            }
        }
        self.refresh_leaf_fit(worker);
        self.mark_dirty(worker);
        self.waits_changed = true;
        self.control_wanted = true;
    }

    /// The root of a job has been given to a worker.
    pub(crate) fn root_started(&mut self, job: u32, out: &mut Vec<Action>) {
        self.wait_leave(job);
        self.count_leaf(job);
        if self.jobs[job].started_at.is_none() {
            self.jobs[job].started_at = Some(self.now);
        }
        if self.jobs[job].active_since.is_none() {
            self.begin_active_time(job, out);
            self.set_deadline_timers(job);
        }
        self.set_phase(job, JobPhase::Running, out);
    }

    pub(crate) fn count_leaf(&mut self, job: u32) {
        if !std::mem::replace(&mut self.jobs[job].leaf_counted, true) {
            let leaf = usize::from(self.jobs[job].leaf_class);
            self.classes.entries[leaf].leaf_jobs += 1;
            self.topology_changed |= self.classes.entries[leaf].leaf_workers == 0;
        }
    }

    pub(crate) fn uncount_leaf(&mut self, job: u32) {
        if std::mem::replace(&mut self.jobs[job].leaf_counted, false) {
            let leaf = usize::from(self.jobs[job].leaf_class);
            self.classes.entries[leaf].leaf_jobs -= 1;
            self.control_wanted = true;
        }
    }

    /// Preempts parents where no worker is left that could hold the leaves of a started job beside them.
    pub(crate) fn make_room_for_leaves(&mut self, out: &mut Vec<Action>) {
        if self.recovering.is_some() {
            // Workers with room may still be on their way; it is looked at again when nobody is waited for.
            return;
        }
        for leaf in 0..self.classes.entries.len() {
            let class = &self.classes.entries[leaf];
            if class.leaf_jobs == 0 || class.leaf_workers > 0 || class.fit_workers == 0 {
                continue;
            }
            let bytes = self.classes.host_bytes[leaf];
            let best = self
                .workers
                .iter()
                .filter(|(_, worker)| worker.fits & (1 << leaf) != 0)
                .min_by_key(|(_, worker)| {
                    self.parents_that_stay(worker)
                        .saturating_sub(worker.spec.host_memory_bytes)
                })
                .map(|(index, _)| index);
            let Some(worker) = best else { continue };
            let room = self.workers[worker].spec.host_memory_bytes.saturating_sub(bytes);
            while self.parents_that_stay(&self.workers[worker]) > room {
                let youngest = self.workers[worker]
                    .control
                    .iter()
                    .copied()
                    .filter(|attempt| self.attempts[*attempt].lease == Lease::Held)
                    .max_by_key(|attempt| (self.attempts[*attempt].assigned_at, *attempt));
                let Some(attempt) = youngest else { break };
                self.preempt(attempt, out);
            }
        }
    }

    /// Host memory that parents hold when those that were told to stop have left.
    fn parents_that_stay(&self, worker: &crate::workers::Worker) -> u64 {
        let leaving: u64 = worker
            .control
            .iter()
            .map(|attempt| &self.attempts[*attempt])
            .filter(|attempt| matches!(attempt.lease, Lease::Stopping(_)))
            .map(|attempt| attempt.host_bytes)
            .sum();
        worker.parents_bytes.saturating_sub(leaving)
    }

    fn preempt(&mut self, attempt: u32, out: &mut Vec<Action>) {
        let (task, job) = (self.attempts[attempt].task, self.attempts[attempt].job);
        if self.jobs[job].root == task {
            self.release_reservation(job);
        }
        self.stop_attempt(attempt, StopReason::Preempted, out);
        if self.tasks[task].sent {
            self.restart_parent(task, out);
        } else if self.tasks[task].stage == Stage::Active {
            self.make_ready(task, true, out);
        }
        if self.jobs[job].root == task && self.jobs[job].may_run() {
            self.set_phase(job, JobPhase::Queued(WaitReason::Admitted), out);
            self.wait_enter(job);
        }
    }

    // ---- why queued jobs wait ----

    pub(crate) fn wait_enter(&mut self, job: u32) {
        if !matches!(self.jobs[job].phase, JobPhase::Queued(_)) || self.jobs[job].wait_key.is_some() {
            return;
        }
        let key = (self.tasks[self.jobs[job].root].class, self.jobs[job].leaf_class);
        self.jobs[job].wait_key = Some(key);
        let group = self.waiting.entry(key).or_insert(WaitGroup {
            reason: WaitReason::Admitted,
            jobs: BTreeSet::new(),
        });
        group.jobs.insert(job);
        // The whole group is told again, so that the new one hears it too.
        group.reason = WaitReason::Admitted;
        self.waits_changed = true;
    }

    pub(crate) fn wait_leave(&mut self, job: u32) {
        let Some(key) = self.jobs[job].wait_key.take() else {
            return;
        };
        if let Some(group) = self.waiting.get_mut(&key) {
            group.jobs.remove(&job);
            if group.jobs.is_empty() {
                self.waiting.remove(&key);
            }
        }
    }

    /// Tells queued jobs why they wait, where that has changed.
    pub(crate) fn tell_waits(&mut self, out: &mut Vec<Action>) {
        let keys: Vec<(u8, u8)> = self.waiting.keys().copied().collect();
        for key in keys {
            let reason = self.wait_reason(key.0, key.1);
            let Some(group) = self.waiting.get_mut(&key) else {
                continue;
            };
            if group.reason == reason {
                continue;
            }
            group.reason = reason;
            let jobs: Vec<u32> = group.jobs.iter().copied().collect();
            for job in jobs {
                self.set_phase(job, JobPhase::Queued(reason), out);
            }
        }
    }

    fn wait_reason(&self, root: u8, leaf: u8) -> WaitReason {
        let backend = &self.classes.entries[usize::from(root)].key.requirements.backend;
        let of_backend =
            |worker: &&crate::workers::Worker| worker.takes_work() && worker.spec.backend == *backend;
        let workers = || self.workers.iter().map(|(_, worker)| worker).filter(of_backend);
        if workers().next().is_none() {
            return WaitReason::NoWorkerOfBackend;
        }
        let bytes = self.classes.host_bytes[usize::from(root)];
        let leaf_bytes = self.classes.host_bytes[usize::from(leaf)];
        let (root_bit, leaf_bit) = (1u64 << root, 1u64 << leaf);
        let root_fits = workers().filter(|worker| worker.fits & root_bit != 0).count();
        let leaf_fits = workers().filter(|worker| worker.fits & leaf_bit != 0).count();
        let together = workers().any(|worker| {
            worker.fits & root_bit != 0
                && (leaf_fits > 1
                    || worker.fits & leaf_bit == 0
                    || worker.spec.host_memory_bytes >= bytes.saturating_add(leaf_bytes))
        });
        if root_fits == 0 || leaf_fits == 0 || !together {
            return WaitReason::NoWorkerLargeEnough;
        }
        let parents_leave_room = workers().any(|worker| {
            worker.fits & root_bit != 0
                && worker.spec.host_memory_bytes - worker.parents_bytes
                    >= bytes
                        + if worker.fits & leaf_bit != 0 && leaf_fits == 1 {
                            leaf_bytes
                        } else {
                            0
                        }
        });
        if parents_leave_room {
            WaitReason::WaitingForCapacity
        } else {
            WaitReason::WaitingForHostMemory
        }
    }
}
