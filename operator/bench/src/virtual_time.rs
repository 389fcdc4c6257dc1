//! A cluster in virtual time around the production core: workers, planners and messages that take exactly as long as
//! they are told to, so that what a policy costs can be computed rather than measured. The same plan always gives the
//! same outcome.
//!
//! Owns the clock and the behaviour of workers. Does not own a single decision: those are the core's.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use prover_core::{
    Action, AttemptId, BackendVersion, CallId, DeviceClass, DeviceSpec, Event, FailureClass, JobId, JobPhase,
    JobPolicy, JobSpec, Lane, Limits, Milliseconds, Requirements, State, StopReason, TaskChange, TaskId,
    TaskSpec, TenantName, TenantPolicy, Timestamp, Usage, WorkerId, WorkerSpec,
};

/// Time in microseconds since the begin of the simulation.
pub type Microseconds = u64;

const GIB: u64 = 1 << 30;
/// What a planner takes of its worker.
const PLANNER_BYTES: u64 = GIB / 16;
/// The core's clock at the begin: nothing may look as if it had been before time began.
const ORIGIN: Timestamp = Timestamp(1_000_000);

/// A worker and its fate.
#[derive(Clone, Debug)]
pub struct WorkerPlan {
    /// Devices, each with slots of its own.
    pub devices: Vec<DeviceSpec>,
    /// Bytes of host memory.
    pub host_memory_bytes: u64,
    /// Work that its devices do per time; 1 does what tasks are said to take.
    pub speed: f64,
    /// Its worker group.
    pub group: Arc<str>,
    /// When it connects.
    pub joins_at: Microseconds,
    /// When it dies, and with it all that it runs.
    pub dies_at: Option<Microseconds>,
    /// How long after its death the coordinator learns of it for certain; none: its silence must tell.
    pub noticed_after: Option<Microseconds>,
}

impl WorkerPlan {
    /// One GPU with one slot, from the begin to the end.
    #[must_use]
    pub fn gpu() -> WorkerPlan {
        WorkerPlan {
            devices: vec![DeviceSpec {
                class: DeviceClass::Gpu,
                vram_bytes: 24 * GIB,
                slots: 1,
            }],
            host_memory_bytes: 1024 * GIB,
            speed: 1.0,
            group: "group".into(),
            joins_at: 0,
            dies_at: None,
            noticed_after: None,
        }
    }
}

/// A task of a job.
#[derive(Clone, Debug)]
pub struct TaskPlan {
    /// Unique within its job.
    pub name: Arc<str>,
    /// Task type.
    pub task_type: Arc<str>,
    /// What it needs.
    pub requirements: Requirements,
    /// Places in the job's list of tasks, earlier ones.
    pub depends_on: Vec<usize>,
    /// On a device of speed 1.
    pub duration: Microseconds,
    /// When the planner has it, counted from the planner's start. Must not fall from task to task.
    pub released_at: Microseconds,
    /// Attempts that fail at their end, as a fault that may be tried again.
    pub failures: u32,
    /// What its first attempt takes instead, as on a device that hangs.
    pub first_attempt: Option<Microseconds>,
    /// What its submitter says that it takes.
    pub estimate: Option<Milliseconds>,
}

/// A job.
#[derive(Clone, Debug)]
pub struct JobPlan {
    /// Unique.
    pub name: Arc<str>,
    /// Namespace.
    pub tenant: TenantName,
    /// Priority and limits.
    pub policy: JobPolicy,
    /// When it is submitted.
    pub arrives_at: Microseconds,
    /// Its tasks without the planner. The last one concludes it.
    pub tasks: Vec<TaskPlan>,
}

/// All that happens from outside.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Limits of the core.
    pub limits: Limits,
    /// Workers.
    pub workers: Vec<WorkerPlan>,
    /// Jobs.
    pub jobs: Vec<JobPlan>,
    /// Shares of tenants; 1 for those that are not named.
    pub weights: Vec<(TenantName, u32)>,
    /// How long a message takes between a worker and the coordinator.
    pub one_way: Microseconds,
    /// How often workers say that they are alive.
    pub heartbeat: Microseconds,
    /// The simulation ends here at the latest.
    pub end: Microseconds,
}

impl Plan {
    /// Nothing yet; messages take 250 microseconds, a usual network within a data centre.
    #[must_use]
    pub fn new() -> Plan {
        Plan {
            limits: Limits::default(),
            workers: Vec::new(),
            jobs: Vec::new(),
            weights: Vec::new(),
            one_way: 250,
            heartbeat: 5_000_000,
            end: u64::MAX,
        }
    }
}

impl Default for Plan {
    fn default() -> Plan {
        Plan::new()
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// It did its task.
    Succeeded,
    /// As planned.
    Failed,
    /// The coordinator did not want it any more.
    Stopped,
    /// With its worker.
    Killed,
    /// The simulation ended first.
    Unfinished,
}

/// A task on a device.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Place of the job in the plan.
    pub job: usize,
    /// Place of the task in its job; none: the planner.
    pub task: Option<usize>,
    /// Place of the worker in the plan.
    pub worker: usize,
    /// Which of its devices; none: the control lane.
    pub device: Option<u16>,
    /// When the core held it ready the last time before.
    pub ready_at: Microseconds,
    /// Place of its assignment among all.
    pub decision: usize,
    /// When it began on its device.
    pub started_at: Microseconds,
    /// When it left it.
    pub ended_at: Microseconds,
    /// How.
    pub end: RunEnd,
}

/// What came of a plan.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// In the order of their begins.
    pub runs: Vec<Run>,
    /// When each job ended for the coordinator; none: it did not succeed.
    pub succeeded_at: Vec<Option<Microseconds>>,
    /// When each job's planner began first.
    pub began_at: Vec<Option<Microseconds>>,
    /// Jobs that failed, with why.
    pub failed: Vec<(usize, String)>,
    /// Events that the core was given.
    pub events: u64,
    /// When the last job ended.
    pub makespan: Microseconds,
}

impl Outcome {
    /// Runs of tasks on devices.
    pub fn device_runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(|run| run.device.is_some())
    }

    /// Time that devices of one slot were busy.
    #[must_use]
    pub fn busy(&self) -> Microseconds {
        self.device_runs().map(|run| run.ended_at - run.started_at).sum()
    }

    /// Share of the time of so many slots, from the begin to the end, in which nothing ran on them.
    #[must_use]
    pub fn idle_share(&self, slots: usize) -> f64 {
        1.0 - self.busy() as f64 / (self.makespan as f64 * slots as f64)
    }
}

/// The backend of everything here.
#[must_use]
pub fn backend() -> BackendVersion {
    BackendVersion {
        name: "emulated".into(),
        version: "1".into(),
    }
}

/// What a task on a GPU needs here.
#[must_use]
pub fn gpu_task() -> Requirements {
    Requirements {
        lane: Lane::Device,
        device_class: DeviceClass::Gpu,
        host_memory_bytes: GIB,
        vram_bytes: 8 * GIB,
        backend: backend(),
    }
}

/// A policy with nothing special.
#[must_use]
pub fn usual_policy() -> JobPolicy {
    JobPolicy {
        priority: 0,
        deadline: None,
        active_deadline: None,
        max_workers: None,
        suspended: false,
    }
}

/// Runs a plan to its end.
///
/// # Panics
/// The core did what it must not do: it refused what is right or gave an attempt to a device without room.
#[must_use]
pub fn run(plan: &Plan) -> Outcome {
    let mut simulation = Simulation::new(plan);
    simulation.begin();
    while let Some(Reverse((at, _, happening))) = simulation.queue.pop() {
        if at > plan.end || simulation.unfinished == 0 {
            break;
        }
        simulation.now = at;
        simulation.happen(happening);
    }
    simulation.finish()
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    JobArrives(usize),
    WorkerJoins(usize),
    WorkerDies(usize),
    WorkerNoticed(usize),
    Heartbeat(usize),
    Release(u64),
    AttemptEnds(u64),
    /// A message to the coordinator, by its place among those that were ever sent.
    ToCore(usize),
    /// A message to a worker.
    ToWorker(usize, Message),
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Message {
    Assigned(u64),
    Recall(u64),
    Stop(u64),
}

/// An attempt and where its run stands.
#[derive(Debug)]
struct Attempt {
    job: usize,
    task: Option<usize>,
    number: u32,
    worker: usize,
    device: Option<u16>,
    ready_at: Microseconds,
    decision: usize,
    /// Place of its run in the outcome, once it has begun.
    run: Option<usize>,
    /// For a planner: how many tasks it has submitted.
    submitted: usize,
}

#[derive(Debug, Default)]
struct Device {
    running: Vec<u64>,
    ahead: VecDeque<u64>,
}

#[derive(Debug, Default)]
struct Worker {
    alive: bool,
    planners: Vec<u64>,
    devices: Vec<Device>,
}

struct Simulation<'plan> {
    plan: &'plan Plan,
    state: State,
    now: Microseconds,
    sequence: u64,
    queue: BinaryHeap<Reverse<(Microseconds, u64, Happening)>>,
    messages: Vec<Option<Event>>,
    spare_messages: Vec<usize>,
    workers: Vec<Worker>,
    attempts: BTreeMap<u64, Attempt>,
    jobs: BTreeMap<JobId, usize>,
    /// Place of each task in its job; none: the planner.
    tasks: BTreeMap<TaskId, Option<usize>>,
    by_name: Vec<BTreeMap<Arc<str>, usize>>,
    ready: BTreeMap<TaskId, Microseconds>,
    tick_at: Option<Timestamp>,
    decisions: usize,
    actions: Vec<Action>,
    unfinished: usize,
    outcome: Outcome,
}

impl<'plan> Simulation<'plan> {
    fn new(plan: &'plan Plan) -> Self {
        let by_name = plan.jobs.iter().map(|job| {
            let names = job.tasks.iter().enumerate();
            names.map(|(place, task)| (task.name.clone(), place)).collect()
        });
        Simulation {
            plan,
            state: State::new(plan.limits.clone()),
            now: 0,
            sequence: 0,
            queue: BinaryHeap::new(),
            messages: Vec::new(),
            spare_messages: Vec::new(),
            workers: plan.workers.iter().map(|_| Worker::default()).collect(),
            attempts: BTreeMap::new(),
            jobs: BTreeMap::new(),
            tasks: BTreeMap::new(),
            by_name: by_name.collect(),
            ready: BTreeMap::new(),
            tick_at: None,
            decisions: 0,
            actions: Vec::new(),
            unfinished: plan.jobs.len(),
            outcome: Outcome {
                succeeded_at: vec![None; plan.jobs.len()],
                began_at: vec![None; plan.jobs.len()],
                ..Outcome::default()
            },
        }
    }

    fn begin(&mut self) {
        for (tenant, weight) in &self.plan.weights {
            self.apply(Event::TenantPolicyChanged {
                tenant: tenant.clone(),
                policy: TenantPolicy {
                    weight: *weight,
                    ..TenantPolicy::default()
                },
            });
        }
        for (place, worker) in self.plan.workers.iter().enumerate() {
            self.schedule(worker.joins_at, Happening::WorkerJoins(place));
            if let Some(dies_at) = worker.dies_at {
                self.schedule(dies_at, Happening::WorkerDies(place));
                if let Some(after) = worker.noticed_after {
                    self.schedule(dies_at + after, Happening::WorkerNoticed(place));
                }
            }
        }
        for (place, job) in self.plan.jobs.iter().enumerate() {
            self.schedule(job.arrives_at, Happening::JobArrives(place));
        }
    }

    fn finish(mut self) -> Outcome {
        for run in &mut self.outcome.runs {
            if run.end == RunEnd::Unfinished {
                run.ended_at = self.now.max(run.started_at);
            }
        }
        self.outcome
    }

    fn schedule(&mut self, at: Microseconds, happening: Happening) {
        self.sequence += 1;
        self.queue.push(Reverse((at, self.sequence, happening)));
    }

    /// A message to the coordinator arrives after its way.
    fn tell(&mut self, event: Event) {
        let place = match self.spare_messages.pop() {
            Some(place) => {
                self.messages[place] = Some(event);
                place
            }
            None => {
                self.messages.push(Some(event));
                self.messages.len() - 1
            }
        };
        self.schedule(self.now + self.plan.one_way, Happening::ToCore(place));
    }

    fn core_now(&self) -> Timestamp {
        ORIGIN + Milliseconds(self.now / 1_000)
    }

    fn apply(&mut self, event: Event) {
        let mut actions = std::mem::take(&mut self.actions);
        self.state.apply(event, self.core_now(), &mut actions);
        self.outcome.events += 1;
        for action in actions.drain(..) {
            self.execute(action);
        }
        self.actions = actions;
        if let Some(due) = self.state.next_timer()
            && self.tick_at.is_none_or(|at| due < at)
        {
            self.tick_at = Some(due);
            let at = (due - ORIGIN).0 * 1_000;
            self.schedule(at.max(self.now), Happening::Tick);
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::JobArrives(job) => self.job_arrives(job),
            Happening::WorkerJoins(worker) => self.worker_joins(worker),
            Happening::WorkerDies(worker) => self.worker_dies(worker),
            Happening::WorkerNoticed(worker) => self.apply(Event::WorkerGone {
                worker: WorkerId(worker as u64),
            }),
            Happening::Heartbeat(worker) => self.heartbeat(worker),
            Happening::Release(attempt) => self.release(attempt),
            Happening::AttemptEnds(attempt) => self.attempt_ends(attempt),
            Happening::ToCore(place) => {
                if let Some(event) = self.messages[place].take() {
                    self.spare_messages.push(place);
                    self.apply(event);
                }
            }
            Happening::ToWorker(worker, message) => self.message_arrives(worker, &message),
            Happening::Tick => {
                self.tick_at = None;
                self.apply(Event::Tick);
            }
        }
    }

    fn job_arrives(&mut self, place: usize) {
        let job = &self.plan.jobs[place];
        let planner = Requirements {
            lane: Lane::Control,
            host_memory_bytes: PLANNER_BYTES,
            vram_bytes: 0,
            ..gpu_task()
        };
        let root = TaskSpec {
            request_id: "plan".into(),
            task_type: "plan".into(),
            requirements: planner.clone(),
            depends_on: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            parameters: Arc::from([]),
            cache_key: None,
            estimated_device_time: None,
            completes: Vec::new(),
            concludes_job: false,
            marker: false,
        };
        let largest = job.tasks.iter().map(|task| &task.requirements);
        let largest = largest.max_by_key(|needs| (needs.vram_bytes, needs.host_memory_bytes));
        self.apply(Event::JobSubmitted(Box::new(JobSpec {
            uid: job.name.clone(),
            tenant: job.tenant.clone(),
            policy: job.policy,
            retry_limit: 1_000_000,
            parent_chain: vec![planner],
            root,
            root_concludes: job.tasks.is_empty(),
            largest_leaf: largest.cloned().unwrap_or_else(gpu_task),
            sources: Vec::new(),
            retained: Vec::new(),
        })));
    }

    fn worker_joins(&mut self, place: usize) {
        let plan = &self.plan.workers[place];
        self.workers[place] = Worker {
            alive: true,
            planners: Vec::new(),
            devices: plan.devices.iter().map(|_| Device::default()).collect(),
        };
        self.apply(Event::WorkerConnected {
            worker: WorkerId(place as u64),
            spec: Box::new(WorkerSpec {
                name: format!("worker-{place}").into(),
                group: plan.group.clone(),
                host_memory_bytes: plan.host_memory_bytes,
                devices: plan.devices.clone(),
                backend: backend(),
            }),
            held: Vec::new(),
        });
        self.schedule(self.now + self.plan.heartbeat, Happening::Heartbeat(place));
    }

    fn worker_dies(&mut self, place: usize) {
        let worker = std::mem::take(&mut self.workers[place]);
        let devices = worker.devices.into_iter();
        let attempts = devices.flat_map(|device| device.running.into_iter().chain(device.ahead));
        for attempt in attempts.chain(worker.planners) {
            self.end_run(attempt, RunEnd::Killed);
        }
        self.tell(Event::WorkerDisconnected {
            worker: WorkerId(place as u64),
        });
    }

    fn heartbeat(&mut self, place: usize) {
        let worker = &self.workers[place];
        if !worker.alive {
            return;
        }
        let devices = worker.devices.iter();
        let held = devices.flat_map(|device| device.running.iter().chain(&device.ahead));
        let attempts = held
            .chain(&worker.planners)
            .map(|attempt| AttemptId(*attempt))
            .collect();
        self.tell(Event::WorkerHeartbeat {
            worker: WorkerId(place as u64),
            attempts,
        });
        self.schedule(self.now + self.plan.heartbeat, Happening::Heartbeat(place));
    }

    fn execute(&mut self, action: Action) {
        match action {
            Action::Assign(given) => {
                let (Some(job), Some(task)) = (self.jobs.get(&given.job), self.tasks.get(&given.task)) else {
                    unreachable!("what is assigned was created before");
                };
                let attempt = Attempt {
                    job: *job,
                    task: *task,
                    number: given.number,
                    worker: given.worker.0 as usize,
                    device: given.device.map(|device| device.0),
                    ready_at: self.ready.get(&given.task).copied().unwrap_or(self.now),
                    decision: self.decisions,
                    run: None,
                    submitted: 0,
                };
                self.decisions += 1;
                let worker = attempt.worker;
                self.attempts.insert(given.attempt.0, attempt);
                self.send(worker, Message::Assigned(given.attempt.0));
            }
            Action::Recall { worker, attempt } => self.send(worker.0 as usize, Message::Recall(attempt.0)),
            Action::Stop {
                worker,
                attempt,
                reason,
            } => {
                assert!(reason != StopReason::Preempted, "planners do not wait here");
                if worker != WorkerId::UNKNOWN {
                    self.send(worker.0 as usize, Message::Stop(attempt.0));
                }
            }
            Action::Answer { answer, .. } => assert!(answer.is_ok(), "a submission is refused: {answer:?}"),
            Action::JobAnswered { uid, answer } => {
                let place = self.plan.jobs.iter().position(|job| job.name == uid);
                if let (Ok(id), Some(place)) = (&answer, place) {
                    self.jobs.insert(*id, place);
                } else {
                    panic!("job {uid} is refused: {answer:?}");
                }
            }
            Action::JobChanged { job, phase } => self.job_changed(job, phase),
            Action::TaskChanged { job, task, change } => self.task_changed(job, task, &change),
            _ => {}
        }
    }

    fn send(&mut self, worker: usize, message: Message) {
        self.schedule(self.now + self.plan.one_way, Happening::ToWorker(worker, message));
    }

    fn job_changed(&mut self, job: JobId, phase: JobPhase) {
        let Some(place) = self.jobs.get(&job).copied() else {
            return;
        };
        match phase {
            JobPhase::Succeeded => self.outcome.succeeded_at[place] = Some(self.now),
            JobPhase::Failed { reason, message, .. } => {
                self.outcome.failed.push((place, format!("{reason}: {message}")));
            }
            JobPhase::Cancelled => self.outcome.failed.push((place, "cancelled".to_owned())),
            JobPhase::Queued(_) | JobPhase::Running | JobPhase::Suspended => return,
        }
        self.unfinished -= 1;
        self.outcome.makespan = self.now;
    }

    fn task_changed(&mut self, job: JobId, task: TaskId, change: &TaskChange) {
        match change {
            TaskChange::Created => {
                let place = self.jobs.get(&job).and_then(|place| {
                    let request = self.state.task(task)?.spec.request_id.clone();
                    self.by_name[*place].get(&request).copied()
                });
                self.tasks.insert(task, place);
            }
            TaskChange::Ready | TaskChange::Retrying { .. } => {
                self.ready.insert(task, self.now);
            }
            _ => {}
        }
    }

    fn message_arrives(&mut self, place: usize, message: &Message) {
        if !self.workers[place].alive {
            return;
        }
        match message {
            Message::Assigned(attempt) => self.assigned(place, *attempt),
            Message::Recall(attempt) => {
                let given_back = self.workers[place].devices.iter_mut().any(|device| {
                    let before = device.ahead.len();
                    device.ahead.retain(|other| other != attempt);
                    device.ahead.len() < before
                });
                self.tell(Event::RecallAnswered {
                    attempt: AttemptId(*attempt),
                    given_back,
                });
            }
            Message::Stop(attempt) => {
                self.leave(place, *attempt);
                self.end_run(*attempt, RunEnd::Stopped);
                self.tell(Event::AttemptStopped {
                    attempt: AttemptId(*attempt),
                });
                self.start_next(place);
            }
        }
    }

    fn assigned(&mut self, place: usize, attempt: u64) {
        let entry = &self.attempts[&attempt];
        match entry.device {
            Some(device) => {
                self.workers[place].devices[usize::from(device)]
                    .ahead
                    .push_back(attempt);
                self.start_next(place);
            }
            None => {
                self.workers[place].planners.push(attempt);
                self.start(attempt);
                self.release(attempt);
            }
        }
    }

    /// Every slot that is free takes the first of what was given ahead.
    fn start_next(&mut self, place: usize) {
        let devices = &self.plan.workers[place].devices;
        for (device, spec) in devices.iter().enumerate() {
            loop {
                let holder = &mut self.workers[place].devices[device];
                if holder.running.len() >= usize::from(spec.slots) {
                    break;
                }
                let Some(attempt) = holder.ahead.pop_front() else {
                    break;
                };
                holder.running.push(attempt);
                self.start(attempt);
                let entry = &self.attempts[&attempt];
                let duration = entry.task.map_or(0, |task| {
                    let task = &self.plan.jobs[entry.job].tasks[task];
                    let first = task.first_attempt.filter(|_| entry.number == 1);
                    first.unwrap_or(task.duration)
                });
                let duration = (duration as f64 / self.plan.workers[place].speed) as u64;
                self.schedule(self.now + duration, Happening::AttemptEnds(attempt));
            }
        }
    }

    fn start(&mut self, attempt: u64) {
        let Some(entry) = self.attempts.get_mut(&attempt) else {
            return;
        };
        entry.run = Some(self.outcome.runs.len());
        self.outcome.runs.push(Run {
            job: entry.job,
            task: entry.task,
            worker: entry.worker,
            device: entry.device,
            ready_at: entry.ready_at,
            decision: entry.decision,
            started_at: self.now,
            ended_at: self.now,
            end: RunEnd::Unfinished,
        });
        if entry.task.is_none() {
            self.outcome.began_at[entry.job].get_or_insert(self.now);
        }
        self.tell(Event::AttemptStarted {
            attempt: AttemptId(attempt),
        });
    }

    /// Takes an attempt off its worker. Answers whether it was there.
    fn leave(&mut self, place: usize, attempt: u64) -> bool {
        let worker = &mut self.workers[place];
        let mut found = false;
        worker
            .planners
            .retain(|other| *other != attempt || std::mem::replace(&mut found, true));
        for device in &mut worker.devices {
            if let Some(at) = device.running.iter().position(|other| *other == attempt) {
                device.running.remove(at);
                found = true;
            }
            device.ahead.retain(|other| *other != attempt);
        }
        found
    }

    fn end_run(&mut self, attempt: u64, end: RunEnd) -> Option<Attempt> {
        let entry = self.attempts.remove(&attempt)?;
        if let Some(run) = entry.run {
            let run = &mut self.outcome.runs[run];
            (run.ended_at, run.end) = (self.now, end);
        }
        Some(entry)
    }

    fn attempt_ends(&mut self, attempt: u64) {
        // A worker that died or was told to stop has forgotten it.
        let Some(entry) = self.attempts.get(&attempt) else {
            return;
        };
        let (job, task, number, worker) = (entry.job, entry.task, entry.number, entry.worker);
        self.leave(worker, attempt);
        let fails = task.is_some_and(|task| number <= self.plan.jobs[job].tasks[task].failures);
        let end = if fails { RunEnd::Failed } else { RunEnd::Succeeded };
        let started = self.end_run(attempt, end).and_then(|entry| entry.run);
        let started = started.map_or(self.now, |run| self.outcome.runs[run].started_at);
        let usage = Usage {
            device_time: Milliseconds((self.now - started) / 1_000),
            energy_millijoules: 0,
        };
        let attempt = AttemptId(attempt);
        self.tell(if fails {
            Event::AttemptFailed {
                attempt,
                class: FailureClass::Retryable,
                reason: "Planned".into(),
                message: "as planned".into(),
                usage,
            }
        } else {
            Event::AttemptSucceeded {
                attempt,
                outputs: Vec::new(),
                result: Arc::from([]),
                usage,
            }
        });
        self.start_next(worker);
    }

    /// A planner submits what it has, and ends when it has nothing more.
    fn release(&mut self, attempt: u64) {
        let Some(entry) = self.attempts.get_mut(&attempt) else {
            return;
        };
        let Some(run) = entry.run else { return };
        let since = self.now - self.outcome.runs[run].started_at;
        let job = &self.plan.jobs[entry.job];
        let from = entry.submitted;
        let due = job.tasks[from..]
            .iter()
            .take_while(|task| task.released_at <= since);
        let to = from + due.count();
        entry.submitted = to;
        let concluding = job.tasks.len() - 1;
        let tasks: Vec<TaskSpec> = (from..to)
            .map(|place| spec(job, place, place == concluding))
            .collect();
        let next = job.tasks.get(to).map(|task| task.released_at);
        if !tasks.is_empty() {
            self.tell(Event::TasksSubmitted {
                call: CallId(attempt),
                attempt: AttemptId(attempt),
                tasks,
            });
        }
        match next {
            Some(next) => self.schedule(self.now + next - since, Happening::Release(attempt)),
            None => self.attempt_ends(attempt),
        }
    }
}

fn spec(job: &JobPlan, place: usize, concludes_job: bool) -> TaskSpec {
    let task = &job.tasks[place];
    TaskSpec {
        request_id: task.name.clone(),
        task_type: task.task_type.clone(),
        requirements: task.requirements.clone(),
        depends_on: task
            .depends_on
            .iter()
            .map(|other| job.tasks[*other].name.clone())
            .collect(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        parameters: Arc::from([]),
        cache_key: None,
        estimated_device_time: task.estimate,
        completes: Vec::new(),
        concludes_job,
        marker: false,
    }
}
