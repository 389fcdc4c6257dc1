//! Requirement classes and task types: what is equal is stored once and compared by index.
//!
//! At most 64 classes exist at once, so that a set of them is one word. A class that nothing uses any more makes
//! room for another one.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::action::Refusal;
use crate::bits::BitSet;
use crate::model::{BackendVersion, DeviceClass, Lane, Milliseconds, Requirements, Timestamp, WorkerSpec};
use crate::slab::NONE;
use crate::state::State;

/// Classes that fit one word.
pub(crate) const CLASSES: usize = 64;
/// Task types whose times are measured; the types beyond share one entry.
const TASK_TYPES: usize = 1024;
/// Expected device time of a task of which nothing is known.
const UNKNOWN_TASK_MICROSECONDS: u64 = 1_000_000;
/// Weight of a new measurement: one eighth.
const MEAN_SHIFT: u32 = 3;

/// Measurements over which the steady mean of a type is taken.
const STEADY_MEASUREMENTS: u32 = 1_024;

/// What makes tasks interchangeable for placement.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClassKey {
    pub(crate) requirements: Requirements,
    /// Host memory that the whole parent chain holds; 0 but for roots.
    pub(crate) chain_bytes: u64,
    /// Class of the largest leaf; only for roots.
    pub(crate) leaf: Option<u8>,
    /// Smaller workers have proved too small.
    pub(crate) minimum_host_bytes: u64,
    /// Smaller devices have proved too small.
    pub(crate) minimum_vram_bytes: u64,
}

impl ClassKey {
    pub(crate) fn of(requirements: &Requirements) -> ClassKey {
        ClassKey {
            requirements: requirements.clone(),
            chain_bytes: 0,
            leaf: None,
            minimum_host_bytes: 0,
            minimum_vram_bytes: 0,
        }
    }
}

/// How much of a worker is free for a class: the better kinds come first.
pub(crate) const TIERS: usize = 3;
/// A device on which nothing runs.
pub(crate) const TIER_IDLE: usize = 0;
/// A free slot beside others.
pub(crate) const TIER_SLOT: usize = 1;
/// A place to fetch ahead.
pub(crate) const TIER_AHEAD: usize = 2;

/// One class.
#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) key: ClassKey,
    /// Tasks that are not terminal and jobs that name it.
    pub(crate) references: u32,
    /// Workers that take tasks and could hold one of this class when empty.
    pub(crate) fit_workers: u32,
    /// Started jobs whose largest leaf it is.
    pub(crate) leaf_jobs: u32,
    /// Workers that could hold one beside all reservations of parents.
    pub(crate) leaf_workers: u32,
    /// Workers with room now, by tier. Control classes use the first tier only.
    pub(crate) room: [BitSet; TIERS],
    /// When a task of it was given to a worker last, or when it began to wait since.
    pub(crate) served_at: Timestamp,
    /// Attempts of this class that are fetched ahead, oldest first (intrusive list).
    pub(crate) ahead_first: u32,
    pub(crate) ahead_last: u32,
}

/// All classes. What placement reads for each of them lies side by side.
#[derive(Debug)]
pub(crate) struct Classes {
    pub(crate) entries: Vec<Class>,
    by_key: BTreeMap<ClassKey, u8>,
    /// Classes of the control lane.
    pub(crate) control: u64,
    /// Device classes that need a GPU.
    pub(crate) gpu: u64,
    pub(crate) host_bytes: [u64; CLASSES],
    pub(crate) vram_bytes: [u64; CLASSES],
    pub(crate) minimum_vram_bytes: [u64; CLASSES],
}

impl Classes {
    pub(crate) fn new() -> Classes {
        Classes {
            entries: Vec::new(),
            by_key: BTreeMap::new(),
            control: 0,
            gpu: 0,
            host_bytes: [0; CLASSES],
            vram_bytes: [0; CLASSES],
            minimum_vram_bytes: [0; CLASSES],
        }
    }

    pub(crate) fn find(&self, key: &ClassKey) -> Option<u8> {
        self.by_key.get(key).copied()
    }

    /// The class of a key that is not known yet, and whether it took the place of another one.
    fn add(&mut self, key: ClassKey, limit: usize) -> Option<u8> {
        let class = if self.entries.len() < limit.min(CLASSES) {
            self.entries.push(Class {
                key: key.clone(),
                references: 0,
                fit_workers: 0,
                leaf_jobs: 0,
                leaf_workers: 0,
                room: Default::default(),
                served_at: Timestamp(0),
                ahead_first: NONE,
                ahead_last: NONE,
            });
            self.entries.len() - 1
        } else {
            let unused = self.entries.iter().position(|class| class.references == 0)?;
            let class = &mut self.entries[unused];
            assert!(
                class.ahead_first == NONE && class.leaf_jobs == 0,
                "an unused class has no attempts and no jobs"
            );
            self.by_key.remove(&class.key);
            class.key = key.clone();
            class.fit_workers = 0;
            class.leaf_workers = 0;
            class.room = Default::default();
            unused
        };
        let requirements = &key.requirements;
        let bit = 1u64 << class;
        self.control &= !bit;
        self.gpu &= !bit;
        if requirements.lane == Lane::Control {
            self.control |= bit;
        }
        if requirements.device_class == DeviceClass::Gpu {
            self.gpu |= bit;
        }
        self.host_bytes[class] = requirements.host_memory_bytes.max(key.chain_bytes);
        self.vram_bytes[class] = if requirements.lane == Lane::Control {
            0
        } else {
            requirements.vram_bytes
        };
        self.minimum_vram_bytes[class] = self.vram_bytes[class].max(key.minimum_vram_bytes);
        self.by_key.insert(key, class as u8);
        Some(class as u8)
    }

    /// Whether an empty worker could hold a task of the class.
    pub(crate) fn fits(&self, class: u8, spec: &WorkerSpec, usable: impl Fn(usize) -> bool) -> bool {
        let key = &self.entries[usize::from(class)].key;
        if key.requirements.backend != spec.backend
            || spec.host_memory_bytes < self.host_bytes[usize::from(class)].max(key.minimum_host_bytes)
        {
            return false;
        }
        key.requirements.lane == Lane::Control
            || spec.devices.iter().enumerate().any(|(index, device)| {
                usable(index)
                    && device.slots > 0
                    && device.class == key.requirements.device_class
                    && device.vram_bytes >= self.minimum_vram_bytes[usize::from(class)]
            })
    }
}

/// What is known of a task type on one backend version.
#[derive(Debug)]
pub(crate) struct TaskType {
    pub(crate) requirements: (crate::model::BackendVersion, DeviceClass, Lane),
    /// Mean device time.
    pub(crate) mean_microseconds: u64,
    /// Mean of all measurements, the last thousand weighing most: waves of slow or fast devices hardly move it.
    pub(crate) steady_microseconds: u64,
    /// How often it was measured.
    pub(crate) measurements: u32,
    /// Ready tasks of jobs that may run.
    pub(crate) ready: u64,
    /// The same by requirement class.
    pub(crate) ready_by_class: SmallVec<[(u8, u64); 2]>,
    pub(crate) running: u64,
}

impl TaskType {
    pub(crate) fn add_ready(&mut self, class: u8) {
        self.ready += 1;
        match self.ready_by_class.iter_mut().find(|(known, _)| *known == class) {
            Some((_, ready)) => *ready += 1,
            None => self.ready_by_class.push((class, 1)),
        }
    }

    pub(crate) fn remove_ready(&mut self, class: u8) {
        self.ready -= 1;
        let at = self.ready_by_class.iter().position(|(known, _)| *known == class);
        let at = at.expect("a ready task was counted in its class");
        self.ready_by_class[at].1 -= 1;
        // A class that nothing uses may become another one.
        if self.ready_by_class[at].1 == 0 {
            self.ready_by_class.swap_remove(at);
        }
    }
}

/// All task types.
#[derive(Debug)]
pub(crate) struct TaskTypes {
    pub(crate) entries: Vec<TaskType>,
    by_name: BTreeMap<TypeKey, u32>,
}

type TypeKey = (Arc<str>, BackendVersion, DeviceClass, Lane);

fn key_of(name: &Arc<str>, requirements: &Requirements) -> TypeKey {
    let backend = requirements.backend.clone();
    (
        name.clone(),
        backend,
        requirements.device_class,
        requirements.lane,
    )
}

impl TaskTypes {
    pub(crate) fn new() -> TaskTypes {
        TaskTypes {
            entries: Vec::new(),
            by_name: BTreeMap::new(),
        }
    }

    /// The name as it is kept, if it is.
    pub(crate) fn shared_name(&self, name: &Arc<str>, requirements: &Requirements) -> Arc<str> {
        let known = self.by_name.get_key_value(&key_of(name, requirements));
        known.map_or(name, |((name, ..), _)| name).clone()
    }

    pub(crate) fn intern(
        &mut self,
        name: &Arc<str>,
        requirements: &Requirements,
        estimate: Option<Milliseconds>,
    ) -> u32 {
        let key = key_of(name, requirements);
        if let Some(known) = self.by_name.get(&key) {
            return *known;
        }
        let identity = (key.1.clone(), key.2, key.3);
        if self.entries.len() >= TASK_TYPES {
            return 0;
        }
        let mean_microseconds = estimate.map_or(UNKNOWN_TASK_MICROSECONDS, |span| {
            span.0.saturating_mul(1000).max(1)
        });
        self.entries.push(TaskType {
            requirements: identity,
            mean_microseconds,
            steady_microseconds: mean_microseconds,
            measurements: 0,
            ready: 0,
            ready_by_class: SmallVec::new(),
            running: 0,
        });
        let index = (self.entries.len() - 1) as u32;
        self.by_name.insert(key, index);
        index
    }

    pub(crate) fn measure(&mut self, index: u32, microseconds: u64) {
        let entry = &mut self.entries[index as usize];
        if entry.measurements > 0 {
            entry.mean_microseconds = entry.mean_microseconds - (entry.mean_microseconds >> MEAN_SHIFT)
                + (microseconds >> MEAN_SHIFT);
        } else {
            entry.mean_microseconds = microseconds;
        }
        entry.measurements = entry.measurements.saturating_add(1);
        let weight = u64::from(entry.measurements.min(STEADY_MEASUREMENTS));
        entry.steady_microseconds = (entry.steady_microseconds * (weight - 1) + microseconds) / weight;
        entry.mean_microseconds = entry.mean_microseconds.max(1);
    }
}

impl State {
    /// The class of a key; a new one is compared with all workers.
    pub(crate) fn class_of(&mut self, key: ClassKey) -> Result<u8, Refusal> {
        if let Some(class) = self.classes.find(&key) {
            return Ok(class);
        }
        let limit = self.limits.requirement_classes;
        let leaf = key.leaf;
        let class = self.classes.add(key, limit).ok_or(Refusal::LimitExceeded {
            what: "requirement_classes",
            limit: limit.min(CLASSES) as u64,
        })?;
        debug_assert!(leaf.is_none_or(|leaf| leaf != class));
        self.forget_group_fits(class);
        for (worker, _) in self.worker_indices() {
            // Its bit may still stand for the class whose place it took.
            let bit = 1u64 << class;
            let entry = &mut self.workers[worker];
            entry.fits &= !bit;
            entry.leaf_fits &= !bit;
            for tier in 0..TIERS {
                entry.published[tier] &= !bit;
            }
            self.refresh_fit(worker);
        }
        Ok(class)
    }
}
