//! W1 in process: one job after the other, each with its join tree, through the core alone, with workers that do
//! nothing and answer at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prover_core::{
    Action, AttemptId, CallId, DeviceClass, Event, JobId, JobPhase, JobSpec, Lane, Limits, Milliseconds,
    Requirements, State, TaskChange, TaskSpec, Timestamp, Usage, WorkerId,
};

use crate::graph::{Kind, join_tree};
use crate::processor_time;
use crate::statistics::{Percentiles, start_delays};
use crate::virtual_time::{gpu_task, usual_policy};
use crate::worker_with_one_gpu;

/// Delays that are kept.
const SAMPLES: usize = 2_000_000;
/// Reports between two readings of the clock of the processor.
const BATCH: usize = 256;

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Decisions {
    /// Tasks that ended.
    pub tasks: u64,
    /// Jobs that ended.
    pub jobs: u64,
    /// Tasks by seconds of the clock, submission and forgetting of the jobs included.
    pub tasks_per_second: f64,
    /// Processor time of a task over its life in nanoseconds: submission, dispatch, start, completion, forgetting.
    pub nanoseconds_per_task: f64,
    /// Processor time of a start, a completion and the dispatch that it causes, in nanoseconds.
    pub nanoseconds_per_decision: f64,
    /// Decisions that one core makes in a second of processor time.
    pub decisions_per_second: f64,
    /// From (ready and a slot free) to running, in microseconds; nothing where it was not asked for.
    pub delays: Percentiles,
}

/// Attempts that wait for their worker's answer.
enum Report {
    Planned(AttemptId),
    Ran(WorkerId, AttemptId),
    Recalled(AttemptId, bool),
}

struct Load {
    state: State,
    begun: Instant,
    /// Read once per batch of reports: what reading the clock costs is not a cost of the core.
    now: Timestamp,
    tasks: Vec<TaskSpec>,
    reports: VecDeque<Report>,
    /// Per worker: what was given ahead.
    ahead: Vec<Option<AttemptId>>,
    busy: Vec<bool>,
    actions: Vec<Action>,
    job: Option<JobId>,
    over: bool,
    result: Arc<[u8]>,
    in_decisions: Duration,
    /// Of the current batch of reports, what its planner took.
    in_plan: Duration,
    times: Option<Times>,
}

/// When things happened, in nanoseconds, where delays are wanted.
#[derive(Default)]
struct Times {
    ready: Vec<u64>,
    free: Vec<u64>,
    started: Vec<u64>,
}

/// The tasks of a proof of so many segments, which pass nothing but their results on.
#[must_use]
pub fn task_specs(segments: usize) -> Vec<TaskSpec> {
    let nodes = join_tree(segments);
    let names: Vec<Arc<str>> = (0..nodes.len())
        .map(|place| format!("task-{place}").into())
        .collect();
    let specs = nodes.iter().enumerate().map(|(place, node)| TaskSpec {
        request_id: names[place].clone(),
        task_type: match node.kind {
            Kind::Segment => "prove".into(),
            Kind::Join => "join".into(),
            Kind::Verify => "verify".into(),
        },
        requirements: gpu_task(),
        depends_on: node
            .depends_on
            .iter()
            .map(|other| names[*other].clone())
            .collect(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        parameters: Arc::from([]),
        cache_key: None,
        estimated_device_time: Some(Milliseconds(1)),
        completes: Vec::new(),
        concludes_job: node.kind == Kind::Verify,
        marker: false,
    });
    specs.collect()
}

/// Runs jobs of 2^`exponent` segments one after the other for at least so long. With `delays`, the clock is read at
/// every start and end.
///
/// # Panics
/// A job did not succeed.
#[must_use]
pub fn decisions(limits: Limits, exponent: u32, workers: u64, least: Duration, delays: bool) -> Decisions {
    let mut load = Load {
        state: State::new(limits),
        begun: Instant::now(),
        now: Timestamp(1_000_000),
        tasks: task_specs(1 << exponent),
        reports: VecDeque::new(),
        ahead: vec![None; workers as usize],
        busy: vec![false; workers as usize],
        actions: Vec::new(),
        job: None,
        over: true,
        result: Arc::from([0; 8]),
        in_decisions: Duration::ZERO,
        in_plan: Duration::ZERO,
        times: None,
    };
    for worker in 0..workers {
        load.connect(worker);
    }
    // The first job warms up.
    load.run_job(0);
    load.in_decisions = Duration::ZERO;
    load.times = delays.then(Times::default);
    load.begun = Instant::now();
    let processor = processor_time();
    let mut jobs = 0;
    let mut spans = Vec::new();
    while load.begun.elapsed() < least {
        jobs += 1;
        let now = load.nanoseconds();
        if let Some(times) = &mut load.times {
            // All slots are free between jobs, and nothing is ready.
            times.free = vec![now; workers as usize];
        }
        load.run_job(jobs);
        if let Some(times) = &mut load.times {
            if spans.len() < SAMPLES {
                spans.extend(start_delays(
                    &mut times.ready,
                    &mut times.free,
                    &mut times.started,
                ));
            }
            *times = Times::default();
        }
    }
    let (elapsed, used) = (load.begun.elapsed(), processor_time() - processor);
    let tasks = jobs * load.tasks.len() as u64;
    let per_decision = load.in_decisions.as_nanos() as f64 / tasks as f64;
    Decisions {
        tasks,
        jobs,
        tasks_per_second: tasks as f64 / elapsed.as_secs_f64(),
        nanoseconds_per_task: used.as_nanos() as f64 / tasks as f64,
        nanoseconds_per_decision: per_decision,
        decisions_per_second: 1e9 / per_decision,
        delays: Percentiles::of(spans).scaled(1e-3),
    }
}

impl Load {
    fn nanoseconds(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn connect(&mut self, worker: u64) {
        self.apply(worker_with_one_gpu(worker));
    }

    fn run_job(&mut self, number: u64) {
        let planner = Requirements {
            lane: Lane::Control,
            device_class: DeviceClass::Cpu,
            vram_bytes: 0,
            ..gpu_task()
        };
        let mut root = self.tasks[0].clone();
        root.request_id = "plan".into();
        root.task_type = "plan".into();
        root.requirements = planner.clone();
        self.over = false;
        self.apply(Event::JobSubmitted(Box::new(JobSpec {
            uid: format!("job-{number}").into(),
            tenant: "tenant".into(),
            policy: usual_policy(),
            retry_limit: 0,
            parent_chain: vec![planner],
            root,
            root_concludes: false,
            largest_leaf: gpu_task(),
            sources: Vec::new(),
            retained: Vec::new(),
        })));
        while !self.over {
            self.in_plan = Duration::ZERO;
            self.now = Timestamp(1_000_000 + self.nanoseconds() / 1_000_000);
            let before = processor_time();
            for _ in 0..BATCH {
                match self.reports.pop_front() {
                    Some(Report::Ran(worker, attempt)) => self.ran(worker, attempt),
                    Some(Report::Recalled(attempt, given_back)) => {
                        self.apply(Event::RecallAnswered { attempt, given_back });
                    }
                    Some(Report::Planned(attempt)) => {
                        self.plan(attempt);
                        break;
                    }
                    None => break,
                }
            }
            self.in_decisions += processor_time() - before - self.in_plan;
            assert!(
                self.over || !self.reports.is_empty(),
                "nothing runs and the job is not over"
            );
        }
        let Some(job) = self.job.take() else {
            panic!("a job that is over has an identity");
        };
        self.apply(Event::JobForgotten { job });
    }

    /// The planner submits everything and ends. What that costs is no decision.
    fn plan(&mut self, attempt: AttemptId) {
        let before = processor_time();
        self.apply(Event::AttemptStarted { attempt });
        let tasks = self.tasks.clone();
        self.apply(Event::TasksSubmitted {
            call: CallId(1),
            attempt,
            tasks,
        });
        self.succeeded(attempt);
        self.in_plan = processor_time() - before;
    }

    fn succeeded(&mut self, attempt: AttemptId) {
        let (outputs, result, usage) = (Vec::new(), self.result.clone(), Usage::default());
        self.apply(Event::AttemptSucceeded {
            attempt,
            outputs,
            result,
            usage,
        });
    }

    /// What was given to a worker starts and ends; what was given ahead is next.
    fn ran(&mut self, worker: WorkerId, attempt: AttemptId) {
        let now = self.times.is_some().then(|| self.nanoseconds());
        if let (Some(times), Some(now)) = (&mut self.times, now) {
            times.started.push(now);
            times.free.push(now);
        }
        self.apply(Event::AttemptStarted { attempt });
        let place = worker.0 as usize;
        match self.ahead[place].take() {
            Some(next) => self.reports.push_back(Report::Ran(worker, next)),
            None => self.busy[place] = false,
        }
        self.succeeded(attempt);
    }

    fn apply(&mut self, event: Event) {
        let mut actions = std::mem::take(&mut self.actions);
        self.state.apply(event, self.now, &mut actions);
        for action in actions.drain(..) {
            self.execute(action);
        }
        self.actions = actions;
    }

    fn execute(&mut self, action: Action) {
        match action {
            Action::Assign(given) => {
                let place = given.worker.0 as usize;
                if given.device.is_none() {
                    self.reports.push_back(Report::Planned(given.attempt));
                } else if self.busy[place] {
                    assert!(self.ahead[place].is_none(), "one attempt is given ahead");
                    self.ahead[place] = Some(given.attempt);
                } else {
                    self.busy[place] = true;
                    self.reports.push_back(Report::Ran(given.worker, given.attempt));
                }
            }
            Action::Recall { worker, attempt } => {
                let ahead = &mut self.ahead[worker.0 as usize];
                let given_back = *ahead == Some(attempt);
                if given_back {
                    *ahead = None;
                }
                self.reports.push_back(Report::Recalled(attempt, given_back));
            }
            Action::TaskChanged {
                change: TaskChange::Ready,
                ..
            } if self.times.is_some() => {
                let now = self.nanoseconds();
                if let Some(times) = &mut self.times {
                    times.ready.push(now);
                }
            }
            Action::JobAnswered { answer, .. } => match answer {
                Ok(job) => self.job = Some(job),
                Err(refusal) => panic!("a job is refused: {refusal}"),
            },
            Action::JobChanged { phase, .. } => match phase {
                JobPhase::Succeeded => self.over = true,
                JobPhase::Failed { message, .. } => panic!("a job failed: {message}"),
                _ => {}
            },
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_of_every_job_ends() {
        let found = decisions(Limits::default(), 6, 16, Duration::from_millis(20), true);
        assert!(found.jobs > 0);
        assert_eq!(found.tasks, found.jobs * 128);
        assert!(found.delays.count as u64 >= 128, "{found:?}");
    }
}
