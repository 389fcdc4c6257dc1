//! Looks after ProofJobs that nobody else looks after: their finalizer, their time to live, and `Accepted=False`
//! while no ProverCluster takes them.
//!
//! Owns the finalizer of artifacts and the deletion of ended jobs. Does not own the artifacts nor any other status: the
//! coordinator does.

mod execute;
mod facts;
mod gitops;
mod object;
pub mod plan;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::caches::Queues;
use crate::drive::{Driver, Failure};
use crate::metrics::ControllerName;
use crate::run::tell_undecodable;
use execute::{Told, execute};
pub use gitops::{Tracker, tracker};
pub use object::{JobObject, JobSpec, JobStatus, trim};
use plan::{JobPlan, plan};

/// ProofJobs written at once: ten thousand may appear together.
const CONCURRENCY: u16 = 16;
/// No job is looked at more rarely than this while it waits for a moment, since clocks are corrected.
const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

/// Looks after all ProofJobs until `stop`.
pub(crate) async fn run(context: Arc<Context>, queues: Queues, stop: CancellationToken) {
    let driver = Driver {
        name: ControllerName::ProofJob,
        concurrency: CONCURRENCY,
        debounce: Duration::ZERO,
        metrics: context.metrics.clone(),
        clock: Arc::clone(&context.clock),
    };
    let told = Arc::new(Told::default());
    let look = {
        let context = Arc::clone(&context);
        move |job| look_at(job, Arc::clone(&context), Arc::clone(&told))
    };
    let looks = driver.run(
        context.caches.jobs.clone(),
        Arc::clone(&queues.jobs),
        stop.cancelled_owned(),
        look,
    );
    tokio::select! {
        () = looks => {}
        () = facts::wake_concerned(Arc::clone(&context), queues) => {}
    }
}

async fn look_at(
    job: Arc<DeserializeGuard<JobObject>>,
    context: Arc<Context>,
    told: Arc<Told>,
) -> Result<Action, Failure> {
    let job = match &job.0 {
        Ok(job) => job,
        Err(invalid) => {
            tell_undecodable(job.as_ref(), &invalid.error, &context).await;
            return Ok(Action::await_change());
        }
    };
    let now = now(&context);
    let cluster = facts::cluster_facts(job, &context.caches);
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let terminating = facts::is_terminating(namespace, context.caches.namespaces.as_ref());
    match plan(job, &cluster, terminating, now) {
        JobPlan::Idle { until: None, .. } => Ok(Action::await_change()),
        JobPlan::Idle {
            until: Some(until), ..
        } => {
            let wait = Duration::try_from(until.duration_since(now)).unwrap_or_default();
            Ok(Action::requeue(wait.min(LONGEST_WAIT)))
        }
        due => execute(&context, job, &due, &told)
            .await
            .map_err(|error| Failure {
                category: error.category(),
                retry: error.retry(),
                message: error.to_string(),
            }),
    }
}

fn now(context: &Context) -> Timestamp {
    let milliseconds = i64::try_from(context.clock.now_milliseconds()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::MAX)
}
