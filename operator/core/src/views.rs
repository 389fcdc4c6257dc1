//! What the shells may read: jobs, tasks, attempts, workers and queue depth. Owns no state and changes none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::action::JobPhase;
use crate::attempts::{Lease, NO_DEVICE, Place};
use crate::model::{
    AttemptId, BackendVersion, DeviceClass, DeviceIndex, JobId, JobPolicy, Lane, Milliseconds, TaskId,
    TaskSpec, TenantName, Timestamp, WorkerId, WorkerSpec,
};
use crate::slab::NONE;
use crate::state::State;
use crate::tasks::Stage;
use crate::workers::Worker;

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskState {
    /// Waits for tasks, for inputs that are not bound yet or, as a marker, for its completion.
    Waiting,
    /// May be dispatched.
    Ready,
    /// Failed and waits to be tried again.
    Backoff,
    /// Assigned to a worker, not reported as started.
    Assigned,
    /// Runs on a worker.
    Running,
    /// Has its result.
    Succeeded,
    /// Will not be tried again.
    Failed,
    /// Its job ended or its plan was dropped first.
    Dropped,
}

/// Where an attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttemptState {
    /// Fetched ahead; holds no slot.
    Prefetched,
    /// Holds a slot, but its worker has not reported its start.
    Assigned,
    /// Runs.
    Started,
    /// Its successor has started in its slot; its outputs are on their way.
    Leaving,
    /// Was told to stop and still holds its slot.
    Stopping,
    /// Its lease is lost.
    Lost,
    /// It has reported its end.
    Ended {
        /// Whether its result is its task's.
        accepted: bool,
    },
}

/// A job.
#[derive(Clone, Debug)]
pub struct JobView<'a> {
    /// Identity.
    pub job: JobId,
    /// As submitted.
    pub uid: &'a Arc<str>,
    /// Namespace.
    pub tenant: &'a TenantName,
    /// What it is doing and why.
    pub phase: &'a JobPhase,
    /// As it stands now.
    pub policy: JobPolicy,
    /// Its root task.
    pub root: TaskId,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// When its root was first dispatched.
    pub started_at: Option<Timestamp>,
    /// When it became terminal.
    pub finished_at: Option<Timestamp>,
    /// Times that it was planned again with a smaller segment.
    pub replans: u32,
    /// Counts the plans: replans and restarts of parents.
    pub epoch: u32,
    /// Failures of its own, counted toward its retry limit.
    pub failures: u32,
    /// Losses of workers, counted toward the infrastructure limit.
    pub infrastructure_failures: u32,
    /// Attempts that were started beside others which took too long: the only work that is done twice on purpose.
    pub speculative_attempts: u32,
    /// How long it was active: from its start to its end or to now, without the time in which it was suspended.
    pub active: Milliseconds,
    /// Tasks of it are ready, but its tenant uses all devices that it may: that many.
    pub at_device_bound: Option<u32>,
    /// Tasks of the current plan.
    pub tasks: usize,
    /// Attempts that hold a lease.
    pub attempts_running: u32,
    /// Attempts that have a place on a worker, those that are being stopped among them.
    pub attempts_placed: u32,
    /// Device time of all its attempts, divided where attempts overlapped on a device.
    pub device_time: Milliseconds,
    /// Energy of all its attempts in millijoules.
    pub energy_millijoules: u64,
}

/// A task.
#[derive(Clone, Debug)]
pub struct TaskView<'a> {
    /// Identity.
    pub task: TaskId,
    /// Its job.
    pub job: JobId,
    /// As submitted.
    pub spec: &'a TaskSpec,
    /// Where it stands.
    pub state: TaskState,
    /// Tasks of its job that were submitted before it, those of dropped plans too.
    pub order: u32,
    /// Whether it belongs to the current plan of its job.
    pub planned: bool,
    /// Plan that it belongs to.
    pub epoch: u32,
    /// Attempts so far.
    pub attempts: u32,
    /// Its current attempt and that attempt's worker.
    pub current: Option<(AttemptId, WorkerId)>,
    /// When it may be tried again, in backoff.
    pub not_before: Option<Timestamp>,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// When its last attempt started.
    pub started_at: Option<Timestamp>,
    /// When it became terminal.
    pub finished_at: Option<Timestamp>,
    /// Device time of all its attempts.
    pub device_time: Milliseconds,
    /// Energy of all its attempts in millijoules.
    pub energy_millijoules: u64,
    /// Inline result of the accepted attempt.
    pub result: Option<&'a Arc<[u8]>>,
    /// Whether the action cache answered it.
    pub from_cache: bool,
    /// Words of its last failure.
    pub last_failure: Option<&'a Arc<str>>,
}

/// How full the action cache is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ActionCacheView {
    /// All entries.
    pub entries: usize,
    /// Results without artifacts, which outlive their jobs.
    pub lasting: usize,
    /// Bytes of keys and results of those.
    pub lasting_bytes: usize,
    /// Entries that made room for others since this state began.
    pub evicted: u64,
}

/// An attempt.
#[derive(Clone, Debug)]
pub struct AttemptView {
    /// Identity.
    pub attempt: AttemptId,
    /// Its task.
    pub task: TaskId,
    /// Its job.
    pub job: JobId,
    /// Its worker, which may be gone by now.
    pub worker: WorkerId,
    /// Its device; none in the control lane.
    pub device: Option<DeviceIndex>,
    /// Counted from 1 within its task.
    pub number: u32,
    /// It was started beside another one which took too long.
    pub speculative: bool,
    /// Where it stands.
    pub state: AttemptState,
    /// When it was assigned.
    pub assigned_at: Timestamp,
    /// When it started.
    pub started_at: Option<Timestamp>,
}

/// What a worker has to say about an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// The attempt was given to it. Whether its lease still holds is judged with what it says: the first valid result
    /// counts, even late.
    Given,
    /// The attempt is another worker's: nothing that this one says about it may count.
    Foreign,
    /// Nothing is known of the attempt: it never was, or its job was forgotten.
    Unknown,
}

/// A worker.
#[derive(Clone, Debug)]
pub struct WorkerView<'a> {
    /// Identity.
    pub worker: WorkerId,
    /// As it presented itself.
    pub spec: &'a WorkerSpec,
    /// Whether its stream is open.
    pub connected: bool,
    /// Whether its lease holds.
    pub alive: bool,
    /// Whether it takes nothing new.
    pub draining: bool,
    /// Whether the shell wants it to leave.
    pub leaving: bool,
    /// Devices that are out of order.
    pub failed_devices: usize,
    /// Attempts with a slot or host memory.
    pub running: usize,
    /// Attempts fetched ahead.
    pub prefetched: usize,
    /// Slots of usable devices.
    pub slots: usize,
    /// Host memory that no attempt and no reservation holds, in bytes.
    pub host_memory_free_bytes: u64,
    /// Host memory reserved for parents, in bytes.
    pub host_memory_parents_bytes: u64,
}

/// Work that waits and runs for one device class of one backend version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueDepth {
    /// Backend that runs it.
    pub backend: BackendVersion,
    /// Kind of device.
    pub device_class: DeviceClass,
    /// Tasks that are ready, without those of suspended jobs.
    pub waiting: u64,
    /// Estimated device time of the tasks that are ready.
    pub waiting_device_time: Milliseconds,
    /// Tasks that are assigned.
    pub running: u64,
    /// Estimated device time of the tasks that are assigned, less what they have run.
    pub running_device_time: Milliseconds,
}

impl State {
    fn job_view(&self, index: u32) -> JobView<'_> {
        let entry = &self.jobs[index];
        JobView {
            job: self.job_id(index),
            uid: &entry.uid,
            tenant: &self.tenants[entry.tenant as usize].name,
            phase: &entry.phase,
            policy: entry.policy,
            root: TaskId(self.tasks.id(entry.root)),
            submitted_at: entry.submitted_at,
            started_at: entry.started_at,
            finished_at: entry.finished_at,
            replans: entry.replans,
            epoch: entry.epoch,
            failures: entry.failures,
            infrastructure_failures: entry.infrastructure_failures,
            speculative_attempts: entry.speculative,
            active: Milliseconds(
                entry.active_before.0 + entry.active_since.map_or(0, |since| (self.now - since).0),
            ),
            at_device_bound: {
                let tenant = &self.tenants[entry.tenant as usize];
                let waits = entry.queued_mask & !self.classes_for_tenant(entry.tenant) != 0;
                tenant.policy.max_devices.filter(|_| waits)
            },
            tasks: entry.planned,
            attempts_running: entry.active,
            attempts_placed: entry.placed,
            device_time: Milliseconds(entry.device_microseconds / 1000),
            energy_millijoules: entry.energy_millijoules,
        }
    }

    fn task_state(&self, index: u32) -> TaskState {
        let entry = &self.tasks[index];
        match entry.stage {
            Stage::Waiting => TaskState::Waiting,
            Stage::Ready => TaskState::Ready,
            Stage::Backoff => TaskState::Backoff,
            Stage::Active if entry.current != NONE && self.attempts[entry.current].started_at.is_some() => {
                TaskState::Running
            }
            Stage::Active => TaskState::Assigned,
            Stage::Succeeded => TaskState::Succeeded,
            Stage::Failed => TaskState::Failed,
            Stage::Dropped => TaskState::Dropped,
        }
    }

    fn task_view(&self, index: u32) -> TaskView<'_> {
        let entry = &self.tasks[index];
        TaskView {
            task: TaskId(self.tasks.id(index)),
            job: self.job_id(entry.job),
            spec: &entry.spec,
            state: self.task_state(index),
            order: entry.order,
            planned: entry.planned,
            epoch: entry.epoch,
            attempts: entry.attempts,
            current: (entry.current != NONE).then(|| {
                (
                    self.attempt_id(entry.current),
                    self.attempts[entry.current].worker_id,
                )
            }),
            not_before: self.not_before(index),
            submitted_at: entry.submitted_at,
            started_at: entry.started_at,
            finished_at: entry.finished_at(),
            device_time: Milliseconds(entry.device_microseconds / 1000),
            energy_millijoules: entry.energy_millijoules,
            result: entry.result.as_ref(),
            from_cache: entry.from_cache,
            last_failure: entry.trouble().last_failure.as_ref(),
        }
    }

    /// A job that is not forgotten.
    pub fn job(&self, job: JobId) -> Option<JobView<'_>> {
        self.jobs.find(job.0).map(|index| self.job_view(index))
    }

    /// A job by its unique name.
    pub fn job_by_uid(&self, uid: &str) -> Option<JobId> {
        self.job_by_uid.get(uid).map(|index| self.job_id(*index))
    }

    /// All jobs that are not forgotten, ordered by unique name.
    pub fn jobs(&self) -> impl Iterator<Item = JobView<'_>> {
        self.job_by_uid.values().map(|index| self.job_view(*index))
    }

    /// A task of a job that is not forgotten.
    pub fn task(&self, task: TaskId) -> Option<TaskView<'_>> {
        self.tasks.find(task.0).map(|index| self.task_view(index))
    }

    /// A task of the current plan by its request id.
    pub fn task_by_request(&self, job: JobId, request: &str) -> Option<TaskId> {
        let job = self.jobs.find(job.0)?;
        self.jobs[job]
            .by_request
            .get(request)
            .map(|task| TaskId(self.tasks.id(task)))
    }

    /// All tasks of a job in the order of submission, those of dropped plans too.
    pub fn tasks(&self, job: JobId) -> impl Iterator<Item = TaskView<'_>> {
        self.tasks_from(job, 0)
    }

    /// Tasks of a job in the order of submission, without so many that come first.
    pub fn tasks_from(&self, job: JobId, order: usize) -> impl Iterator<Item = TaskView<'_>> {
        let tasks = self.jobs.find(job.0);
        let tasks = tasks.and_then(|index| self.jobs[index].tasks.get(order..));
        let tasks = tasks.unwrap_or_default();
        tasks.iter().map(|task| self.task_view(*task))
    }

    /// All attempts of a job in the order of assignment, lost and ended ones too.
    pub fn attempts(&self, job: JobId) -> impl Iterator<Item = AttemptView> {
        let attempts = self.jobs.find(job.0).map(|index| self.attempts_of(index));
        let attempts = attempts.into_iter().flatten();
        attempts.map(|attempt| self.attempt_view(attempt))
    }

    /// Store keys below a prefix that entries of the action cache or names of any job share, in order. Once the job of the
    /// prefix is forgotten no key is added to them: only who has one gives it on. Each is deleted with its last name.
    pub fn held_keys(&self, prefix: &str) -> impl Iterator<Item = &Arc<str>> {
        self.cache.held_below(prefix)
    }

    /// Store keys below a prefix that something still names: names of the job, entries of the action cache, names of
    /// other jobs that share their bytes.
    pub fn kept_keys(&self, job: JobId, prefix: &str) -> BTreeSet<Arc<str>> {
        let mut keys: BTreeSet<Arc<str>> = self.held_keys(prefix).cloned().collect();
        if let Some(job) = self.jobs.find(job.0) {
            let bindings = self.jobs[job].artifacts.iter();
            keys.extend(
                bindings.filter_map(|artifact| artifact.binding.as_ref().map(|bound| bound.key.clone())),
            );
        }
        keys
    }

    fn attempt_view(&self, index: u32) -> AttemptView {
        let entry = &self.attempts[index];
        AttemptView {
            attempt: self.attempt_id(index),
            task: TaskId(self.tasks.id(entry.task)),
            job: self.job_id(entry.job),
            worker: entry.worker_id,
            device: (entry.device != NO_DEVICE).then_some(DeviceIndex(entry.device)),
            number: entry.number,
            speculative: entry.speculative,
            state: match (entry.lease, entry.place) {
                (Lease::Ended(accepted), _) => AttemptState::Ended { accepted },
                (Lease::Lost, _) => AttemptState::Lost,
                (Lease::Stopping(_), _) => AttemptState::Stopping,
                (Lease::Held, Place::Leaving) => AttemptState::Leaving,
                (Lease::Held, Place::Ahead) => AttemptState::Prefetched,
                (Lease::Held, _) if entry.started_at.is_some() => AttemptState::Started,
                (Lease::Held, _) => AttemptState::Assigned,
            },
            assigned_at: entry.assigned_at,
            started_at: entry.started_at,
        }
    }

    /// An attempt of a job that is not forgotten.
    pub fn attempt(&self, attempt: AttemptId) -> Option<AttemptView> {
        self.find_attempt(attempt).map(|index| self.attempt_view(index))
    }

    /// Whether a worker may report about an attempt and call for it.
    pub fn standing(&self, worker: WorkerId, attempt: AttemptId) -> Standing {
        match self.find_attempt(attempt) {
            Some(index) if self.attempts[index].worker_id == worker => Standing::Given,
            Some(_) => Standing::Foreign,
            // Nobody but who was told to stop it says when it has left.
            None if self.is_stray_elsewhere(worker, attempt) => Standing::Foreign,
            None => Standing::Unknown,
        }
    }

    fn is_stray_elsewhere(&self, worker: WorkerId, attempt: AttemptId) -> bool {
        let own = self.worker_by_id.get(&worker).copied();
        let mut holders = self.holders_of_stray(attempt).peekable();
        holders.peek().is_some() && holders.all(|holder| Some(holder) != own)
    }

    fn worker_view(&self, index: u32) -> WorkerView<'_> {
        let entry = &self.workers[index];
        let devices = || entry.devices.iter();
        WorkerView {
            worker: entry.id,
            spec: &entry.spec,
            connected: entry.connected,
            alive: entry.alive,
            draining: entry.draining,
            leaving: entry.leaving,
            failed_devices: devices().filter(|device| !device.usable).count(),
            running: entry.control.len()
                + devices()
                    .map(|d| d.running.len() + d.leaving.len())
                    .sum::<usize>(),
            prefetched: devices().map(|device| device.ahead.len()).sum(),
            slots: devices()
                .filter(|device| device.usable)
                .map(|device| usize::from(device.slots))
                .sum(),
            host_memory_free_bytes: entry.host_free,
            host_memory_parents_bytes: entry.parents_bytes,
        }
    }

    /// All known workers, ordered by identity.
    pub fn workers(&self) -> impl Iterator<Item = WorkerView<'_>> {
        self.worker_by_id.values().map(|index| self.worker_view(*index))
    }

    /// A worker.
    pub fn worker(&self, worker: WorkerId) -> Option<WorkerView<'_>> {
        self.worker_by_id
            .get(&worker)
            .map(|index| self.worker_view(*index))
    }

    /// Tasks that a worker holds the lease of, on devices or fetched ahead, and their estimated device time, less what
    /// they have run.
    pub fn device_work(&self, worker: WorkerId) -> (u64, Milliseconds) {
        let Some(index) = self.worker_by_id.get(&worker) else {
            return (0, Milliseconds(0));
        };
        let attempts = self.device_attempts(&self.workers[*index]);
        let (tasks, time) = attempts.fold((0, 0), |(tasks, time), attempt| {
            (tasks + 1, time + self.time_left(attempt).0)
        });
        (tasks, Milliseconds(time))
    }

    /// Attempts that have a place on a worker: the control lane first, then device by device.
    pub fn worker_attempts(&self, worker: WorkerId) -> Vec<AttemptId> {
        let Some(index) = self.worker_by_id.get(&worker) else {
            return Vec::new();
        };
        self.workers[*index]
            .attempts()
            .map(|attempt| self.attempt_id(attempt))
            .collect()
    }

    /// Work of the device lane that waits and runs, per backend version and device class. A task counts with the mean
    /// of the times that were measured for its type on this backend version; before the first measurement with its
    /// submitter's estimate, and with one second where there is none.
    pub fn queue_depth(&self) -> Vec<QueueDepth> {
        let mut depths: BTreeMap<(BackendVersion, DeviceClass), QueueDepth> = BTreeMap::new();
        let mut depth_of =
            |backend: &BackendVersion, device_class: DeviceClass, add: &mut dyn FnMut(&mut QueueDepth)| {
                let depth = depths
                    .entry((backend.clone(), device_class))
                    .or_insert_with(|| QueueDepth {
                        backend: backend.clone(),
                        device_class,
                        waiting: 0,
                        waiting_device_time: Milliseconds(0),
                        running: 0,
                        running_device_time: Milliseconds(0),
                    });
                add(depth);
            };
        for kind in self
            .types
            .entries
            .iter()
            .filter(|kind| kind.requirements.2 == Lane::Device)
        {
            depth_of(&kind.requirements.0, kind.requirements.1, &mut |depth| {
                depth.waiting += kind.ready;
                depth.waiting_device_time.0 += kind.ready.saturating_mul(kind.mean_microseconds) / 1000;
                depth.running += kind.running;
            });
        }
        for (_, worker) in self.workers.iter() {
            for attempt in self.device_attempts(worker) {
                let kind = &self.types.entries[self.tasks[self.attempts[attempt].task].kind as usize];
                let left = self.time_left(attempt);
                depth_of(&kind.requirements.0, kind.requirements.1, &mut |depth| {
                    depth.running_device_time.0 += left.0;
                });
            }
        }
        depths.into_values().collect()
    }

    /// Work of the device lane that is ready and that an empty worker of this kind could take: tasks, and their
    /// estimated device time. Tasks of suspended jobs are left out.
    pub fn waiting_for(&self, spec: &WorkerSpec) -> (u64, Milliseconds) {
        let fits: u64 = (0..self.classes.entries.len())
            .filter(|class| self.classes.fits(*class as u8, spec, |_| true))
            .fold(0, |mask, class| mask | 1 << class);
        let (mut tasks, mut microseconds) = (0u64, 0u64);
        for kind in &self.types.entries {
            if kind.ready == 0 || kind.requirements.2 != Lane::Device {
                continue;
            }
            let waiting: u64 = kind
                .ready_by_class
                .iter()
                .filter(|(class, _)| fits & (1 << class) != 0)
                .map(|(_, ready)| *ready)
                .sum();
            tasks += waiting;
            microseconds = microseconds.saturating_add(waiting.saturating_mul(kind.mean_microseconds));
        }
        (tasks, Milliseconds(microseconds / 1000))
    }

    /// Attempts that hold the lease of a task of the device lane on this worker.
    fn device_attempts<'a>(&'a self, worker: &'a Worker) -> impl Iterator<Item = u32> + 'a {
        let attempts = worker
            .devices
            .iter()
            .flat_map(|d| d.running.iter().chain(d.leaving.iter()).chain(d.ahead.iter()))
            .copied();
        attempts.filter(|attempt| self.attempts[*attempt].lease == Lease::Held)
    }

    /// Estimated device time of an attempt, less what it has run.
    fn time_left(&self, attempt: u32) -> Milliseconds {
        let entry = &self.attempts[attempt];
        let kind = &self.types.entries[self.tasks[entry.task].kind as usize];
        let run = entry.started_at.map_or(0, |start| (self.now - start).0);
        Milliseconds((kind.mean_microseconds / 1000).saturating_sub(run))
    }
}
