//! How long a coordinator takes until it leads with the whole state of another one, which was killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prover_bench::graph::{Node, join_tree};
use prover_coordinator::Role;
use prover_wire::limits::MESSAGES_PER_BATCH;
use prover_wire::protocol as wire;
use tokio::sync::watch;

use crate::error::LiveError;
use crate::grpc::{TASKS_PER_CALL, submission};
use crate::service::Service;
use crate::session::{Behaviour, Link, connect, dial, started, succeeded};

/// Workers, each with one slot.
const WORKERS: usize = 64;
/// Jobs that are submitted at once.
const SUBMITTING: usize = 64;
/// Longest wait for the jobs to be planned, and for a coordinator that follows to have read everything.
const PATIENCE: Duration = Duration::from_secs(300);

/// What the log holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Jobs, none of which has ended.
    pub(crate) jobs: usize,
    /// Segments of each.
    pub(crate) segments: usize,
}

/// What was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TakenOver {
    /// Tasks in the state, planners among them.
    pub(crate) tasks: usize,
    /// Of these, those that have ended.
    pub(crate) ended: usize,
    /// By a coordinator that had followed the log.
    pub(crate) warm: Duration,
    /// By one that did not run before, from its start.
    pub(crate) cold: Duration,
    /// Until all its jobs are handed to it again, as the watch of ProofJobs does.
    pub(crate) handed_in: Duration,
}

/// Workers that end half of the tasks that they are given at once and never end the others.
struct Holders {
    nodes: Vec<Node>,
    ended: AtomicUsize,
    most: usize,
    planned: watch::Sender<usize>,
}

impl Holders {
    async fn plan(self: Arc<Self>, link: Arc<Link>, attempt_id: u64) {
        link.send(started(attempt_id));
        let places: Vec<usize> = (0..self.nodes.len()).collect();
        for chunk in places.chunks(TASKS_PER_CALL) {
            let tasks = chunk.iter().map(|place| submission(&self.nodes[*place], *place));
            if link.submit(attempt_id, tasks.collect()).await.is_err() {
                // Whoever waits for all plans says that one is missing.
                return;
            }
        }
        link.send(succeeded(attempt_id, Vec::new(), Vec::new()));
        self.planned.send_modify(|planned| *planned += 1);
    }
}

impl Behaviour for Holders {
    fn assigned(self: Arc<Self>, link: Arc<Link>, assign: wire::Assign) {
        if assign.task_type == "plan" {
            tokio::spawn(self.plan(link, assign.attempt_id));
            return;
        }
        link.send(started(assign.attempt_id));
        let end = self
            .ended
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |ended| {
                (ended < self.most).then_some(ended + 1)
            });
        if end.is_ok() {
            link.send(succeeded(assign.attempt_id, vec![0; 8], Vec::new()));
        }
    }
}

fn job_name(number: usize) -> String {
    format!("job-{number}")
}

/// Submits all jobs, and answers how many tasks they have.
async fn submit_all(service: &Service, jobs: usize) -> Result<usize, LiveError> {
    let numbers: Vec<usize> = (0..jobs).collect();
    let mut tasks = 0;
    for chunk in numbers.chunks(SUBMITTING) {
        let submitted = chunk.iter().map(|number| async move {
            let name = job_name(*number);
            service.submit(&name).await
        });
        let handles = futures::future::try_join_all(submitted).await?;
        tasks += handles
            .iter()
            .map(|handle| handle.view().tasks.len())
            .sum::<usize>();
    }
    Ok(tasks)
}

/// Fills the log below `store`, kills its writer, and lets two others take over, one after the other.
pub(crate) async fn taken_over(store: &str, shape: Shape) -> Result<TakenOver, LiveError> {
    let leader = Service::start(Some(store), None, true).await?;
    let (planned, mut all_planned) = watch::channel(0);
    let holders = Arc::new(Holders {
        nodes: join_tree(shape.segments),
        ended: AtomicUsize::new(0),
        most: shape.jobs * shape.segments,
        planned,
    });
    let per_job = holders.nodes.len() + 1;
    for number in 0..WORKERS {
        let behaviour: Arc<dyn Behaviour> = holders.clone();
        let connection = dial(leader.coordinator.address()).await?;
        connect(
            connection,
            number,
            MESSAGES_PER_BATCH,
            wire::DeviceClass::Cpu,
            behaviour,
        )
        .await?;
    }
    submit_all(&leader, shape.jobs).await?;
    let planned = all_planned.wait_for(|planned| *planned == shape.jobs);
    if !matches!(tokio::time::timeout(PATIENCE, planned).await, Ok(Ok(_))) {
        return Err(LiveError::Silence {
            what: "the last plan",
        });
    }

    let follower = Service::follow(Some(store), None, true).await?;
    let mut role = follower.coordinator.role();
    let caught_up = role.wait_for(|role| matches!(role, Role::Following { caught_up: true }));
    if !matches!(tokio::time::timeout(PATIENCE, caught_up).await, Ok(Ok(_))) {
        return Err(LiveError::Silence {
            what: "a follower that has read everything",
        });
    }
    leader.coordinator.shutdown().await;
    let ended = holders.ended.load(Ordering::Relaxed);
    let begun = Instant::now();
    follower.coordinator.take_over().await?;
    let warm = begun.elapsed();
    let tasks = submit_all(&follower, shape.jobs).await?;
    expect_all(tasks, shape.jobs * per_job)?;
    follower.coordinator.shutdown().await;

    let begun = Instant::now();
    let fresh = Service::follow(Some(store), None, true).await?;
    fresh.coordinator.take_over().await?;
    let cold = begun.elapsed();
    let tasks = submit_all(&fresh, shape.jobs).await?;
    let handed_in = begun.elapsed() - cold;
    expect_all(tasks, shape.jobs * per_job)?;
    fresh.coordinator.shutdown().await;
    Ok(TakenOver {
        tasks,
        ended,
        warm,
        cold,
        handed_in,
    })
}

fn expect_all(found: usize, wanted: usize) -> Result<(), LiveError> {
    if found == wanted {
        return Ok(());
    }
    Err(LiveError::Lost { found, wanted })
}
