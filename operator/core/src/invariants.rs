//! What must hold after every event. Expensive: for tests and simulations.

use std::collections::BTreeMap;

use crate::attempts::{Lease, NO_DEVICE, Place};
use crate::classes::{TIER_IDLE, TIERS};
use crate::slab::NONE;
use crate::state::State;
use crate::tasks::Stage;

impl State {
    /// Panics where the state contradicts itself. Costs time in proportion to everything that is known.
    pub fn assert_invariants(&self) {
        self.assert_workers();
        self.assert_attempts();
        self.assert_jobs();
        self.assert_ready_counts();
        self.assert_classes();
        self.assert_nothing_waits_in_vain();
    }

    fn assert_workers(&self) {
        for (index, worker) in self.workers.iter() {
            let mut host = worker.spec.host_memory_bytes;
            for (number, device) in worker.devices.iter().enumerate() {
                if device.reserved_for != NONE {
                    let task = device.reserved_for;
                    let place = (self.workers.id(index), number as u16);
                    let there = device.running.iter().chain(device.leaving.iter());
                    assert!(
                        self.picky_devices.get(&task) == Some(&place)
                            || there
                                .into_iter()
                                .any(|attempt| self.attempts[*attempt].task == task),
                        "a device is reserved for a task that will come or is there"
                    );
                }
                assert!(
                    device.running.len() <= usize::from(device.slots),
                    "slots are overbooked"
                );
                let mut vram = device.vram_bytes;
                for attempt in &device.running {
                    let entry = &self.attempts[*attempt];
                    assert_eq!((entry.place, entry.worker), (Place::Slot, index));
                    host = host
                        .checked_sub(entry.host_bytes)
                        .expect("host memory is overbooked");
                    vram = vram
                        .checked_sub(entry.vram_bytes)
                        .expect("device memory is overbooked");
                }
                assert_eq!(vram, device.vram_free);
                let on_clock = device
                    .running
                    .iter()
                    .filter(|attempt| self.attempts[**attempt].on_clock)
                    .count();
                assert_eq!(on_clock as u64, device.sharing);
                let alone = device
                    .running
                    .iter()
                    .map(|attempt| &self.attempts[*attempt])
                    .any(|attempt| attempt.alone && attempt.lease == Lease::Held);
                // A lost attempt that came back holds its slot until it has left: nothing can keep it away.
                let leased = device
                    .running
                    .iter()
                    .filter(|attempt| !matches!(self.attempts[**attempt].lease, Lease::Stopping(_)))
                    .count();
                assert!(!alone || leased == 1, "a suspect runs alone");
            }
            let mut parents = 0;
            for attempt in &worker.control {
                let entry = &self.attempts[*attempt];
                assert_eq!((entry.place, entry.worker), (Place::Control, index));
                parents += entry.host_bytes;
            }
            for (_, job) in self.jobs.iter() {
                let Some(reservation) = job.reservation.as_ref().filter(|found| found.worker == index) else {
                    continue;
                };
                parents += reservation.levels.iter().map(|level| level.bytes).sum::<u64>();
            }
            assert_eq!(
                parents, worker.parents_bytes,
                "parents hold what is reserved for them"
            );
            host = host
                .checked_sub(parents)
                .expect("host memory is overbooked by parents");
            assert_eq!(host, worker.host_free);
            assert_eq!(self.strays_of(index).len(), worker.strays as usize);
            assert!(!worker.dirty, "every worker is settled");
            assert_eq!(
                self.room(index).0,
                worker.published,
                "the room of a worker is known"
            );
        }
    }

    fn assert_attempts(&self) {
        let mut held: BTreeMap<u32, u32> = BTreeMap::new();
        for (index, attempt) in self.attempts.iter() {
            match attempt.lease {
                Lease::Held => {
                    assert!(attempt.place != Place::None, "a lease has a place");
                    let twin = self.twins.get(&attempt.task) == Some(&index);
                    let current = self.tasks[attempt.task].current == index;
                    assert!(current != twin, "a lease is its task's");
                    assert_eq!(self.tasks[attempt.task].stage, Stage::Active);
                    if current {
                        assert!(held.insert(attempt.task, index).is_none(), "a task has one lease");
                    }
                }
                Lease::Stopping(_) => assert!(attempt.place != Place::None),
                Lease::Lost | Lease::Ended(_) => assert!(attempt.place == Place::None),
            }
            if attempt.place == Place::Control {
                assert_eq!(attempt.device, NO_DEVICE);
            }
        }
        for (task, twin) in &self.twins {
            assert!(held.contains_key(task), "nothing runs beside nothing");
            let twin = &self.attempts[*twin];
            assert!(twin.lease == Lease::Held && twin.task == *task && twin.speculative);
        }
        for (index, task) in self.tasks.iter() {
            assert_eq!(
                task.stage == Stage::Active,
                task.current != NONE,
                "an active task has an attempt"
            );
            assert_eq!(task.stage == Stage::Active, held.contains_key(&index));
            if !task.stage.is_terminal() {
                let artifacts = &self.jobs[task.job].artifacts;
                let unbound = |input: &&u32| artifacts[**input as usize].binding.is_none();
                let missing = |other: &&u32| self.tasks[**other].stage != Stage::Succeeded;
                let pending = task.inputs.iter().filter(unbound).count()
                    + task.dependencies.iter().filter(missing).count();
                assert_eq!(pending, task.pending as usize, "what a task waits for is counted");
                assert!(task.pending == 0 || !matches!(task.stage, Stage::Ready));
                assert!(task.fence <= task.attempts);
            }
            assert!(u8::from(task.queued) + u8::from(task.picky) + u8::from(task.held_back) <= 1);
            assert_eq!(
                task.stage == Stage::Ready,
                task.queued || task.picky || task.held_back,
                "a ready task is queued"
            );
        }
    }

    fn assert_ready_counts(&self) {
        let mut counted: BTreeMap<(u32, u8), u64> = BTreeMap::new();
        for (_, task) in self.tasks.iter() {
            let may_run = self.jobs[task.job].may_run();
            assert_eq!(self.jobs[task.job].counted, may_run);
            if task.stage == Stage::Ready && may_run {
                *counted.entry((task.kind, task.class)).or_insert(0) += 1;
            }
        }
        for (index, kind) in self.types.entries.iter().enumerate() {
            let known: BTreeMap<(u32, u8), u64> = kind
                .ready_by_class
                .iter()
                .map(|(class, ready)| ((index as u32, *class), *ready))
                .collect();
            assert_eq!(kind.ready, known.values().sum::<u64>());
            let of_kind = counted.range((index as u32, 0)..=(index as u32, u8::MAX));
            assert_eq!(known, of_kind.map(|(key, ready)| (*key, *ready)).collect());
        }
    }

    fn assert_jobs(&self) {
        let mut permits = 0;
        let mut capped = 0;
        for (index, job) in self.jobs.iter() {
            let count = |stage: Stage| {
                job.tasks
                    .iter()
                    .filter(|task| self.tasks[**task].stage == stage)
                    .count() as u32
            };
            assert_eq!(
                (count(Stage::Ready), count(Stage::Backoff), count(Stage::Active)),
                (job.ready, job.backoff, job.active)
            );
            if job.is_over() {
                let all = job.tasks.iter().all(|task| self.tasks[*task].stage.is_terminal());
                assert!(all, "a job that is over has no live task");
                assert!(job.reservation.is_none() && !job.leaf_counted && job.wait_key.is_none());
            }
            let placed = self
                .attempts_of(index)
                .into_iter()
                .filter(|attempt| self.attempts[*attempt].place != Place::None);
            assert_eq!(placed.count() as u32, job.placed);
            for queue in job.queues.iter() {
                let queued =
                    |task: &&u32| self.tasks[**task].queued && self.tasks[**task].class == queue.class;
                assert_eq!(job.tasks.iter().filter(queued).count() as u32, queue.live);
                assert_eq!(queue.live > 0, job.queued_mask & (1 << queue.class) != 0);
            }
            let mut mask = if job.may_run() { job.queued_mask } else { 0 };
            if job.capped {
                mask &= self.classes.control;
                capped += 1;
            }
            assert_eq!(
                job.published.map_or(0, |(_, mask)| mask),
                mask,
                "job {index} stands in the order as it is"
            );
            let held: u64 = job.artifacts.iter().map(|artifact| artifact.permit_bytes).sum();
            assert_eq!(held, job.permits.held);
            permits += held;
            for (at, artifact) in job.artifacts.iter().enumerate() {
                let consumers: usize = job
                    .tasks
                    .iter()
                    .filter(|task| !self.tasks[**task].stage.is_terminal())
                    .map(|task| {
                        self.tasks[*task]
                            .inputs
                            .iter()
                            .filter(|input| **input as usize == at)
                            .count()
                    })
                    .sum();
                assert_eq!(
                    consumers as u32, artifact.consumers,
                    "consumers of {}",
                    artifact.name
                );
            }
        }
        assert_eq!(capped, self.capped_jobs);
        assert_eq!(permits, self.permits.held);
        for (index, tenant) in self.tenants.iter().enumerate() {
            assert_eq!(
                tenant.published.map_or(0, |(_, mask)| mask),
                tenant.jobs.mask() & self.classes_for_tenant(index as u32)
            );
        }
        self.assert_tenants();
    }

    fn assert_tenants(&self) {
        let mut capped = 0;
        for (index, tenant) in self.tenants.iter().enumerate() {
            let mut devices: BTreeMap<(u32, u16), u32> = BTreeMap::new();
            for (_, attempt) in self.attempts.iter().filter(|(_, attempt)| attempt.holds_worker()) {
                if self.jobs[attempt.job].tenant as usize == index && tenant.policy.max_devices.is_some() {
                    *devices.entry((attempt.worker, attempt.device)).or_insert(0) += 1;
                }
            }
            assert_eq!(tenant.devices, devices, "the devices of a tenant are counted");
            let limit = tenant.policy.max_devices;
            assert_eq!(
                tenant.capped,
                limit.is_some_and(|limit| devices.len() >= limit as usize)
            );
            capped += u32::from(tenant.capped);
        }
        assert_eq!(capped, self.capped_tenants);
    }

    fn assert_classes(&self) {
        for (class, entry) in self.classes.entries.iter().enumerate() {
            let bit = 1u64 << class;
            let fit = self
                .workers
                .iter()
                .filter(|(_, worker)| worker.fits & bit != 0)
                .count();
            let leaf = self
                .workers
                .iter()
                .filter(|(_, worker)| worker.leaf_fits & bit != 0)
                .count();
            assert_eq!((fit as u32, leaf as u32), (entry.fit_workers, entry.leaf_workers));
            let tasks = self.tasks.iter().filter(|(_, task)| {
                !task.marker && !task.stage.is_terminal() && usize::from(task.class) == class
            });
            let jobs = self
                .jobs
                .iter()
                .filter(|(_, job)| !job.is_over() && usize::from(job.leaf_class) == class);
            let attempts = self
                .attempts
                .iter()
                .filter(|(_, attempt)| attempt.place != Place::None && usize::from(attempt.class) == class);
            assert_eq!(
                tasks.count() + jobs.count() + attempts.count(),
                entry.references as usize
            );
        }
    }

    /// No queued task fits a worker with room, and leaves of started jobs have a worker beside all parents.
    fn assert_nothing_waits_in_vain(&self) {
        let queued = self.tenant_order.mask() & !self.classes.control;
        for (_, worker) in self.workers.iter() {
            for tier in 0..TIERS {
                let control = if tier == TIER_IDLE {
                    self.classes.control
                } else {
                    0
                };
                let waiting = worker.published[tier] & queued & !control;
                assert_eq!(waiting, 0, "a queued task fits a worker in tier {tier}");
            }
        }
        for class in crate::bits::bits(self.tenant_order.mask() & self.classes.control) {
            for (index, _) in self.workers.iter() {
                assert!(
                    !self.control_fits(index, class as u8),
                    "a queued parent fits a worker"
                );
            }
        }
        let stopping = self.attempts.iter().any(|(_, attempt)| {
            attempt.place == Place::Control && matches!(attempt.lease, Lease::Stopping(_))
        });
        if self.recovering.is_some() {
            // Workers with room may still be on their way.
            return;
        }
        for entry in &self.classes.entries {
            let control = entry.key.requirements.lane == crate::model::Lane::Control;
            assert!(
                control
                    || entry.leaf_jobs == 0
                    || entry.fit_workers == 0
                    || entry.leaf_workers > 0
                    || stopping,
                "parents leave no room for the leaves that they wait for"
            );
        }
    }
}
