//! The coordinator's record of one job, and the views that are made of it.
//!
//! Owns what the scheduling core has no use for: what a user is shown, the reports of executing and verifying.
//! What a task or a job is doing is read from the core when a view is made, never kept twice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use prover_backend::protocol::ProofReport as ToldProof;
use prover_core::{
    DeviceClass, FailureClass, JobId, JobPhase, Milliseconds, State, TaskId, TaskState as CoreTaskState,
    Timestamp, WaitReason,
};
use prover_crds::reasons;
use tokio::sync::watch;

use crate::admission::{JobRequest, PUBLIC_VALUES};
use crate::catalogue::Backend;
use crate::convert;
use crate::remembered::{JobUsed, Remembered, used};
use crate::task_list::TaskList;
use crate::view::{
    ExecutionReport, JobView, Phase, ProofReport, ProofView, StageProgress, TaskState, TaskView,
};

/// Tasks beyond which views are made less often: copying their list is most of the work.
const TASKS_PER_INTERVAL: usize = 10_000;

/// Tasks whose views are made at once. A job that changes fast has tens of thousands between two of its views: making
/// all of them then would hold every worker up for that long.
const TASKS_PER_REFRESH: usize = 512;

/// A job that the scheduling core has taken.
#[derive(Debug)]
pub(crate) struct JobRecord {
    pub(crate) job: JobId,
    pub(crate) request: JobRequest,
    pub(crate) backend: Arc<Backend>,
    pub(crate) execution: Option<ExecutionReport>,
    /// What the concluding task found, with the names of the artifacts.
    pub(crate) proof: Option<ToldProof>,
    pub(crate) failed_attempts: u64,
    /// The worker of a task's last attempt and that worker's group.
    workers: HashMap<TaskId, (Arc<str>, Arc<str>)>,
    /// Device time by worker group.
    group_times: BTreeMap<Arc<str>, Duration>,
    views: TaskList,
    /// By task: whether it counts among the tasks of the current plan.
    planned: Vec<bool>,
    /// What the tasks of `views` are doing, by declared task type: a view is made without looking at all of them.
    tallies: BTreeMap<Arc<str>, Tally>,
    /// Attempts of the tasks of `views`.
    attempts: u64,
    /// Plans that were dropped when `views` was made.
    replans: u32,
    /// Tasks that changed since the last view.
    changed: BTreeSet<TaskId>,
    /// When the next view is due, if the job changed since the last one.
    pub(crate) view_due: Option<Timestamp>,
    pub(crate) phase: Phase,
    published: Timestamp,
    /// It was submitted since this coordinator leads.
    pub(crate) claimed: bool,
    /// It is over, but the log does not have that yet.
    pub(crate) withheld: bool,
    /// What the log was told last of what its attempts took.
    told_used: JobUsed,
    sender: watch::Sender<Arc<JobView>>,
}

/// Tasks of one type.
#[derive(Debug, Default)]
struct Tally {
    planned: Counts,
    /// Tasks of dropped plans.
    dropped: Counts,
}

impl Tally {
    fn of(&mut self, planned: bool) -> &mut Counts {
        if planned {
            &mut self.planned
        } else {
            &mut self.dropped
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    total: u64,
    running: u64,
    succeeded: u64,
    /// Failed or dropped.
    ended: u64,
}

impl Counts {
    fn number(&mut self, state: TaskState) -> Option<&mut u64> {
        match state {
            TaskState::Running => Some(&mut self.running),
            TaskState::Succeeded => Some(&mut self.succeeded),
            TaskState::Failed | TaskState::Dropped => Some(&mut self.ended),
            TaskState::Waiting | TaskState::Ready | TaskState::Retrying | TaskState::Assigned => None,
        }
    }

    fn add(&mut self, state: TaskState) {
        self.total += 1;
        if let Some(number) = self.number(state) {
            *number += 1;
        }
    }

    fn remove(&mut self, state: TaskState) {
        self.total -= 1;
        if let Some(number) = self.number(state) {
            *number -= 1;
        }
    }

    fn and(self, other: Counts) -> Counts {
        Counts {
            total: self.total + other.total,
            running: self.running + other.running,
            succeeded: self.succeeded + other.succeeded,
            ended: self.ended + other.ended,
        }
    }
}

/// Milliseconds as the standard library's span.
pub(crate) fn duration(span: Milliseconds) -> Duration {
    Duration::from_millis(span.0)
}

fn seconds(span: Milliseconds) -> f64 {
    duration(span).as_secs_f64()
}

/// The view of a job that the core does not know yet, or that ended before it did.
pub(crate) fn early_view(
    request: &JobRequest,
    submitted_at: Timestamp,
    phase: Phase,
    reason: &str,
    message: &str,
) -> JobView {
    JobView {
        id: None,
        uid: request.uid.clone(),
        name: request.name.clone(),
        tenant: request.tenant.clone(),
        phase,
        reason: reason.into(),
        message: message.into(),
        bad_input: false,
        stages: Vec::new(),
        tasks: TaskList::default(),
        execution: None,
        proof: None,
        public_values: None,
        emulated: false,
        backend: None,
        submitted_at,
        started_at: None,
        finished_at: None,
        elapsed: Duration::ZERO,
        effective_hz: None,
        pgu_per_second: None,
        device_seconds: 0.0,
        energy_joules: 0.0,
        attempts: 0,
        failed_attempts: 0,
        failures: 0,
        infrastructure_failures: 0,
        active: Duration::ZERO,
        device_time_by_group: BTreeMap::new(),
        replans: 0,
        speculative_attempts: 0,
        forecast: None,
    }
}

impl JobRecord {
    pub(crate) fn new(
        job: JobId,
        request: JobRequest,
        backend: Arc<Backend>,
        sender: watch::Sender<Arc<JobView>>,
    ) -> JobRecord {
        JobRecord {
            job,
            request,
            backend,
            execution: None,
            proof: None,
            failed_attempts: 0,
            workers: HashMap::new(),
            group_times: BTreeMap::new(),
            views: TaskList::default(),
            planned: Vec::new(),
            tallies: BTreeMap::new(),
            attempts: 0,
            replans: 0,
            changed: BTreeSet::new(),
            view_due: None,
            phase: Phase::Queued,
            published: Timestamp::default(),
            claimed: true,
            withheld: false,
            told_used: JobUsed::default(),
            sender,
        }
    }

    /// Takes on what a log says of it; its tasks are those of the core.
    pub(crate) fn returned(&mut self, state: &State, remembered: &Remembered) {
        self.claimed = false;
        self.execution = remembered.executed.clone().map(convert::execution_report);
        self.proof.clone_from(&remembered.proved);
        self.failed_attempts = remembered.used.failed_attempts;
        self.group_times = remembered.used.times();
        self.told_used = remembered.used.clone();
        if let Some(told) = state.job(self.job) {
            self.phase = describe(told.phase).phase;
        }
    }

    /// What its attempts took, if that is news since it was asked last.
    pub(crate) fn newly_used(&mut self) -> Option<JobUsed> {
        let used = used(&self.group_times, self.failed_attempts);
        if used == self.told_used {
            return None;
        }
        self.told_used = used.clone();
        Some(used)
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<JobView>> {
        self.sender.subscribe()
    }

    /// Kind of device that its segments are proved on.
    pub(crate) fn leaf_class(&self) -> DeviceClass {
        let offer = self.backend.offer(&self.request.system, &self.request.kind);
        offer.map_or(DeviceClass::Cpu, |offer| offer.largest_leaf.device_class)
    }

    /// A task changed: its view is made anew with the next view of the job.
    pub(crate) fn task_changed(&mut self, task: TaskId) {
        self.changed.insert(task);
    }

    /// An attempt of a task goes to this worker of this group.
    pub(crate) fn task_assigned(&mut self, task: TaskId, worker: Arc<str>, group: Arc<str>) {
        self.workers.insert(task, (worker, group));
        self.task_changed(task);
    }

    /// When the next view may be made: large jobs are shown less often.
    pub(crate) fn next_view(&self, interval: Duration) -> Timestamp {
        let factor = 1 + self.views.len() / TASKS_PER_INTERVAL;
        let interval = interval.saturating_mul(u32::try_from(factor).unwrap_or(u32::MAX));
        self.published + Milliseconds(u64::try_from(interval.as_millis()).unwrap_or(u64::MAX))
    }

    /// Makes the views of the tasks that changed, if they are many.
    pub(crate) fn refresh_if_many(&mut self, state: &State) {
        if self.changed.len() >= TASKS_PER_REFRESH {
            self.refresh_tasks(state);
        }
    }

    /// Makes a view and shows it.
    pub(crate) fn publish(&mut self, state: &State, now: Timestamp) {
        self.published = now;
        self.note_replans(state);
        self.refresh_tasks(state);
        debug_assert!(self.counts_are_those_of(state));
        if let Some(view) = self.view(state, now) {
            self.sender.send_replace(Arc::new(view));
        }
    }

    /// A plan that is dropped takes along tasks that had ended, and nothing is said of those.
    fn note_replans(&mut self, state: &State) {
        let replans = state.job(self.job).map_or(0, |told| told.replans);
        if std::mem::replace(&mut self.replans, replans) != replans {
            self.changed.extend(state.tasks(self.job).map(|task| task.task));
        }
    }

    /// What a task used since its last view is put to the group of its last worker.
    fn count_device_time(&mut self, told: &prover_core::TaskView<'_>, total: Duration) {
        let before = self.views.get(told.order as usize);
        let before = before.map_or(Duration::ZERO, |view| view.device_time);
        if let Some((_, group)) = self.workers.get(&told.task)
            && total > before
        {
            *self.group_times.entry(group.clone()).or_default() += total - before;
        }
    }

    fn refresh_tasks(&mut self, state: &State) {
        for told in state.tasks_from(self.job, self.views.len()) {
            self.changed.remove(&told.task);
            let view = self.next_task_view(&told);
            self.count(&view, told.planned);
            self.views.push(view);
            self.planned.push(told.planned);
        }
        for task in std::mem::take(&mut self.changed) {
            let Some(told) = state.task(task) else { continue };
            let view = self.next_task_view(&told);
            let position = told.order as usize;
            self.uncount(position);
            self.count(&view, told.planned);
            self.views.replace(position, view);
            self.planned[position] = told.planned;
        }
    }

    /// Whether what was counted task by task is what all tasks together say.
    fn counts_are_those_of(&self, state: &State) -> bool {
        let mut anew: BTreeMap<&Arc<str>, Tally> = BTreeMap::new();
        for told in state.tasks(self.job) {
            let declared = self.backend.task_types.contains_key(&told.spec.task_type);
            if declared {
                let tally = anew.entry(&told.spec.task_type).or_default();
                tally.of(told.planned).add(shown_state(told.state));
            }
        }
        let lasting = |counts: &Counts| (counts.total, counts.succeeded, counts.ended);
        anew.len() == self.tallies.len()
            && self
                .tallies
                .iter()
                .zip(&anew)
                .all(|((one, counted), (other, told))| {
                    one == *other
                        && lasting(&counted.planned) == lasting(&told.planned)
                        && lasting(&counted.dropped) == lasting(&told.dropped)
                })
    }

    fn next_task_view(&mut self, told: &prover_core::TaskView<'_>) -> Arc<TaskView> {
        let view = Arc::new(self.task_view(told));
        self.count_device_time(told, view.device_time);
        if told.state == CoreTaskState::Succeeded {
            self.workers.remove(&told.task);
        }
        view
    }

    /// Counts a task as it is shown from now on.
    fn count(&mut self, view: &TaskView, planned: bool) {
        self.attempts += u64::from(view.attempts);
        // Markers may have types that no backend declares: they are no stage.
        if self.backend.task_types.contains_key(&view.task_type) {
            let tally = self.tallies.entry(view.task_type.clone()).or_default();
            tally.of(planned).add(view.state);
        }
    }

    /// Counts a task no more as it was shown.
    fn uncount(&mut self, position: usize) {
        let view = &self.views[position];
        self.attempts -= u64::from(view.attempts);
        if let Some(tally) = self.tallies.get_mut(&view.task_type) {
            tally.of(self.planned[position]).remove(view.state);
        }
    }

    fn task_view(&self, told: &prover_core::TaskView<'_>) -> TaskView {
        let previous = self.views.get(told.order as usize);
        let worker = self
            .workers
            .get(&told.task)
            .map(|(worker, _)| worker.clone())
            .or_else(|| previous.and_then(|view| view.worker.clone()));
        let stage = match self.backend.task_types.get(&told.spec.task_type) {
            Some(task_type) => task_type.stage.clone(),
            None => told.spec.task_type.clone(),
        };
        TaskView {
            id: told.task,
            request_id: told.spec.request_id.clone(),
            task_type: told.spec.task_type.clone(),
            stage,
            marker: told.spec.marker,
            state: shown_state(told.state),
            attempts: told.attempts,
            started_at: told.started_at,
            ended_at: told.finished_at,
            wall: told
                .started_at
                .zip(told.finished_at)
                .map(|(start, end)| duration(end - start)),
            device_time: duration(told.device_time),
            worker,
            failure: told.last_failure.cloned(),
            from_cache: told.from_cache,
        }
    }

    fn view(&self, state: &State, now: Timestamp) -> Option<JobView> {
        let told = state.job(self.job)?;
        let words = describe(told.phase);
        let elapsed = told.started_at.map_or(Duration::ZERO, |start| {
            duration(told.finished_at.unwrap_or(now) - start)
        });
        let succeeded = words.phase == Phase::Succeeded;
        let (mut reason, mut message) = (words.reason, self.message(told.phase, words.message));
        let waits = matches!(words.phase, Phase::Queued | Phase::Running);
        if let Some(bound) = told.at_device_bound.filter(|_| waits) {
            reason = reasons::WAITING_FOR_QUOTA.into();
            message = match bound {
                0 => "its namespace may use no device".into(),
                bound => format!("its namespace uses the {bound} devices that it may use at once").into(),
            };
        }
        let cycles = self
            .execution
            .as_ref()
            .map(|execution| execution.total_cycles)
            .filter(|cycles| *cycles > 0);
        let timed = words.phase == Phase::Succeeded && !elapsed.is_zero();
        let per_second = |amount: u64| amount as f64 / elapsed.as_secs_f64();
        let effective_hz = cycles.filter(|_| timed).map(per_second);
        // What only executes proves nothing at any speed.
        let gas = self.execution.as_ref().and_then(|execution| execution.gas);
        let pgu_per_second = gas
            .filter(|_| timed && !self.request.execute_only)
            .map(per_second);
        Some(JobView {
            id: Some(self.job),
            phase: words.phase,
            bad_input: words.bad_input,
            message,
            reason,
            stages: self.stages(told.finished_at.is_some(), succeeded),
            tasks: self.views.clone(),
            execution: self.execution.clone(),
            proof: succeeded.then(|| self.proof_view(state)).flatten(),
            public_values: succeeded
                .then(|| state.artifact(self.job, &PUBLIC_VALUES.into()).cloned())
                .flatten(),
            emulated: self.backend.emulated,
            backend: Some(self.backend.version.clone()),
            started_at: told.started_at,
            finished_at: told.finished_at,
            elapsed,
            effective_hz,
            pgu_per_second,
            device_seconds: seconds(told.device_time),
            energy_joules: told.energy_millijoules as f64 / 1_000.0,
            // What was fetched ahead and given back is no attempt: the core does not count it.
            attempts: self.attempts,
            failed_attempts: self.failed_attempts,
            failures: told.failures,
            infrastructure_failures: told.infrastructure_failures,
            active: duration(told.active),
            device_time_by_group: self.group_times.clone(),
            replans: told.replans,
            speculative_attempts: told.speculative_attempts,
            forecast: state.forecast(self.job, None),
            ..early_view(&self.request, told.submitted_at, words.phase, "", "")
        })
    }

    /// What its tasks are doing; those of dropped plans count as soon as the job is over.
    fn stages(&self, over: bool, succeeded: bool) -> Vec<StageProgress> {
        let mut stages: BTreeMap<(u32, Arc<str>), StageProgress> = BTreeMap::new();
        for (name, tally) in &self.tallies {
            let count = if over {
                tally.planned.and(tally.dropped)
            } else {
                tally.planned
            };
            let Some(task_type) = self.backend.task_types.get(name) else {
                continue;
            };
            if count.total == 0 {
                continue;
            }
            let key = (task_type.stage_order, task_type.stage.clone());
            let stage = stages.entry(key).or_insert_with(|| StageProgress {
                name: task_type.stage.clone(),
                order: task_type.stage_order,
                done: 0,
                total: 0,
                running: 0,
            });
            stage.done += count.succeeded;
            // A job that succeeded needed none of what ended otherwise: those tasks belong to plans that were given up.
            stage.total += if succeeded {
                count.total - count.ended
            } else {
                count.total
            };
            stage.running += count.running;
        }
        stages.into_values().collect()
    }

    /// A job that waits for the backend that it is pinned to says for which: perhaps no worker ever has that version again.
    fn message(&self, phase: &JobPhase, message: Arc<str>) -> Arc<str> {
        let JobPhase::Queued(WaitReason::NoWorkerOfBackend) = phase else {
            return message;
        };
        let prover_core::BackendVersion { name, version } = &self.backend.version;
        format!(
            "it was planned for backend {name} {version}, which no connected worker has; if no worker group has this \
             version any more, cancel the job and create it again"
        )
        .into()
    }

    fn proof_view(&self, state: &State) -> Option<ProofView> {
        if self.backend.emulated {
            return None;
        }
        let told = self.proof.as_ref()?;
        let proof = state.artifact(self.job, &told.proof.as_str().into())?.clone();
        let public_values = state
            .artifact(self.job, &told.public_values.as_str().into())
            .cloned();
        let report = ProofReport {
            program_id: told.program_id.clone(),
            proof_bytes: told.proof_bytes,
            verifier: told.verifier.clone(),
        };
        Some(ProofView {
            report,
            proof,
            public_values,
        })
    }
}

/// A phase in the words of a view.
pub(crate) struct PhaseWords {
    pub(crate) phase: Phase,
    pub(crate) reason: Arc<str>,
    pub(crate) message: Arc<str>,
    pub(crate) bad_input: bool,
}

/// Reasons of failures that the user repairs: the store can't take artifacts.
const STORE_REASONS: [&str; 2] = ["StoreFull", "StoreNotWritable"];

pub(crate) fn describe(phase: &JobPhase) -> PhaseWords {
    let words = |phase, reason: &str, message: &str| PhaseWords {
        phase,
        reason: reason.into(),
        message: message.into(),
        bad_input: false,
    };
    match phase {
        JobPhase::Queued(reason) => {
            let (reason, message) = wait_words(*reason);
            words(Phase::Queued, reason, message)
        }
        JobPhase::Running => words(Phase::Running, "Running", ""),
        JobPhase::Suspended => words(
            Phase::Suspended,
            "Suspended",
            "nothing of it runs, finished tasks are kept",
        ),
        JobPhase::Succeeded => words(Phase::Succeeded, "Succeeded", ""),
        JobPhase::Cancelled => words(Phase::Cancelled, "Cancelled", "the job was cancelled"),
        JobPhase::Failed {
            reason,
            message,
            class,
        } => PhaseWords {
            phase: Phase::Failed,
            reason: reason.clone(),
            message: message.clone(),
            bad_input: *class == Some(FailureClass::InvalidInput) || STORE_REASONS.contains(&&**reason),
        },
    }
}

fn shown_state(state: CoreTaskState) -> TaskState {
    match state {
        CoreTaskState::Waiting => TaskState::Waiting,
        CoreTaskState::Ready => TaskState::Ready,
        CoreTaskState::Backoff => TaskState::Retrying,
        CoreTaskState::Assigned => TaskState::Assigned,
        CoreTaskState::Running => TaskState::Running,
        CoreTaskState::Succeeded => TaskState::Succeeded,
        CoreTaskState::Failed => TaskState::Failed,
        CoreTaskState::Dropped => TaskState::Dropped,
    }
}

fn wait_words(reason: WaitReason) -> (&'static str, &'static str) {
    match reason {
        WaitReason::Admitted => ("Admitted", "it is about to be considered"),
        WaitReason::NoWorkerOfBackend => (
            "NoWorkerOfBackend",
            "no worker with the backend of its proof system is connected",
        ),
        WaitReason::NoWorkerLargeEnough => (
            "NoWorkerLargeEnough",
            "no connected worker has the memory for its largest task",
        ),
        WaitReason::WaitingForCapacity => ("WaitingForCapacity", "all workers are busy with other jobs"),
        WaitReason::WaitingForHostMemory => (
            "WaitingForHostMemory",
            "no worker has the host memory for its planner now",
        ),
    }
}
