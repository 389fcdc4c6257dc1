//! Loads for benchmarks of the scheduling core.
//!
//! [`virtual_time`] is a cluster in virtual time, for what schedules cost in makespan, idleness and fairness;
//! [`proofs`] and [`graph`] are what runs in it. [`Cluster`] is a loaded cluster for what a decision costs in processor
//! time: workers that start and complete what they are given, jobs whose planners keep the queue full.
//! A decision is a completion and the dispatch that it causes, with all features on (prefetch, leases and
//! heartbeats, artifacts, fairness). The report that the next attempt started is another event: it is measured
//! beside decisions (`decision-with-start`), which is what a task costs the core over its life after submission.

pub mod graph;
pub mod proofs;
pub mod report;
pub mod statistics;
pub mod virtual_time;
pub mod workloads;

use std::sync::Arc;

use prover_core::{
    Action, ArtifactName, AttemptId, Binding, CallId, DeviceClass, DeviceSpec, Event, JobId, JobPolicy,
    JobSpec, Lane, Limits, Milliseconds, Requirements, State, TaskId, TaskSpec, Timestamp, Usage, WorkerId,
    WorkerSpec,
};

use crate::virtual_time::backend;

/// The allocator of the operator's binary, for all benchmarks.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Processor time that this thread has used.
#[must_use]
pub fn processor_time() -> std::time::Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    std::time::Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

const GIB: u64 = 1 << 30;
/// Workers whose completions come before their starts: few, so that what a start touches is still in the cache, as
/// it is where the start follows at once.
const WAVE: u64 = 256;

/// What is loaded.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Workers, each with one device of one slot.
    pub workers: u64,
    /// Jobs.
    pub jobs: u64,
    /// Namespaces over which the jobs are spread.
    pub tenants: u64,
    /// Tasks that are queued when measuring begins.
    pub queued: u64,
    /// Distinct requirements of leaves.
    pub classes: u64,
    /// Whether tasks read and write artifacts and depend on other tasks.
    pub graph: bool,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            workers: 1_000,
            jobs: 1_000,
            tenants: 1,
            queued: 100_000,
            classes: 1,
            graph: false,
        }
    }
}

/// An attempt in the hands of a worker.
#[derive(Clone, Debug)]
struct Given {
    attempt: AttemptId,
    output: Option<ArtifactName>,
}

/// What a worker runs and what it was given ahead.
#[derive(Clone, Debug, Default)]
struct Slot {
    running: Option<Given>,
    ahead: Option<Given>,
}

/// A loaded cluster.
#[derive(Debug)]
pub struct Cluster {
    state: State,
    shape: Shape,
    now: Timestamp,
    decided: u64,
    actions: Vec<Action>,
    /// Per worker.
    given: Vec<Slot>,
    planners: Vec<Vec<AttemptId>>,
    next_worker: usize,
    /// Workers whose next attempt has not started.
    to_start: Vec<usize>,
    roots: Vec<(JobId, AttemptId)>,
    submitted: Vec<u64>,
    result: Arc<[u8]>,
    key: Arc<str>,
}

/// A worker with one large GPU connects.
fn worker_with_one_gpu(worker: u64) -> Event {
    let spec = WorkerSpec {
        name: format!("worker-{worker}").into(),
        group: "group".into(),
        host_memory_bytes: 256 * GIB,
        devices: vec![DeviceSpec {
            class: DeviceClass::Gpu,
            vram_bytes: 80 * GIB,
            slots: 1,
        }],
        backend: backend(),
    };
    Event::WorkerConnected {
        worker: WorkerId(worker),
        spec: Box::new(spec),
        held: Vec::new(),
    }
}

fn needs(lane: Lane, host_memory_bytes: u64) -> Requirements {
    Requirements {
        lane,
        device_class: DeviceClass::Gpu,
        host_memory_bytes,
        vram_bytes: GIB,
        backend: backend(),
    }
}

fn task(name: &str, requirements: Requirements) -> TaskSpec {
    TaskSpec {
        request_id: name.into(),
        task_type: "prove".into(),
        requirements,
        depends_on: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        parameters: Arc::from([]),
        cache_key: None,
        estimated_device_time: Some(Milliseconds(1_000)),
        completes: Vec::new(),
        concludes_job: false,
        marker: false,
    }
}

impl Cluster {
    /// Loads a cluster: every slot is taken, every slot has its next task, the rest is queued.
    pub fn new(shape: Shape) -> Cluster {
        let mut cluster = Cluster {
            state: State::new(Limits {
                permit_bytes_per_job: 1,
                ..Limits::default()
            }),
            shape,
            now: Timestamp(1_000),
            decided: 0,
            actions: Vec::with_capacity(1_024),
            given: vec![Slot::default(); shape.workers as usize],
            planners: vec![Vec::new(); shape.workers as usize],
            next_worker: 0,
            to_start: Vec::new(),
            roots: Vec::new(),
            submitted: vec![0; shape.jobs as usize],
            result: Arc::from([0u8; 8]),
            key: "jobs/1/attempts/1/out".into(),
        };
        for worker in 0..shape.workers {
            cluster.connect(worker);
        }
        for job in 0..shape.jobs {
            cluster.submit_job(job);
        }
        cluster.refill();
        // What stays in place is measured, not what a fresh heap is like.
        cluster.decide_and_start(shape.workers * 4);
        cluster.refill();
        cluster
    }

    fn connect(&mut self, worker: u64) {
        self.apply(worker_with_one_gpu(worker));
    }

    fn submit_job(&mut self, job: u64) {
        let mut root = task("plan", needs(Lane::Control, GIB / 16));
        root.task_type = "plan".into();
        let spec = JobSpec {
            uid: format!("job-{job}").into(),
            tenant: format!("tenant-{}", job % self.shape.tenants).into(),
            policy: JobPolicy {
                priority: 0,
                deadline: None,
                active_deadline: None,
                max_workers: None,
                suspended: false,
            },
            retry_limit: 10,
            parent_chain: vec![root.requirements.clone()],
            root,
            root_concludes: false,
            largest_leaf: needs(Lane::Device, GIB),
            sources: vec![("program".into(), self.binding())],
            retained: Vec::new(),
        };
        self.apply(Event::JobSubmitted(Box::new(spec)));
    }

    fn binding(&self) -> Binding {
        Binding {
            key: self.key.clone(),
            sha256: [1; 32],
            size_bytes: 1,
        }
    }

    /// Applies an event and carries out what comes of it. Answers how many actions came out.
    fn apply(&mut self, event: Event) -> usize {
        let mut actions = std::mem::take(&mut self.actions);
        self.state.apply(event, self.now, &mut actions);
        let came_out = actions.len();
        for action in actions.drain(..) {
            self.execute(&action);
        }
        self.actions = actions;
        came_out
    }

    fn execute(&mut self, action: &Action) {
        if let Action::Assign(assignment) = action {
            match assignment.device {
                None => {
                    self.roots.push((assignment.job, assignment.attempt));
                    self.planners[assignment.worker.0 as usize].push(assignment.attempt);
                }
                Some(_) => {
                    let output = self
                        .shape
                        .graph
                        .then(|| self.output_of(assignment.task))
                        .flatten();
                    let given = Some(Given {
                        attempt: assignment.attempt,
                        output,
                    });
                    let slot = &mut self.given[assignment.worker.0 as usize];
                    if slot.running.is_none() {
                        slot.running = given;
                    } else {
                        assert!(slot.ahead.is_none(), "one attempt is given ahead");
                        slot.ahead = given;
                    }
                }
            }
        }
    }

    fn output_of(&self, task: TaskId) -> Option<ArtifactName> {
        self.state
            .task(task)
            .and_then(|task| task.spec.outputs.first().cloned())
    }

    /// Submits tasks until the wanted number is queued.
    pub fn refill(&mut self) {
        let queued: u64 = self.state.queue_depth().iter().map(|depth| depth.waiting).sum();
        let missing = (self.shape.queued + self.shape.workers * 2).saturating_sub(queued);
        let share = missing / self.shape.jobs;
        for job in 0..self.roots.len() {
            let (id, attempt) = self.roots[job];
            assert!(self.state.job(id).is_some());
            let first = self.submitted[job];
            let mut tasks = Vec::with_capacity(share as usize);
            for number in first..first + share {
                let class = (number + job as u64) % self.shape.classes;
                let mut spec = task(
                    &format!("prove-{number}"),
                    needs(Lane::Device, GIB - class * 1_024),
                );
                if self.shape.graph {
                    spec.outputs = vec![format!("receipt-{number}").into()];
                    // Every second task follows the one before it and reads what that one made.
                    if number % 2 == 1 {
                        spec.depends_on = vec![format!("prove-{}", number - 1).into()];
                        spec.inputs = vec![format!("receipt-{}", number - 1).into()];
                    } else {
                        spec.inputs = vec!["program".into()];
                    }
                }
                tasks.push(spec);
            }
            self.submitted[job] = first + share;
            self.apply(Event::TasksSubmitted {
                call: CallId(1),
                attempt,
                tasks,
            });
        }
    }

    /// Makes so many decisions, worker by worker, each followed by the start of what runs next on the worker.
    /// Returns how many actions came out.
    pub fn decide_and_start(&mut self, decisions: u64) -> usize {
        let mut came_out = 0;
        for _ in 0..decisions {
            let Some((worker, actions)) = self.complete_next() else {
                continue;
            };
            came_out += actions + self.start_on(worker);
            self.heartbeats_if_due();
        }
        came_out
    }

    /// Makes at most so many decisions, at most one per worker, and leaves the starts to [`Cluster::start`].
    /// Returns how many it made.
    pub fn decide(&mut self, most: u64) -> u64 {
        let mut made = 0;
        for _ in 0..most.min(self.shape.workers).min(WAVE) {
            if let Some((worker, _)) = self.complete_next() {
                self.to_start.push(worker);
                made += 1;
                self.heartbeats_if_due();
            }
        }
        made
    }

    /// What was waiting behind the attempts that [`Cluster::decide`] completed starts.
    pub fn start(&mut self) {
        for worker in std::mem::take(&mut self.to_start) {
            self.start_on(worker);
        }
    }

    /// The attempt that runs on the next worker succeeds. Answers the worker and how many actions came out.
    fn complete_next(&mut self) -> Option<(usize, usize)> {
        let worker = self.next_worker;
        self.next_worker = (worker + 1) % self.given.len();
        let slot = &mut self.given[worker];
        let Given { attempt, output } = std::mem::replace(&mut slot.running, slot.ahead.take())?;
        self.decided += 1;
        // A task takes a second: a round over all workers moves the clock that much.
        self.now.0 = 1_000 + self.decided * 1_000 / self.shape.workers;
        let outputs = match output {
            Some(name) => vec![(name, self.binding())],
            None => Vec::new(),
        };
        let usage = Usage {
            device_time: Milliseconds(1_000),
            energy_millijoules: 100,
        };
        let result = self.result.clone();
        let actions = self.apply(Event::AttemptSucceeded {
            attempt,
            outputs,
            result,
            usage,
        });
        Some((worker, actions))
    }

    /// The next attempt starts where the one before it ran. Answers how many actions came out.
    fn start_on(&mut self, worker: usize) -> usize {
        match &self.given[worker].running {
            Some(next) => {
                let attempt = next.attempt;
                self.apply(Event::AttemptStarted { attempt })
            }
            None => 0,
        }
    }

    /// Every worker says that it is alive, once in five tasks: more often than in production.
    fn heartbeats_if_due(&mut self) {
        if self.decided.is_multiple_of(self.shape.workers * 5) {
            self.heartbeats();
        }
    }

    fn heartbeats(&mut self) {
        for worker in 0..self.given.len() {
            let mut attempts = self.planners[worker].clone();
            let slot = &self.given[worker];
            attempts.extend(slot.running.iter().chain(&slot.ahead).map(|given| given.attempt));
            self.apply(Event::WorkerHeartbeat {
                worker: WorkerId(worker as u64),
                attempts,
            });
        }
    }

    /// Tasks that wait or run, those whose dependencies are missing among them.
    #[must_use]
    pub fn unfinished(&self) -> u64 {
        self.submitted.iter().sum::<u64>() - self.decided
    }

    /// Panics unless the cluster is as busy as it should be.
    pub fn assert_loaded(&self) {
        for (worker, given) in self.given.iter().enumerate() {
            assert!(
                given.running.is_some() && given.ahead.is_some(),
                "worker {worker} has a running and a prefetched attempt"
            );
        }
        let queued: u64 = self.state.queue_depth().iter().map(|depth| depth.waiting).sum();
        assert!(queued > 0, "tasks are queued");
    }
}
