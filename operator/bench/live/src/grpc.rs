//! W1 over gRPC: one job after the other, each with its join tree, for workers that do nothing, on connections of
//! their own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use prover_backend::protocol as backend;
use prover_bench::graph::{Kind, Node};
use prover_bench::statistics::Percentiles;
use prover_wire::protocol as wire;

use crate::error::LiveError;
use crate::service::{Service, finish};
use crate::session::{Behaviour, Link, connect, dial, started, succeeded};
use crate::tracker::Tracker;

/// Tasks of one submission of the planner.
pub(crate) const TASKS_PER_CALL: usize = 128;
/// Submissions of the planner without an answer.
const CALLS_AT_ONCE: usize = 16;
/// Workers that connect at once.
const CONNECTING: usize = 64;

/// What is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Segments of a job as a power of two.
    pub(crate) exponent: u32,
    /// Workers.
    pub(crate) workers: usize,
    /// Streams that share a connection.
    pub(crate) together: usize,
    /// Messages in one batch.
    pub(crate) batch: usize,
    /// Whether the coordinator writes a log.
    pub(crate) logged: bool,
    /// At least so long.
    pub(crate) least: Duration,
    /// Tasks per second that the planner lets become ready; none: as many as it can.
    pub(crate) pace: Option<f64>,
}

/// What was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Throughput {
    /// Tasks that ended, those of the first job, which warms up, among them.
    pub(crate) all_tasks: u64,
    /// Tasks that ended, by seconds of the clock, begins and ends of jobs included.
    pub(crate) tasks_per_second: f64,
    /// From (ready and a slot free) to running, in milliseconds.
    pub(crate) delays: Percentiles,
    /// From ready to running, task by task, in milliseconds: where slots are always free this is the same.
    pub(crate) from_ready: Percentiles,
}

/// Workers that end what they are given at once.
struct Idlers {
    tracker: Tracker,
    pace: Option<f64>,
    refused: AtomicBool,
}

impl Idlers {
    async fn plan(self: Arc<Self>, link: Arc<Link>, attempt_id: u64) {
        link.send(started(attempt_id));
        let begun = Instant::now();
        let mut calls = VecDeque::new();
        for (number, first) in (0..self.tracker.nodes.len()).step_by(TASKS_PER_CALL).enumerate() {
            if let Some(pace) = self.pace {
                let due = Duration::from_secs_f64((number * TASKS_PER_CALL) as f64 / pace);
                tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
            }
            let last = (first + TASKS_PER_CALL).min(self.tracker.nodes.len());
            let tasks = (first..last).map(|place| submission(&self.tracker.nodes[place], place));
            let tasks = tasks.collect();
            self.tracker.submitted(first..last);
            calls.push_back(link.submit(attempt_id, tasks));
            let oldest = (calls.len() == CALLS_AT_ONCE)
                .then(|| calls.pop_front())
                .flatten();
            if let Some(oldest) = oldest
                && oldest.await.is_err()
            {
                return self.refused.store(true, Ordering::Relaxed);
            }
        }
        for call in calls {
            if call.await.is_err() {
                return self.refused.store(true, Ordering::Relaxed);
            }
        }
        link.send(succeeded(attempt_id, Vec::new(), Vec::new()));
    }

    fn run(&self, link: &Link, assign: &wire::Assign) {
        let place = assign
            .parameters
            .first_chunk()
            .map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let place = place as usize;
        self.tracker.started(place);
        link.say(started(assign.attempt_id));
        self.tracker.ended(place);
        link.say(succeeded(assign.attempt_id, vec![0; 8], Vec::new()));
    }
}

impl Behaviour for Idlers {
    fn assigned(self: Arc<Self>, link: Arc<Link>, assign: wire::Assign) {
        if assign.task_type == "plan" {
            tokio::spawn(self.plan(link, assign.attempt_id));
        } else {
            self.run(&link, &assign);
        }
    }
}

/// A task as a planner submits it.
pub(crate) fn submission(node: &Node, place: usize) -> backend::TaskSubmission {
    let task_type = match node.kind {
        Kind::Segment => "prove",
        Kind::Join => "join",
        Kind::Verify => "verify",
    };
    backend::TaskSubmission {
        request_id: format!("task-{place}"),
        task_type: task_type.to_owned(),
        resources: Some(backend::Resources {
            device_class: backend::DeviceClass::Cpu.into(),
            host_memory_bytes: 1 << 30,
            vram_bytes: 0,
        }),
        depends_on: node
            .depends_on
            .iter()
            .map(|other| format!("task-{other}"))
            .collect(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        parameters: (place as u32).to_le_bytes().to_vec(),
        cache_key: String::new(),
        estimated_device_seconds: 0.001,
        concludes_job: node.kind == Kind::Verify,
        marker: false,
    }
}

/// Runs jobs one after the other for at least so long.
pub(crate) async fn throughput(service: &Service, shape: Shape) -> Result<Throughput, LiveError> {
    let idlers = Arc::new(Idlers {
        tracker: Tracker::new(shape.exponent),
        pace: shape.pace,
        refused: AtomicBool::new(false),
    });
    let tracker = &idlers.tracker;
    let address = service.coordinator.address();
    let numbers: Vec<usize> = (0..shape.workers).collect();
    let mut connection = dial(address).await?;
    for batch in numbers.chunks(CONNECTING) {
        let mut connecting = Vec::new();
        for number in batch {
            if number % shape.together == 0 {
                connection = dial(address).await?;
            }
            let behaviour: Arc<dyn Behaviour> = idlers.clone();
            let class = wire::DeviceClass::Cpu;
            connecting.push(connect(
                connection.clone(),
                *number,
                shape.batch,
                class,
                behaviour,
            ));
        }
        futures::future::try_join_all(connecting).await?;
    }
    // The first job warms up.
    tracker.begin(shape.workers);
    finish(service.submit(&format!("warm-up-{}", shape.workers)).await?).await?;
    tracker.forget();
    let begun = Instant::now();
    let (mut tasks, mut jobs) = (0, 0);
    while begun.elapsed() < shape.least {
        tracker.begin(shape.workers);
        finish(service.submit(&format!("job-{}-{jobs}", shape.workers)).await?).await?;
        tracker.end();
        jobs += 1;
        tasks += tracker.nodes.len() as u64;
    }
    let elapsed = begun.elapsed();
    if idlers.refused.load(Ordering::Relaxed) {
        return Err(LiveError::Silence { what: "a submission" });
    }
    let (delays, from_ready) = tracker.percentiles();
    Ok(Throughput {
        all_tasks: tasks + tracker.nodes.len() as u64,
        tasks_per_second: tasks as f64 / elapsed.as_secs_f64(),
        delays,
        from_ready,
    })
}
