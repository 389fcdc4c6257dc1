//! Placement: which ready task goes to which worker with room.
//!
//! Runs at the end of every event. A worker that became free is filled with what comes first in the fair queue
//! among the classes that it has room for, so a task that fits nowhere never stops another one. A task that
//! became ready goes to the best free worker. In between the two never overlap: after every event no queued
//! task fits a worker with room.

use crate::action::Action;
use crate::attempts::{Lease, Place};
use crate::bits::bits;
use crate::classes::{CLASSES, TIER_AHEAD, TIER_IDLE, TIER_SLOT};
use crate::model::WorkerId;
use crate::slab::NONE;
use crate::state::State;
use crate::workers::Room;

/// Singly placed tasks that one event looks at; the others wait for the next.
const PICKY_PER_EVENT: usize = 64;
/// Attempts fetched ahead among which one to recall is sought.
const RECALL_CANDIDATES: usize = 8;

impl State {
    /// Dispatches until nothing that waits fits anywhere.
    pub(crate) fn settle(&mut self, out: &mut Vec<Action>) {
        loop {
            if std::mem::take(&mut self.topology_changed) {
                self.make_room_for_leaves(out);
                self.control_wanted = true;
                self.waits_changed = true;
            }
            if self.dirty.is_empty() && self.newly_queued == 0 && !self.control_wanted {
                break;
            }
            let mut dirty = std::mem::take(&mut self.dirty);
            std::mem::swap(&mut self.dirty, &mut self.spare);
            self.settle_workers(&dirty, out);
            dirty.clear();
            self.spare = dirty;
        }
        self.watch_waiting();
        if !self.to_forget.is_empty() {
            for job in std::mem::take(&mut self.to_forget) {
                if self.jobs.get(job).is_some() {
                    self.forget_if_idle(job, out);
                }
            }
        }
        if std::mem::take(&mut self.waits_changed) && !self.waiting.is_empty() {
            self.tell_waits(out);
        }
    }

    fn settle_workers(&mut self, dirty: &[u32], out: &mut Vec<Action>) {
        for group in self.refresh_holding_back() {
            self.group_changed_its_mind(group);
        }
        // A worker that was removed meanwhile has nothing to settle.
        let here = |state: &State, worker: u32| state.workers.get(worker).is_some();
        for worker in dirty.iter().copied() {
            if here(self, worker) {
                self.workers[worker].dirty = false;
                self.promote(worker);
            }
        }
        let everywhere = std::mem::take(&mut self.control_wanted) || !self.chain_jobs.is_empty();
        let control_queued = self.tenant_order.mask() & self.classes.control != 0;
        if everywhere && control_queued || !self.picky.is_empty() {
            for worker in dirty
                .iter()
                .copied()
                .filter(|worker| here(self, *worker))
                .collect::<Vec<_>>()
            {
                let room = self.room(worker);
                self.publish_room(worker, room);
            }
        }
        if !control_queued {
            self.chain_jobs.clear();
        }
        if control_queued && everywhere {
            self.place_control(None, out);
        } else if control_queued {
            for worker in dirty.iter().copied() {
                if here(self, worker) {
                    self.place_control(Some(worker), out);
                }
            }
        }
        if !self.picky.is_empty() {
            self.place_picky(out);
        }
        let newly_queued = std::mem::take(&mut self.newly_queued) & !self.classes.control;
        if newly_queued != 0 || dirty.len() > 1 {
            for worker in dirty.iter().copied() {
                if here(self, worker) {
                    self.fill(worker, false, out);
                }
            }
            self.spread(newly_queued, false, out);
        }
        for worker in dirty.iter().copied() {
            if here(self, worker) {
                self.fill(worker, true, out);
            }
        }
        self.spread(newly_queued, true, out);
        for worker in dirty.iter().copied() {
            if here(self, worker) {
                self.recall_for(worker, out);
                self.watch_stragglers(worker);
                self.tell_if_empty(worker, out);
            }
        }
    }

    /// A group leaves what is queued to faster ones from now on, or takes part again.
    fn group_changed_its_mind(&mut self, group: u32) {
        let workers = self.workers.iter();
        let members = workers.filter(|(_, worker)| worker.group == group);
        let members: Vec<u32> = members.map(|(index, _)| index).collect();
        for worker in members {
            self.mark_dirty(worker);
        }
    }

    /// Gives a worker tasks until nothing that is queued fits it. Answers how many it was given.
    fn fill(&mut self, worker: u32, ahead: bool, out: &mut Vec<Action>) -> usize {
        let mut given = 0;
        loop {
            let room = self.room(worker);
            let slots = (room.0[TIER_IDLE] | room.0[TIER_SLOT]) & !self.classes.control;
            if self.give(worker, slots, false, out)
                || (ahead && self.give(worker, room.0[TIER_AHEAD], true, out))
            {
                given += 1;
                continue;
            }
            self.publish_room(worker, room);
            return given;
        }
    }

    fn give(&mut self, worker: u32, classes: u64, ahead: bool, out: &mut Vec<Action>) -> bool {
        if classes == 0 {
            return false;
        }
        let Some(turn) = self.first_job(classes, worker, ahead) else {
            return false;
        };
        let Some(task) = self.pop(turn.job, turn.classes) else {
            return false;
        };
        let class = self.tasks[task].class;
        let Some(device) = self.choose_device(worker, class, ahead, turn.stays_with) else {
            unreachable!("a worker with room for a class has a device for it");
        };
        let place = if ahead { Place::Ahead } else { Place::Slot };
        self.start_attempt(task, worker, device, place, out);
        true
    }

    /// The device with the fewest attempts among those with room, and of these the smallest; only among those of a
    /// tenant that may have no further one.
    pub(crate) fn choose_device(
        &self,
        worker: u32,
        class: u8,
        ahead: bool,
        stays_with: Option<u32>,
    ) -> Option<u16> {
        let holder = &self.workers[worker];
        let at = usize::from(class);
        let needs = &self.classes.entries[at].key.requirements;
        let mut best: Option<((usize, u64), u16)> = None;
        for (index, device) in holder.devices.iter().enumerate() {
            if device.class != needs.device_class || device.vram_bytes < self.classes.minimum_vram_bytes[at] {
                continue;
            }
            let Some(room) = self.device_room(holder, device) else {
                continue;
            };
            let fits = self.classes.host_bytes[at] <= room.host_bytes
                && self.classes.vram_bytes[at] <= room.vram_bytes;
            let allowed = stays_with.is_none_or(|tenant| self.tenant_may_use(tenant, worker, index as u16));
            if !fits || !allowed || (room.tier == TIER_AHEAD) != ahead {
                continue;
            }
            let rank = (device.running.len() + device.ahead.len(), device.vram_bytes);
            if best.is_none_or(|(other, _)| rank < other) {
                best = Some((rank, index as u16));
            }
        }
        best.map(|(_, device)| device)
    }

    /// Gives tasks of classes that were queued just now to workers with room, best room first.
    fn spread(&mut self, classes: u64, ahead: bool, out: &mut Vec<Action>) {
        let tiers: &[usize] = if ahead {
            &[TIER_AHEAD]
        } else {
            &[TIER_IDLE, TIER_SLOT]
        };
        for class in bits(classes) {
            for tier in tiers.iter().copied() {
                while self.tenant_order.mask() & (1 << class) != 0 {
                    let Some(worker) = self.first_with_room(class, tier) else {
                        break;
                    };
                    let given = self.spread_to(worker, class, tier, ahead, out);
                    if given == 0 && self.first_with_room(class, tier) == Some(worker) {
                        break;
                    }
                }
            }
        }
    }

    /// One task for a worker from the set of those with room, so that tasks are spread over workers.
    fn spread_to(
        &mut self,
        worker: u32,
        class: u32,
        tier: usize,
        ahead: bool,
        out: &mut Vec<Action>,
    ) -> usize {
        let room = self.room(worker);
        let given = room.0[tier] & (1 << class) != 0 && self.give(worker, 1 << class, ahead, out);
        let room = if given { self.room(worker) } else { room };
        self.publish_room(worker, room);
        usize::from(given)
    }

    // ---- tasks that are placed one by one ----

    /// Whether a ready task must have a device for itself, or should go to another worker than before.
    pub(crate) fn is_picky(&self, task: u32) -> bool {
        let entry = &self.tasks[task];
        if self.classes.control & (1 << entry.class) != 0 {
            return false;
        }
        entry.alone || self.avoids(task).is_some()
    }

    /// The worker that a task is kept from, as long as there is another one and its patience lasts.
    fn avoids(&self, task: u32) -> Option<u32> {
        let entry = &self.tasks[task];
        let trouble = entry.trouble();
        if trouble.avoid == 0 || self.now >= trouble.avoid_until {
            return None;
        }
        let worker = self.workers.find(trouble.avoid)?;
        let fits = self.workers[worker].fits & (1 << entry.class) != 0;
        let others = self.classes.entries[usize::from(entry.class)].fit_workers - u32::from(fits);
        (others > 0).then_some(worker)
    }

    pub(crate) fn unpick(&mut self, task: u32) {
        self.tasks[task].picky = false;
        self.picky.remove(&task);
        self.give_device_back(task);
    }

    /// Gives back the device that is emptied for a task.
    pub(crate) fn give_device_back(&mut self, task: u32) {
        let Some((worker, device)) = self.picky_devices.remove(&task) else {
            return;
        };
        let Some(worker) = self.workers.find(worker) else {
            return;
        };
        let holder = &mut self.workers[worker];
        if holder.held_for == Some(task) {
            holder.held_for = None;
        }
        if holder.devices[usize::from(device)].reserved_for == task {
            holder.devices[usize::from(device)].reserved_for = NONE;
        }
        self.mark_dirty(worker);
    }

    fn place_picky(&mut self, out: &mut Vec<Action>) {
        let tasks: Vec<u32> = self.picky.iter().copied().take(PICKY_PER_EVENT).collect();
        for task in tasks {
            if !self.jobs[self.tasks[task].job].may_run() {
                continue;
            }
            if self.tasks[task].alone {
                self.place_alone(task, out);
            } else if let Some(avoided) = self.avoids(task) {
                self.place_elsewhere(task, avoided, out);
            } else {
                self.unpick(task);
                self.enqueue(task, true);
            }
        }
    }

    fn place_elsewhere(&mut self, task: u32, avoided: u32, out: &mut Vec<Action>) {
        let class = self.tasks[task].class;
        if self.over_a_limit(task) {
            return;
        }
        for tier in [TIER_IDLE, TIER_SLOT, TIER_AHEAD] {
            let found = self.classes.entries[usize::from(class)].room[tier]
                .iter()
                .find(|worker| *worker != avoided);
            let Some(worker) = found else { continue };
            let ahead = tier == TIER_AHEAD;
            let Some(device) = self.choose_device(worker, class, ahead, None) else {
                continue;
            };
            self.unpick(task);
            self.start_attempt(
                task,
                worker,
                device,
                if ahead { Place::Ahead } else { Place::Slot },
                out,
            );
            let room = self.room(worker);
            self.publish_room(worker, room);
            return;
        }
    }

    /// Whether its job may have no further worker, or its tenant no further device.
    fn over_a_limit(&self, task: u32) -> bool {
        let job = &self.jobs[self.tasks[task].job];
        job.capped || self.tenants[job.tenant as usize].capped
    }

    /// A suspect needs a device on which nothing else runs: one is reserved, and emptied if need be.
    fn place_alone(&mut self, task: u32, out: &mut Vec<Action>) {
        let place = match self.picky_devices.get(&task).copied() {
            Some((worker, device)) => self.workers.find(worker).map(|worker| (worker, device)),
            None => None,
        };
        let place = place.filter(|(worker, device)| self.could_hold_alone(task, *worker, *device, true));
        let (worker, device) = match place {
            Some(place) => place,
            None => {
                let Some((worker, device)) = self.device_to_empty(task) else {
                    return;
                };
                // The one before may be usable again later, and must not wait for this task then.
                self.give_device_back(task);
                self.picky_devices.insert(task, (self.workers.id(worker), device));
                self.workers[worker].devices[usize::from(device)].reserved_for = task;
                self.recall_ahead(worker, Some(device), out);
                let room = self.room(worker);
                self.publish_room(worker, room);
                (worker, device)
            }
        };
        self.hold_host_memory(task, worker, out);
        let holder = &self.workers[worker];
        let entry = &holder.devices[usize::from(device)];
        let class = usize::from(self.tasks[task].class);
        if !entry.running.is_empty()
            || !entry.ahead.is_empty()
            || !entry.leaving.is_empty()
            || holder.host_free < self.classes.host_bytes[class]
            || holder.strays > 0
            || self.over_a_limit(task)
        {
            return;
        }
        self.picky.remove(&task);
        self.picky_devices.remove(&task);
        self.tasks[task].picky = false;
        if self.workers[worker].held_for == Some(task) {
            self.workers[worker].held_for = None;
            self.mark_dirty(worker);
        }
        self.start_attempt(task, worker, device, Place::Slot, out);
        let room = self.room(worker);
        self.publish_room(worker, room);
    }

    /// Where the other devices of a worker take the host memory that a task waits for, nothing new goes to them, as long
    /// as the worker's parents leave enough of it.
    fn hold_host_memory(&mut self, task: u32, worker: u32, out: &mut Vec<Action>) {
        let bytes = self.classes.host_bytes[usize::from(self.tasks[task].class)];
        let holder = &self.workers[worker];
        let enough = holder.spec.host_memory_bytes.saturating_sub(holder.parents_bytes) >= bytes;
        let wanted = holder.host_free < bytes && enough && !self.over_a_limit(task);
        match holder.held_for {
            None if wanted => {
                self.workers[worker].held_for = Some(task);
                self.recall_ahead(worker, None, out);
            }
            Some(other) if other == task && !enough => self.workers[worker].held_for = None,
            _ => return,
        }
        self.mark_dirty(worker);
        let room = self.room(worker);
        self.publish_room(worker, room);
    }

    fn could_hold_alone(&self, task: u32, worker: u32, device: u16, reserved: bool) -> bool {
        let class = usize::from(self.tasks[task].class);
        let holder = &self.workers[worker];
        let Some(entry) = holder.devices.get(usize::from(device)) else {
            return false;
        };
        holder.fits & (1 << class) != 0
            && entry.usable
            && entry.slots > 0
            && entry.reserved_for == (if reserved { task } else { NONE })
            && entry.class == self.classes.entries[class].key.requirements.device_class
            && entry.vram_bytes >= self.classes.minimum_vram_bytes[class]
    }

    fn device_to_empty(&self, task: u32) -> Option<(u32, u16)> {
        let mut best = None;
        let class = self.tasks[task].class;
        for (worker, holder) in self
            .workers
            .iter()
            .filter(|(_, holder)| holder.fits & (1 << class) != 0)
        {
            for device in 0..holder.devices.len() as u16 {
                if !self.could_hold_alone(task, worker, device, false) {
                    continue;
                }
                let entry = &holder.devices[usize::from(device)];
                let avoided = self.workers.id(worker) == self.tasks[task].trouble().avoid;
                let held = entry.running.len() + entry.leaving.len() + entry.ahead.len();
                let beside = holder.spec.host_memory_bytes.saturating_sub(holder.parents_bytes);
                let blocked = beside < self.classes.host_bytes[usize::from(class)];
                // Another worker is better, but an idle device now beats any that must be waited for.
                let rank = (blocked, held > 0, avoided, held, worker);
                if best.is_none_or(|(other, _): ((bool, bool, bool, usize, u32), _)| rank < other) {
                    best = Some((rank, (worker, device)));
                }
            }
        }
        best.map(|(_, place)| place)
    }

    // ---- recalls ----

    /// Asks for everything back that was fetched ahead for a device, or for all devices of a worker.
    pub(crate) fn recall_ahead(&mut self, worker: u32, device: Option<u16>, out: &mut Vec<Action>) {
        let holder = &self.workers[worker];
        let attempts: Vec<u32> = holder
            .devices
            .iter()
            .enumerate()
            .filter(|(index, _)| device.is_none_or(|device| usize::from(device) == *index))
            .flat_map(|(_, device)| device.ahead.iter().copied())
            .collect();
        for attempt in attempts {
            self.recall(attempt, 0, out);
        }
    }

    fn recall(&mut self, attempt: u32, recalled_for: u64, out: &mut Vec<Action>) {
        let entry = &mut self.attempts[attempt];
        if entry.recalling || entry.lease != Lease::Held {
            return;
        }
        entry.recalling = true;
        entry.recalled_for = recalled_for;
        let worker: WorkerId = entry.worker_id;
        if let Some(index) = self.workers.find(recalled_for) {
            self.workers[index].recalls += 1;
        }
        out.push(Action::Recall {
            worker,
            attempt: self.attempt_id(attempt),
        });
    }

    /// A worker with free slots and nothing queued for it gets what waits behind a busy device elsewhere.
    fn recall_for(&mut self, worker: u32, out: &mut Vec<Action>) {
        let holder = &self.workers[worker];
        let Room(tiers) = Room(holder.published);
        let classes = (tiers[TIER_IDLE] | tiers[TIER_SLOT]) & !self.classes.control;
        if classes == 0 {
            return;
        }
        let free: usize = holder
            .devices
            .iter()
            .filter(|device| device.usable && device.reserved_for == NONE)
            .map(|device| usize::from(device.slots).saturating_sub(device.running.len()))
            .sum();
        debug_assert!(self.classes.entries.len() <= CLASSES);
        for class in bits(classes) {
            while (self.workers[worker].recalls as usize) < free {
                let Some(attempt) = self.attempt_to_recall(class as usize, worker) else {
                    break;
                };
                self.recall(attempt, self.workers.id(worker), out);
            }
        }
    }

    fn attempt_to_recall(&self, class: usize, worker: u32) -> Option<u32> {
        let mut attempt = self.classes.entries[class].ahead_last;
        for _ in 0..RECALL_CANDIDATES {
            let entry = self.attempts.get(attempt)?;
            let job = &self.jobs[entry.job];
            if !entry.recalling
                && entry.lease == Lease::Held
                && entry.worker != worker
                && self.workers[entry.worker].connected
                && (job.policy.max_workers.is_none() || job.workers.contains_key(&worker))
                && self.frees_a_device(attempt)
                && !self.better_behind(entry.worker, worker)
            {
                return Some(attempt);
            }
            attempt = entry.previous;
        }
        None
    }

    /// Whether its tenant could have another device if this attempt were given back.
    fn frees_a_device(&self, attempt: u32) -> bool {
        let entry = &self.attempts[attempt];
        let tenant = &self.tenants[self.jobs[entry.job].tenant as usize];
        let only = tenant.devices.get(&(entry.worker, entry.device)) == Some(&1);
        let limit = tenant.policy.max_devices.unwrap_or(u32::MAX) as usize;
        tenant.devices.len() < limit || (only && tenant.devices.len() == limit)
    }

    fn tell_if_empty(&mut self, worker: u32, out: &mut Vec<Action>) {
        let holder = &mut self.workers[worker];
        if holder.draining && holder.connected && !holder.told_empty && holder.is_empty() {
            holder.told_empty = true;
            out.push(Action::WorkerEmpty { worker: holder.id });
        }
    }
}
