//! Workers, their devices and what of them is free.

use smallvec::SmallVec;

use crate::bits::bits;
use crate::classes::{TIER_AHEAD, TIER_IDLE, TIER_SLOT, TIERS};
use crate::model::{DeviceClass, Timestamp, WorkerId, WorkerSpec};
use crate::slab::NONE;
use crate::state::State;

/// Attempts on a device: mostly so few that they lie in the worker itself.
pub(crate) type Held = SmallVec<[u32; 4]>;

/// A device and what runs on it.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) class: DeviceClass,
    pub(crate) vram_bytes: u64,
    pub(crate) slots: u16,
    pub(crate) usable: bool,
    pub(crate) vram_free: u64,
    /// Attempts that hold a slot.
    pub(crate) running: Held,
    /// Attempts fetched ahead, next one first.
    pub(crate) ahead: Held,
    /// Attempts whose successor runs in their slot already.
    pub(crate) leaving: Held,
    /// Task that must run alone here; nothing else is placed.
    pub(crate) reserved_for: u32,
    /// Attempts among which the passing time is divided.
    pub(crate) sharing: u64,
    /// Microseconds that one attempt would have got had it run here all the time.
    pub(crate) clock: u64,
    pub(crate) clock_at: Timestamp,
}

impl Device {
    /// All attempts that have a place here.
    pub(crate) fn attempts(&self) -> impl Iterator<Item = u32> {
        self.running
            .iter()
            .chain(self.leaving.iter())
            .chain(self.ahead.iter())
            .copied()
    }

    /// Brings the shared clock up to now: the time since the last change is divided among those that ran.
    pub(crate) fn advance(&mut self, now: Timestamp) {
        let passed = (now - self.clock_at).0.saturating_mul(1000);
        self.clock += passed.checked_div(self.sharing).unwrap_or(0);
        self.clock_at = now;
    }

    /// Takes back the time since its worker was last heard of: a tenant whose worker dies unnoticed has got nothing
    /// for it.
    pub(crate) fn skip(&mut self, heard: Timestamp, now: Timestamp) {
        self.advance(heard.max(self.clock_at));
        self.clock_at = now;
    }
}

/// A worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) spec: Box<WorkerSpec>,
    /// Index of its group.
    pub(crate) group: u32,
    /// Its stream is open.
    pub(crate) connected: bool,
    /// Its lease holds.
    pub(crate) alive: bool,
    pub(crate) draining: bool,
    /// The shell wants it to leave.
    pub(crate) leaving: bool,
    pub(crate) told_empty: bool,
    pub(crate) last_heard: Timestamp,
    pub(crate) lease_timer: Option<Timestamp>,
    /// When its attempts are given up unless it reconnects.
    pub(crate) grace_until: Option<Timestamp>,
    /// Classes of which it could hold a task when empty; none while it takes nothing.
    pub(crate) fits: u64,
    /// Classes of which it could hold a task beside the reservations of parents.
    pub(crate) leaf_fits: u64,
    /// Classes for which it stands in the sets of workers with room.
    pub(crate) published: [u64; TIERS],
    pub(crate) host_free: u64,
    /// Host memory held by parents and reserved for them.
    pub(crate) parents_bytes: u64,
    pub(crate) devices: SmallVec<[Device; 1]>,
    /// Attempts of the control lane.
    pub(crate) control: Held,
    /// Recalls under way for its free slots.
    pub(crate) recalls: u32,
    /// Waits to be settled.
    pub(crate) dirty: bool,
    /// Task for which host memory is kept free: nothing else is given to it.
    pub(crate) held_for: Option<u32>,
    /// Attempts that may run here though nothing is booked for them: nothing is given to it.
    pub(crate) strays: u32,
}

impl Worker {
    pub(crate) fn new(id: WorkerId, spec: Box<WorkerSpec>, group: u32, now: Timestamp) -> Worker {
        let devices = spec
            .devices
            .iter()
            .map(|device| Device {
                class: device.class,
                vram_bytes: device.vram_bytes,
                slots: device.slots,
                usable: true,
                vram_free: device.vram_bytes,
                running: Held::new(),
                ahead: Held::new(),
                leaving: Held::new(),
                reserved_for: NONE,
                sharing: 0,
                clock: 0,
                clock_at: now,
            })
            .collect();
        Worker {
            id,
            host_free: spec.host_memory_bytes,
            spec,
            group,
            connected: true,
            alive: true,
            draining: false,
            leaving: false,
            told_empty: false,
            last_heard: now,
            lease_timer: None,
            grace_until: None,
            fits: 0,
            leaf_fits: 0,
            published: [0; TIERS],
            parents_bytes: 0,
            devices,
            control: Held::new(),
            recalls: 0,
            dirty: false,
            held_for: None,
            strays: 0,
        }
    }

    /// Whether it may be given anything.
    pub(crate) fn takes_work(&self) -> bool {
        self.connected && self.alive && !self.draining && !self.leaving
    }

    /// Whether it is kept from everything else for now: for what is to come, or by what may still be there.
    pub(crate) fn is_kept(&self) -> bool {
        self.held_for.is_some() || self.strays > 0
    }

    pub(crate) fn attempts(&self) -> impl Iterator<Item = u32> {
        self.control
            .iter()
            .copied()
            .chain(self.devices.iter().flat_map(Device::attempts))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.attempts().next().is_none()
    }
}

/// Classes for which a worker has room now, by tier; control classes stand in the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Room(pub(crate) [u64; TIERS]);

/// What one device still takes.
pub(crate) struct DeviceRoom {
    pub(crate) tier: usize,
    /// Host memory that a task may need.
    pub(crate) host_bytes: u64,
    /// Device memory that a task may need.
    pub(crate) vram_bytes: u64,
}

impl State {
    pub(crate) fn worker_indices(&self) -> Vec<(u32, WorkerId)> {
        self.worker_by_id
            .iter()
            .map(|(id, index)| (*index, *id))
            .collect()
    }

    /// What a device still takes, if anything. A task is fetched ahead only where it needs no more than every
    /// attempt in front of it, so that it fits whichever leaves first.
    pub(crate) fn device_room(&self, worker: &Worker, device: &Device) -> Option<DeviceRoom> {
        if !device.usable || device.reserved_for != NONE {
            return None;
        }
        let slots = usize::from(device.slots);
        if device.running.len() < slots {
            if !device.ahead.is_empty() {
                return None;
            }
            let tier = if device.running.is_empty() {
                TIER_IDLE
            } else {
                TIER_SLOT
            };
            return Some(DeviceRoom {
                tier,
                host_bytes: worker.host_free,
                vram_bytes: device.vram_free,
            });
        }
        if device.ahead.len() >= slots * usize::from(self.limits.prefetch_per_slot) {
            return None;
        }
        let mut room = DeviceRoom {
            tier: TIER_AHEAD,
            host_bytes: u64::MAX,
            vram_bytes: u64::MAX,
        };
        for attempt in device.running.iter().chain(device.ahead.iter()) {
            let entry = &self.attempts[*attempt];
            room.host_bytes = room.host_bytes.min(entry.needs_host_bytes);
            room.vram_bytes = room.vram_bytes.min(entry.needs_vram_bytes);
        }
        Some(room)
    }

    /// Classes for which the worker has room now. Control classes are tested for memory only.
    pub(crate) fn room(&self, index: u32) -> Room {
        let worker = &self.workers[index];
        let mut room = Room::default();
        if worker.fits == 0 || !worker.takes_work() || worker.is_kept() {
            return room;
        }
        let classes = &self.classes;
        for class in bits(worker.fits & classes.control) {
            if classes.host_bytes[class as usize] <= worker.host_free {
                room.0[TIER_IDLE] |= 1 << class;
            }
        }
        let (holds_back, slow) = self.is_held_back(worker.group);
        if holds_back {
            return room;
        }
        for device in &worker.devices {
            if let Some((tier, mask)) = self.device_classes(worker, device)
                && !(slow && tier == TIER_AHEAD)
            {
                room.0[tier] |= mask;
            }
        }
        room
    }

    /// Classes of which a device takes a task now, and in which tier.
    pub(crate) fn device_classes(&self, worker: &Worker, device: &Device) -> Option<(usize, u64)> {
        let found = self.device_room(worker, device)?;
        let classes = &self.classes;
        let kind = if device.class == DeviceClass::Gpu {
            classes.gpu
        } else {
            !classes.gpu
        };
        let mut mask = 0;
        for class in bits(worker.fits & !classes.control & kind) {
            let at = class as usize;
            if classes.host_bytes[at] <= found.host_bytes
                && classes.vram_bytes[at] <= found.vram_bytes
                && classes.minimum_vram_bytes[at] <= device.vram_bytes
            {
                mask |= 1 << class;
            }
        }
        Some((found.tier, mask))
    }

    /// Brings the sets of workers with room up to date.
    pub(crate) fn publish_room(&mut self, index: u32, room: Room) {
        for tier in 0..TIERS {
            let changed = self.workers[index].published[tier] ^ room.0[tier];
            if changed == 0 {
                continue;
            }
            for class in bits(changed) {
                let member = room.0[tier] & (1 << class) != 0;
                self.classes.entries[class as usize].room[tier].set(index, member);
            }
            self.workers[index].published[tier] = room.0[tier];
        }
    }

    /// Recomputes which classes a worker could hold, after it, its devices or the classes changed.
    pub(crate) fn refresh_fit(&mut self, index: u32) {
        let worker = &self.workers[index];
        let mut fits = 0u64;
        if worker.takes_work() {
            for class in 0..self.classes.entries.len() {
                if self
                    .classes
                    .fits(class as u8, &worker.spec, |device| worker.devices[device].usable)
                {
                    fits |= 1 << class;
                }
            }
        }
        let changed = self.workers[index].fits ^ fits;
        for class in bits(changed) {
            let entry = &mut self.classes.entries[class as usize];
            if fits & (1 << class) != 0 {
                entry.fit_workers += 1;
            } else {
                entry.fit_workers -= 1;
            }
        }
        self.workers[index].fits = fits;
        self.group_fits(index, changed, fits);
        self.refresh_leaf_fit(index);
        self.mark_dirty(index);
        self.topology_changed = true;
    }

    /// Classes of which the worker could hold a task beside `parents_bytes` of reservations.
    pub(crate) fn leaf_fit(&self, index: u32, parents_bytes: u64) -> u64 {
        let worker = &self.workers[index];
        let beside = worker.spec.host_memory_bytes.saturating_sub(parents_bytes);
        bits(worker.fits & !self.classes.control)
            .filter(|class| self.classes.host_bytes[*class as usize] <= beside)
            .fold(0, |mask, class| mask | 1 << class)
    }

    /// Recomputes for which leaves a worker has room beside its parents.
    pub(crate) fn refresh_leaf_fit(&mut self, index: u32) {
        let leaf_fits = self.leaf_fit(index, self.workers[index].parents_bytes);
        let changed = self.workers[index].leaf_fits ^ leaf_fits;
        for class in bits(changed) {
            let entry = &mut self.classes.entries[class as usize];
            if leaf_fits & (1 << class) != 0 {
                entry.leaf_workers += 1;
            } else {
                entry.leaf_workers -= 1;
            }
        }
        self.workers[index].leaf_fits = leaf_fits;
    }

    pub(crate) fn mark_dirty(&mut self, index: u32) {
        if !self.workers[index].dirty {
            self.workers[index].dirty = true;
            self.dirty.push(index);
        }
    }
}
