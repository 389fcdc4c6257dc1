//! Worker groups by measured speed: work goes to the fast ones first, and at the end of the queue slow ones get nothing
//! that a fast one would end earlier.
//!
//! Owns the measured speeds and which groups hold back. What is ready and who has room is read from elsewhere.

use std::sync::Arc;

use crate::bits::{BitSet, bits};
use crate::classes::CLASSES;
use crate::model::Lane;
use crate::state::State;

/// Slowness of a group whose tasks take the mean of their types.
pub(crate) const USUAL: u64 = 1_024;
/// Weight of a new measurement: one eighth.
const MEAN_SHIFT: u32 = 3;
/// Measurements without which nothing is known of a group.
const MEASURED: u32 = 8;
/// Groups that are told apart; the ones beyond share one entry.
const GROUPS: usize = 64;
/// A wait behind a running attempt is worth it where the other device takes half as long again.
const WORTH_WAITING: (u64, u64) = (3, 2);

/// Workers of one kind of machine.
#[derive(Debug)]
pub(crate) struct Group {
    name: Arc<str>,
    members: BitSet,
    /// What its tasks take, in parts of 1,024 of the means of their types.
    slowness: u64,
    measurements: u32,
    /// Slots of its workers that could hold a task of each class.
    fits: [u32; CLASSES],
    /// Another group is so much faster that nothing is fetched ahead here: it would start late and end later.
    slow: bool,
    /// It leaves what is queued to faster groups.
    holds_back: bool,
}

impl State {
    /// The group of a worker that connects, as an index.
    pub(crate) fn group_of(&mut self, name: &Arc<str>) -> u32 {
        if let Some(known) = self.groups.iter().position(|group| group.name == *name) {
            return known as u32;
        }
        if self.groups.len() >= GROUPS {
            return 0;
        }
        self.groups.push(Group {
            name: name.clone(),
            members: BitSet::default(),
            slowness: USUAL,
            measurements: 0,
            fits: [0; CLASSES],
            slow: false,
            holds_back: false,
        });
        self.groups_by_speed.push((self.groups.len() - 1) as u32);
        (self.groups.len() - 1) as u32
    }

    pub(crate) fn group_member(&mut self, worker: u32, member: bool) {
        let group = self.workers[worker].group as usize;
        self.groups[group].members.set(worker, member);
    }

    /// A worker can or cannot hold tasks of these classes any more.
    pub(crate) fn group_fits(&mut self, worker: u32, changed: u64, fits: u64) {
        let holder = &self.workers[worker];
        let slots: u32 = holder.devices.iter().map(|device| u32::from(device.slots)).sum();
        let group = &mut self.groups[holder.group as usize];
        for class in bits(changed) {
            let count = &mut group.fits[class as usize];
            if fits & (1 << class) != 0 {
                *count += slots;
            } else {
                *count -= slots;
            }
        }
    }

    /// A class has become another one: no worker is known to fit it.
    pub(crate) fn forget_group_fits(&mut self, class: u8) {
        for group in &mut self.groups {
            group.fits[usize::from(class)] = 0;
        }
    }

    /// An attempt on a worker took so long where its type takes `mean` in the long run.
    pub(crate) fn measure_group(&mut self, worker: u32, taken: u64, mean: u64) {
        if self.groups.len() < 2 {
            return;
        }
        let Some(holder) = self.workers.get(worker) else {
            return;
        };
        let group = &mut self.groups[holder.group as usize];
        group.slowness = moved(group.slowness, taken, mean);
        group.measurements = group.measurements.saturating_add(1);
        let groups = &self.groups;
        self.groups_by_speed
            .sort_by_key(|group| (groups[*group as usize].slowness, *group));
    }

    /// A task of a tenant took so long where the mean of its type is `mean`.
    pub(crate) fn measure_tenant(&mut self, tenant: u32, taken: u64, mean: u64) {
        let tenant = &mut self.tenants[tenant as usize];
        tenant.pace = moved(tenant.pace, taken, mean);
    }

    /// What a task is charged when it is assigned: the mean of its type, as far as tasks of its tenant take as long.
    /// What differs is corrected at its end, but until then its tenant would be given too much or too little.
    pub(crate) fn expected_microseconds(&self, task: u32) -> u64 {
        let entry = &self.tasks[task];
        let tenant = self.jobs[entry.job].tenant;
        let mean = self.types.entries[entry.kind as usize].steady_microseconds;
        mean.saturating_mul(self.tenants[tenant as usize].pace) / USUAL
    }

    fn sorts_by_speed(&self) -> bool {
        self.groups.len() > 1 && self.limits.fast_devices_first
    }

    /// The first worker with room for a class, of the fastest group that has one.
    pub(crate) fn first_with_room(&self, class: u32, tier: usize) -> Option<u32> {
        let room = &self.classes.entries[class as usize].room[tier];
        if !self.sorts_by_speed() {
            return room.first();
        }
        let groups = self.groups_by_speed.iter();
        groups
            .filter_map(|group| room.first_common(&self.groups[*group as usize].members))
            .next()
    }

    /// Whether a task that waits behind a running attempt on `other` would still end there before it ends on `worker`.
    pub(crate) fn better_behind(&self, other: u32, worker: u32) -> bool {
        let slowness = |worker: u32| {
            let group = &self.groups[self.workers[worker].group as usize];
            (group.measurements >= MEASURED).then_some(group.slowness)
        };
        self.sorts_by_speed()
            && slowness(other)
                .zip(slowness(worker))
                .is_some_and(|(other, own)| own * WORTH_WAITING.1 > other * WORTH_WAITING.0)
    }

    /// Whether a group takes no further tasks, and whether it fetches none ahead.
    pub(crate) fn is_held_back(&self, group: u32) -> (bool, bool) {
        let group = &self.groups[group as usize];
        (group.holds_back, group.slow)
    }

    /// Groups that are so much faster than another one that a wait for them is worth it.
    fn faster_than(&self, group: usize) -> impl Iterator<Item = &Group> {
        let own = &self.groups[group];
        self.groups.iter().filter(move |other| {
            own.measurements >= MEASURED
                && other.measurements >= MEASURED
                && own.slowness * WORTH_WAITING.1 > other.slowness * WORTH_WAITING.0
        })
    }

    /// Brings up to date which groups leave what is queued to faster ones. Answers those of which that has changed.
    pub(crate) fn refresh_holding_back(&mut self) -> Vec<u32> {
        if !self.sorts_by_speed() {
            return Vec::new();
        }
        let ready: u64 = self
            .types
            .entries
            .iter()
            .filter(|kind| kind.requirements.2 == Lane::Device)
            .map(|kind| kind.ready)
            .sum();
        let queued = self.tenant_order.mask() & !self.classes.control;
        let mut changed = Vec::new();
        for group in 0..self.groups.len() {
            let slow = self.faster_than(group).next().is_some();
            let holds = slow && self.should_hold_back(group, ready, queued);
            let entry = &mut self.groups[group];
            if (entry.slow, entry.holds_back) != (slow, holds) {
                (entry.slow, entry.holds_back) = (slow, holds);
                changed.push(group as u32);
            }
        }
        changed
    }

    /// A slow device ends a task after its slowness. A fast one does after the rounds that the queue takes, one for what
    /// is fetched ahead, and one for the task itself.
    fn should_hold_back(&self, group: usize, ready: u64, queued: u64) -> bool {
        let own = &self.groups[group];
        let slowest = self.faster_than(group).map(|other| other.slowness).max();
        // Each class that is queued must have fast devices of its own.
        let slots = bits(queued).map(|class| {
            self.faster_than(group)
                .map(|other| u64::from(other.fits[class as usize]))
                .sum::<u64>()
        });
        let (Some(slowest), Some(slots)) = (slowest, slots.min()) else {
            return own.holds_back;
        };
        // Without the second part a group would change its mind with every task.
        let rounds_apart = u64::from(!own.holds_back);
        own.slowness * slots > slowest * (ready + (2 + rounds_apart) * slots)
    }
}

/// A relation to the mean, in parts of [`USUAL`], after one more measurement. One hung attempt does not say much.
fn moved(relation: u64, taken: u64, mean: u64) -> u64 {
    let ratio = (taken.saturating_mul(USUAL) / mean.max(1)).min(USUAL * 16);
    (relation - (relation >> MEAN_SHIFT) + (ratio >> MEAN_SHIFT)).max(1)
}
