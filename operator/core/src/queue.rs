//! The fair queue: tenants by their weighted share of device time; inside a tenant priority, then deadline, then
//! the share of each job; inside a job the longest way to its end, which those at the bottom of its graph have.
//!
//! Owns what is queued and in which order. Shares are charged with an estimate when an attempt is assigned and
//! corrected with what was measured when it ends.

use std::collections::VecDeque;

use smallvec::SmallVec;

use crate::classes::TIER_AHEAD;
use crate::model::JobPolicy;
use crate::order::Rank;
use crate::slab::NONE;
use crate::state::State;
use crate::tasks::Stage;

/// A correction that is larger than this part of the charge is applied at once, smaller ones with the next charge.
const CORRECTION_PART: u64 = 4;

/// Tasks of one class and one height of one job.
#[derive(Debug)]
struct Level {
    height: u8,
    /// The first entry lies here, so that taking it does not wait for the memory of the others.
    first: Option<Queued>,
    others: VecDeque<Queued>,
}

impl Level {
    fn push(&mut self, entry: Queued, front: bool) {
        match self.first {
            None => self.first = Some(entry),
            Some(first) if front => {
                self.others.push_front(first);
                self.first = Some(entry);
            }
            Some(_) => self.others.push_back(entry),
        }
    }

    fn pop(&mut self) -> Option<Queued> {
        std::mem::replace(&mut self.first, self.others.pop_front())
    }
}

/// Tasks of one class of one job, by height: the lowest go first.
#[derive(Debug)]
pub(crate) struct ClassQueue {
    pub(crate) class: u8,
    /// Entries that still stand for a ready task.
    pub(crate) live: u32,
    /// In ascending order of their heights. Mostly there is one.
    levels: SmallVec<[Level; 1]>,
}

impl ClassQueue {
    fn new(class: u8) -> ClassQueue {
        ClassQueue {
            class,
            live: 0,
            levels: SmallVec::new(),
        }
    }

    fn push(&mut self, entry: Queued, height: u8, front: bool) {
        self.live += 1;
        let at = match self.levels.iter().position(|level| level.height >= height) {
            Some(at) if self.levels[at].height == height => at,
            found => {
                let at = found.unwrap_or(self.levels.len());
                let level = Level {
                    height,
                    first: None,
                    others: VecDeque::new(),
                };
                self.levels.insert(at, level);
                at
            }
        };
        self.levels[at].push(entry, front);
    }

    /// The first entry that counts, with its height; those that don't are dropped.
    fn first(&mut self, counts: impl Fn(&Queued) -> bool) -> Option<(u8, Queued)> {
        for level in &mut self.levels {
            while let Some(first) = level.first {
                if counts(&first) {
                    return Some((level.height, first));
                }
                level.pop();
            }
        }
        None
    }

    /// Takes the first entry of a height.
    fn pop(&mut self, height: u8) -> Option<Queued> {
        self.levels.iter_mut().find(|level| level.height == height)?.pop()
    }

    /// One entry does not count any more; with the last one all go.
    fn one_less(&mut self) {
        self.live -= 1;
        if self.live == 0 {
            for level in &mut self.levels {
                level.first = None;
                level.others.clear();
            }
        }
    }
}

/// The queues of a job, one per class. Most jobs have tasks of one class ready at a time: the first queue lies in
/// the job itself.
#[derive(Debug, Default)]
pub(crate) struct ClassQueues {
    first: Option<ClassQueue>,
    others: Vec<ClassQueue>,
}

impl ClassQueues {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &ClassQueue> {
        self.first.iter().chain(self.others.iter())
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut ClassQueue> {
        self.first.iter_mut().chain(self.others.iter_mut())
    }

    fn find(&mut self, class: u8) -> Option<&mut ClassQueue> {
        self.iter_mut().find(|queue| queue.class == class)
    }

    fn push(&mut self, class: u8, entry: Queued, height: u8, front: bool) {
        if let Some(queue) = self.find(class) {
            return queue.push(entry, height, front);
        }
        let mut queue = ClassQueue::new(class);
        queue.push(entry, height, front);
        match self.first {
            None => self.first = Some(queue),
            Some(_) => self.others.push(queue),
        }
    }
}

/// A task in a queue. The entry counts only while the task has the same ticket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queued {
    pub(crate) order: u32,
    pub(crate) task: u32,
    pub(crate) ticket: u32,
}

/// Whose turn it is on a worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    pub(crate) job: u32,
    /// Of these classes it may be given a task.
    pub(crate) classes: u64,
    /// Its tenant may have no further device: the task goes to one that the tenant has.
    pub(crate) stays_with: Option<u32>,
}

/// Priority and deadline as one number: smaller goes first. Deadlines count in seconds.
pub(crate) fn rank_group(policy: &JobPolicy) -> u64 {
    let priority = (i64::from(i32::MAX) - i64::from(policy.priority)) as u64;
    let deadline = policy.deadline.map_or(u64::from(u32::MAX), |at| {
        (at.0 / 1000).min(u64::from(u32::MAX) - 1)
    });
    (priority << 32) | deadline
}

impl State {
    /// Puts a ready task into its job's queue.
    pub(crate) fn enqueue(&mut self, task: u32, front: bool) {
        let entry = &self.tasks[task];
        debug_assert!(entry.stage == Stage::Ready && !entry.queued);
        let (job, class) = (entry.job, entry.class);
        let queued = Queued {
            order: entry.order,
            task,
            ticket: entry.ticket,
        };
        let height = if self.limits.longest_path_first {
            entry.height
        } else {
            0
        };
        self.tasks[task].queued = true;
        let entry = &mut self.jobs[job];
        entry.queues.push(class, queued, height, front);
        let bit = 1u64 << class;
        if entry.queued_mask & bit == 0 {
            entry.queued_mask |= bit;
            self.republish(job);
        }
        self.newly_queued |= bit;
        let entry = &self.jobs[job];
        if entry.capped {
            // Others don't see its tasks: the workers that it runs on must look.
            let workers: Vec<u32> = entry.workers.keys().copied().collect();
            for worker in workers {
                self.mark_dirty(worker);
            }
        }
        let tenant = &self.tenants[self.jobs[job].tenant as usize];
        if tenant.capped {
            let with_room = |worker: &u32| {
                let room = self.workers[*worker].published;
                room.iter().any(|tier| tier & bit != 0)
            };
            let workers: Vec<u32> = tenant
                .devices
                .keys()
                .map(|(worker, _)| *worker)
                .filter(with_room)
                .collect();
            for worker in workers {
                self.mark_dirty(worker);
            }
        }
    }

    /// Takes a task out of its job's queue; its entry is skipped when it comes to the front.
    pub(crate) fn dequeue(&mut self, task: u32) {
        let entry = &mut self.tasks[task];
        debug_assert!(entry.queued);
        entry.queued = false;
        entry.ticket = entry.ticket.wrapping_add(1);
        let (job, class) = (entry.job, entry.class);
        let entry = &mut self.jobs[job];
        let Some(queue) = entry.queues.find(class) else {
            return;
        };
        queue.one_less();
        if queue.live == 0 {
            entry.queued_mask &= !(1u64 << class);
            self.republish(job);
        }
    }

    /// Takes the task that comes first among some classes of a job; the caller must start it.
    /// The job's rank is not brought up to date: charging it for the attempt does that.
    pub(crate) fn pop(&mut self, job: u32, classes: u64) -> Option<u32> {
        let (tasks, entry) = (&self.tasks, &mut self.jobs[job]);
        let counts = |queued: &Queued| {
            tasks
                .get(queued.task)
                .is_some_and(|task| task.queued && task.ticket == queued.ticket)
        };
        let mut best: Option<((u8, u32), u8)> = None;
        for queue in entry.queues.iter_mut() {
            if queue.live == 0 || classes & (1 << queue.class) == 0 {
                continue;
            }
            let (height, first) = queue.first(counts)?;
            if best.is_none_or(|(other, _)| (height, first.order) < other) {
                best = Some(((height, first.order), queue.class));
            }
        }
        let ((height, _), class) = best?;
        let queue = entry.queues.find(class)?;
        let first = queue.pop(height)?;
        queue.one_less();
        if queue.live == 0 {
            entry.queued_mask &= !(1u64 << queue.class);
        }
        let task = &mut self.tasks[first.task];
        task.queued = false;
        task.ticket = task.ticket.wrapping_add(1);
        Some(first.task)
    }

    fn job_rank(&self, job: u32) -> Rank {
        let entry = &self.jobs[job];
        Rank {
            group: rank_group(&entry.policy),
            share: entry.share,
            index: job,
        }
    }

    /// Brings the place of a job, and of its tenant, in the order up to date.
    pub(crate) fn republish(&mut self, job: u32) {
        let entry = &mut self.jobs[job];
        let mut mask = if entry.may_run() { entry.queued_mask } else { 0 };
        if entry.capped {
            mask &= self.classes.control;
        }
        entry.share = entry
            .share
            .saturating_add_signed(std::mem::take(&mut entry.correction));
        let (tenant, old) = (entry.tenant as usize, entry.published);
        let mut rank = self.job_rank(job);
        match old {
            None if mask == 0 => return self.republish_tenant(tenant as u32),
            None => {
                // Whoever had nothing to run does not save up for later.
                let floor = match self.tenants[tenant].jobs.first_of_group(rank.group) {
                    Some(first) if first.group == rank.group => first.share,
                    _ => self.tenants[tenant].floor,
                };
                rank.share = rank.share.max(floor);
                self.jobs[job].share = rank.share;
                self.tenants[tenant].jobs.insert(rank, mask);
            }
            Some((old_rank, _)) if mask == 0 => self.tenants[tenant].jobs.remove(&old_rank),
            Some((old_rank, old_mask)) if old_rank == rank => {
                if old_mask == mask {
                    return self.republish_tenant(tenant as u32);
                }
                self.tenants[tenant].jobs.set_mask(&rank, mask);
            }
            Some((old_rank, _)) => {
                self.tenants[tenant].jobs.update(&old_rank, rank, mask);
            }
        }
        self.jobs[job].published = (mask != 0).then_some((rank, mask));
        self.republish_tenant(tenant as u32);
    }

    /// Classes of which a tenant may be given tasks on any device: at its bound planners only, and not even those
    /// where the bound is zero, since they would run for tasks that can't.
    pub(crate) fn classes_for_tenant(&self, tenant: u32) -> u64 {
        let entry = &self.tenants[tenant as usize];
        match (entry.policy.max_devices, entry.capped) {
            (Some(0), _) => 0,
            (_, true) => self.classes.control,
            (_, false) => u64::MAX,
        }
    }

    pub(crate) fn republish_tenant(&mut self, tenant: u32) {
        let floor = self.tenant_floor;
        let seen = self.classes_for_tenant(tenant);
        let entry = &mut self.tenants[tenant as usize];
        let mask = entry.jobs.mask() & seen;
        entry.share = entry
            .share
            .saturating_add_signed(std::mem::take(&mut entry.correction));
        let mut rank = Rank {
            group: 0,
            share: entry.share,
            index: tenant,
        };
        match entry.published {
            None if mask == 0 => return,
            None => {
                let floor = self
                    .tenant_order
                    .first_of_group(0)
                    .map_or(floor, |first| first.share);
                rank.share = rank.share.max(floor);
                entry.share = rank.share;
                self.tenant_order.insert(rank, mask);
            }
            Some((old_rank, _)) if mask == 0 => self.tenant_order.remove(&old_rank),
            Some((old_rank, old_mask)) if old_rank == rank => {
                if old_mask == mask {
                    return;
                }
                self.tenant_order.set_mask(&rank, mask);
            }
            Some((old_rank, _)) => {
                self.tenant_order.update(&old_rank, rank, mask);
            }
        }
        entry.published = (mask != 0).then_some((rank, mask));
    }

    /// The job that comes first among those with a task of one of the classes that the worker may be given, which of
    /// the classes it may take, and the tenant on whose devices it has to stay.
    pub(crate) fn first_job(&self, classes: u64, worker: u32, ahead: bool) -> Option<Turn> {
        let fair = self.tenant_order.first(classes).and_then(|tenant| {
            let rank = self.tenants[tenant.index as usize].jobs.first(classes)?;
            let turn = Turn {
                job: rank.index,
                classes,
                stays_with: None,
            };
            Some(((tenant.share, tenant.index, rank), turn))
        });
        if self.capped_jobs == 0 && self.capped_tenants == 0 {
            return fair.map(|(_, turn)| turn);
        }
        let mut best = fair;
        let mut consider = |tenant: u32, rank: Rank, classes: u64, stays_with: Option<u32>| {
            let rank = (self.tenants[tenant as usize].share, tenant, rank);
            let turn = Turn {
                job: rank.2.index,
                classes,
                stays_with,
            };
            if best.is_none_or(|(first, _)| rank < first) {
                best = Some((rank, turn));
            }
        };
        // What is at a limit is not in the order: only where it runs already it is seen.
        let holder = &self.workers[worker];
        for device in &holder.devices {
            let mut of_device = None;
            for attempt in device.attempts() {
                let job = self.attempts[attempt].job;
                let entry = &self.jobs[job];
                let tenant = entry.tenant;
                let capped = self.tenants[tenant as usize].capped;
                let mut seen = classes & !self.classes.control;
                if capped {
                    seen &= *of_device.get_or_insert_with(|| match self.device_classes(holder, device) {
                        Some((tier, mask)) if (tier == TIER_AHEAD) == ahead => mask,
                        _ => 0,
                    });
                }
                let stays_with = capped.then_some(tenant);
                if let Some(rank) = self.tenants[tenant as usize].jobs.first(seen).filter(|_| capped) {
                    consider(tenant, rank, seen, stays_with);
                }
                let tasks = entry.queued_mask & seen;
                if entry.capped && tasks != 0 && entry.may_run() && entry.workers.contains_key(&worker) {
                    consider(tenant, self.job_rank(job), seen, stays_with);
                }
            }
        }
        best.map(|(_, turn)| turn)
    }

    /// Charges a job and its tenant for an attempt that is assigned, and brings their ranks up to date.
    pub(crate) fn charge(&mut self, job: u32, microseconds: u64) {
        let entry = &mut self.jobs[job];
        let tenant = &mut self.tenants[entry.tenant as usize];
        tenant.floor = tenant.floor.max(entry.share);
        self.tenant_floor = self.tenant_floor.max(tenant.share);
        entry.share = entry.share.saturating_add(microseconds);
        tenant.share = tenant
            .share
            .saturating_add(weighted(microseconds, tenant.policy.weight));
        self.republish(job);
    }

    /// Replaces what an attempt was charged by what it took.
    pub(crate) fn correct(&mut self, job: u32, charged: u64, taken: u64) {
        if charged == taken {
            return;
        }
        let entry = &mut self.jobs[job];
        let tenant = &mut self.tenants[entry.tenant as usize];
        entry.correction = entry.correction.saturating_add(taken as i64 - charged as i64);
        tenant.correction = tenant.correction.saturating_add(
            weighted(taken, tenant.policy.weight) as i64 - weighted(charged, tenant.policy.weight) as i64,
        );
        if entry.correction.unsigned_abs() > charged / CORRECTION_PART {
            self.republish(job);
        }
    }

    /// Recounts on how many workers a job runs, after its limit was set or changed.
    pub(crate) fn recount_workers(&mut self, job: u32) {
        let was_capped = self.jobs[job].capped;
        self.jobs[job].workers.clear();
        if self.jobs[job].policy.max_workers.is_some() {
            for attempt in self.attempts_of(job) {
                let entry = &self.attempts[attempt];
                if entry.holds_worker() && entry.worker != NONE {
                    let worker = entry.worker;
                    *self.jobs[job].workers.entry(worker).or_insert(0) += 1;
                }
            }
        }
        self.jobs[job].capped = false;
        self.capped_jobs -= u32::from(was_capped);
        self.refresh_cap(job);
        self.republish(job);
        self.newly_queued |= self.jobs[job].queued_mask;
    }

    /// Brings up to date whether a job may be given further workers.
    pub(crate) fn refresh_cap(&mut self, job: u32) {
        let entry = &mut self.jobs[job];
        let capped = entry
            .policy
            .max_workers
            .is_some_and(|limit| entry.workers.len() >= limit as usize);
        if capped == entry.capped {
            return;
        }
        entry.capped = capped;
        if capped {
            self.capped_jobs += 1;
            // Only the workers that it has see its tasks from now on.
            let workers: Vec<u32> = entry.workers.keys().copied().collect();
            for worker in workers {
                self.mark_dirty(worker);
            }
        } else {
            self.capped_jobs -= 1;
            self.newly_queued |= self.jobs[job].queued_mask;
        }
        self.republish(job);
    }

    // ---- devices of tenants ----

    /// One attempt more of a tenant has a place on a device.
    pub(crate) fn tenant_takes(&mut self, tenant: u32, worker: u32, device: u16) {
        let entry = &mut self.tenants[tenant as usize];
        if entry.policy.max_devices.is_some() {
            *entry.devices.entry((worker, device)).or_insert(0) += 1;
            self.refresh_tenant_cap(tenant);
        }
    }

    /// One attempt less of a tenant has a place on a device.
    pub(crate) fn tenant_leaves(&mut self, tenant: u32, worker: u32, device: u16) {
        let entry = &mut self.tenants[tenant as usize];
        let Some(count) = entry.devices.get_mut(&(worker, device)) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            entry.devices.remove(&(worker, device));
            self.refresh_tenant_cap(tenant);
        }
    }

    /// Whether a tenant's tasks may go to a device.
    pub(crate) fn tenant_may_use(&self, tenant: u32, worker: u32, device: u16) -> bool {
        let entry = &self.tenants[tenant as usize];
        !entry.capped || entry.devices.contains_key(&(worker, device))
    }

    /// Recounts a tenant's devices, after their bound was set or changed.
    pub(crate) fn recount_tenant_devices(&mut self, tenant: u32) {
        self.tenants[tenant as usize].devices.clear();
        if self.tenants[tenant as usize].policy.max_devices.is_some() {
            let of_tenant = |attempt: u32| self.jobs[self.attempts[attempt].job].tenant == tenant;
            let mut devices = std::collections::BTreeMap::new();
            for (worker, holder) in self.workers.iter() {
                for (index, device) in holder.devices.iter().enumerate() {
                    let count = device.attempts().filter(|attempt| of_tenant(*attempt)).count();
                    if count > 0 {
                        devices.insert((worker, index as u16), count as u32);
                    }
                }
            }
            self.tenants[tenant as usize].devices = devices;
        }
        self.refresh_tenant_cap(tenant);
    }

    /// Brings up to date whether a tenant may be given further devices.
    fn refresh_tenant_cap(&mut self, tenant: u32) {
        let entry = &mut self.tenants[tenant as usize];
        let limit = entry.policy.max_devices;
        let capped = limit.is_some_and(|limit| entry.devices.len() >= limit as usize);
        if std::mem::replace(&mut entry.capped, capped) == capped {
            return;
        }
        let mask = entry.jobs.mask();
        if capped {
            self.capped_tenants += 1;
            // Only the workers that it has see its tasks from now on.
            let workers: Vec<u32> = entry.devices.keys().map(|(worker, _)| *worker).collect();
            for worker in workers {
                self.mark_dirty(worker);
            }
        } else {
            self.capped_tenants -= 1;
            self.newly_queued |= mask;
            self.control_wanted |= !self.picky.is_empty();
        }
        self.republish_tenant(tenant);
    }
}

fn weighted(microseconds: u64, weight: u32) -> u64 {
    (microseconds / u64::from(weight.max(1))).max(u64::from(microseconds > 0))
}
