//! Writes statuses of ProofJobs by server-side apply, the latest one of each job, a bounded number at once.
//!
//! Owns what was written and what is wanted, and trying again. Does not own when ([`crate::write_plan`]). It is a part
//! of the task that owns the jobs, so nothing here is shared.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use prover_coordinator::{Milliseconds, Timestamp};
use prover_crds::{ProofJob, ProofJobStatus, names};
use serde::Serialize;

use crate::metrics::Metrics;
use crate::write_plan::{Budget, FIRST_WAIT_HOLD, Times, WriteDecision, WriteReason, plan_write};

/// Writes that are on their way at once.
const PARALLEL_WRITES: usize = 32;
/// Longest time that a write may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
/// Times that one write looks again at an object that changed meanwhile.
const CONFLICTS: usize = 4;
/// First wait after a failed write; it doubles.
const FIRST_RETRY: Milliseconds = Milliseconds(250);
/// Longest wait after a failed write.
const LONGEST_RETRY: Milliseconds = Milliseconds(30_000);

/// A ProofJob by name and uid, so that nothing is written to another one of the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct JobName {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) uid: Arc<str>,
}

/// How a write ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The API server has it; true if the written status was that of an ended job.
    Written { ended: bool },
    /// The object is gone, or another one has its name.
    Gone,
    /// It will be tried again.
    Failed,
}

/// The answer of the API server to one write.
#[derive(Debug)]
pub(crate) struct Finished {
    job: JobName,
    status: Arc<ProofJobStatus>,
    /// The version that the write made.
    result: Result<Option<String>, WriteError>,
}

/// Why a status could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The object is gone, or another one has its name.
    #[error("the object is gone")]
    Gone,
    /// The API server refused or did not answer.
    #[error("the API server did not take the status: {source}")]
    Api { source: Box<kube::Error> },
    /// The object changed again and again while it was written.
    #[error("the object changed {CONFLICTS} times while its status was written")]
    Conflict,
    /// It took too long.
    #[error("the API server did not answer within {WRITE_TIMEOUT:?}")]
    Timeout,
}

impl WriteError {
    /// Label of metrics.
    pub(crate) fn category(&self) -> &'static str {
        match self {
            WriteError::Gone => "gone",
            WriteError::Api { source } => match &**source {
                kube::Error::Api(status) if status.code == 403 => "forbidden",
                kube::Error::Api(status) if (400..500).contains(&status.code) => "refused",
                kube::Error::Api(_) => "server_error",
                _ => "unreachable",
            },
            WriteError::Conflict => "conflict",
            WriteError::Timeout => "timeout",
        }
    }
}

#[derive(Debug)]
struct Entry {
    written: Option<Arc<ProofJobStatus>>,
    wanted: Arc<ProofJobStatus>,
    times: Times,
    /// Version of the object that is known: a write holds for that one only, and so never reaches a later object of
    /// the same name.
    version: Option<String>,
    in_flight: bool,
    failures: u32,
    not_before: Timestamp,
    /// Under which it stands in the order of what is due.
    due: Option<(Timestamp, WriteReason)>,
}

/// The statuses of all jobs that this process looks after. One entry per job, so the jobs bound it.
pub(crate) struct StatusWriter {
    client: Client,
    metrics: Metrics,
    entries: BTreeMap<JobName, Entry>,
    /// What is to be written, by reason and time: ends first.
    due: BTreeSet<(WriteReason, Timestamp, JobName)>,
    in_flight: FuturesUnordered<BoxFuture<'static, Finished>>,
    budget: Budget,
    /// Until then the budget is spent.
    progress_from: Timestamp,
}

impl StatusWriter {
    pub(crate) fn new(client: Client, metrics: Metrics) -> Self {
        StatusWriter {
            client,
            metrics,
            entries: BTreeMap::new(),
            due: BTreeSet::new(),
            in_flight: FuturesUnordered::new(),
            budget: Budget::default(),
            progress_from: Timestamp(0),
        }
    }

    /// What the API server has, as its watch told.
    pub(crate) fn known(&mut self, job: &JobName, status: ProofJobStatus) {
        let status = Arc::new(status);
        self.entries.entry(job.clone()).or_insert_with(|| Entry {
            written: Some(Arc::clone(&status)),
            wanted: status,
            times: Times::default(),
            version: None,
            in_flight: false,
            failures: 0,
            not_before: Timestamp(0),
            due: None,
        });
    }

    /// The version of the object that its watch told.
    pub(crate) fn seen(&mut self, job: &JobName, version: Option<String>) {
        if let Some(entry) = self.entries.get_mut(job)
            && !entry.in_flight
        {
            entry.version = version;
        }
    }

    /// The latest status that is wanted, or that of the API server.
    pub(crate) fn latest(&self, job: &JobName) -> Option<Arc<ProofJobStatus>> {
        self.entries.get(job).map(|entry| Arc::clone(&entry.wanted))
    }

    /// When the last status was written by this process.
    pub(crate) fn last_write(&self, job: &JobName) -> Option<Timestamp> {
        self.entries.get(job).and_then(|entry| entry.times.last_write)
    }

    /// Whether what is wanted is what the API server has.
    pub(crate) fn is_settled(&self, job: &JobName) -> bool {
        self.entries
            .get(job)
            .is_none_or(|entry| !entry.in_flight && entry.written.as_ref() == Some(&entry.wanted))
    }

    /// Wants a status instead of all earlier ones of the job.
    pub(crate) fn want(&mut self, job: &JobName, status: ProofJobStatus, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(job) else {
            return;
        };
        entry.wanted = Arc::new(status);
        entry.times.first_wanted.get_or_insert(now);
        self.plan(job, now);
    }

    /// Nothing is written to the job any more.
    pub(crate) fn forget(&mut self, job: &JobName) {
        if let Some(entry) = self.entries.remove(job)
            && let Some((at, reason)) = entry.due
        {
            self.due.remove(&(reason, at, job.clone()));
        }
    }

    fn plan(&mut self, job: &JobName, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(job) else {
            return;
        };
        if let Some((at, reason)) = entry.due.take() {
            self.due.remove(&(reason, at, job.clone()));
        }
        // Its end plans again.
        if entry.in_flight {
            return;
        }
        let (at, reason) = match plan_write(entry.written.as_deref(), &entry.wanted, entry.times, now) {
            WriteDecision::Nothing => return,
            WriteDecision::Now(reason) => (now, reason),
            WriteDecision::At(at, reason) => (at, reason),
        };
        let at = at.max(entry.not_before);
        entry.due = Some((at, reason));
        self.due.insert((reason, at, job.clone()));
    }

    /// When something is due next.
    pub(crate) fn wake_at(&self) -> Option<Timestamp> {
        if self.in_flight.len() >= PARALLEL_WRITES {
            return None;
        }
        let first = |reason| {
            let from = (reason, Timestamp(0), JobName::least());
            let first = self.due.range(from..).next()?;
            let from = if reason == WriteReason::Progress {
                self.progress_from
            } else {
                first.1
            };
            (first.0 == reason).then_some(first.1.max(from))
        };
        [WriteReason::Ended, WriteReason::Changed, WriteReason::Progress]
            .into_iter()
            .filter_map(first)
            .min()
    }

    /// Sends what is due.
    pub(crate) fn start_due(&mut self, now: Timestamp) {
        for reason in [WriteReason::Ended, WriteReason::Changed, WriteReason::Progress] {
            while self.in_flight.len() < PARALLEL_WRITES {
                let from = (reason, Timestamp(0), JobName::least());
                let next = self.due.range(from..).next();
                let Some((found, at, job)) = next.cloned() else {
                    break;
                };
                let spent = reason == WriteReason::Progress && self.progress_from > now;
                if found != reason || at > now || spent {
                    break;
                }
                if reason == WriteReason::Progress
                    && let Err(later) = self.budget.take(now)
                {
                    self.progress_from = later;
                    break;
                }
                self.due.remove(&(reason, at, job.clone()));
                self.send(job, reason, now);
            }
        }
    }

    fn send(&mut self, job: JobName, reason: WriteReason, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(&job) else {
            return;
        };
        entry.due = None;
        entry.in_flight = true;
        entry.times.last_write = Some(now);
        self.metrics
            .status_writes
            .with_label_values(&[reason.as_str()])
            .inc();
        let (client, status) = (self.client.clone(), Arc::clone(&entry.wanted));
        let version = entry.version.clone();
        self.in_flight.push(Box::pin(async move {
            let result =
                match tokio::time::timeout(WRITE_TIMEOUT, write(client, &job, &status, version)).await {
                    Ok(result) => result,
                    Err(_) => Err(WriteError::Timeout),
                };
            Finished { job, status, result }
        }));
    }

    /// The next write that ends; never while none is on its way.
    pub(crate) async fn finished(&mut self) -> Finished {
        match self.in_flight.next().await {
            Some(finished) => finished,
            None => std::future::pending().await,
        }
    }

    /// Takes note of the end of a write.
    pub(crate) fn settle(&mut self, finished: Finished, now: Timestamp) -> (JobName, Outcome) {
        let Finished { job, status, result } = finished;
        let Some(entry) = self.entries.get_mut(&job) else {
            return (job, Outcome::Gone);
        };
        entry.in_flight = false;
        let outcome = match result {
            Ok(version) => {
                entry.version = version;
                let ended = status.phase.is_some_and(|phase| phase.is_terminal());
                entry.written = Some(status);
                entry.failures = 0;
                Outcome::Written { ended }
            }
            Err(error) => {
                self.metrics
                    .status_write_errors
                    .with_label_values(&[error.category()])
                    .inc();
                if matches!(error, WriteError::Gone) {
                    self.forget(&job);
                    return (job, Outcome::Gone);
                }
                entry.failures = entry.failures.saturating_add(1);
                let wait = retry_wait(entry.failures);
                tracing::warn!(
                    namespace = %job.namespace, name = %job.name, failures = entry.failures, %error,
                    "a status could not be written and is tried again"
                );
                entry.not_before = now + wait;
                // What the API server has is not known: it may have taken what it did not answer.
                entry.written = None;
                Outcome::Failed
            }
        };
        self.plan(&job, now);
        (job, outcome)
    }

    /// Sends what is due, and first statuses that are held back.
    pub(crate) fn start_all(&mut self, now: Timestamp) {
        self.start_due(now + FIRST_WAIT_HOLD);
    }

    /// Writes that are on their way or due at once.
    pub(crate) fn unsettled(&self) -> usize {
        self.in_flight.len()
            + self
                .due
                .iter()
                .filter(|(reason, ..)| *reason != WriteReason::Progress)
                .count()
    }
}

impl JobName {
    fn least() -> JobName {
        let empty: Arc<str> = Arc::from("");
        JobName {
            namespace: Arc::clone(&empty),
            name: Arc::clone(&empty),
            uid: empty,
        }
    }
}

fn retry_wait(failures: u32) -> Milliseconds {
    let doubled = FIRST_RETRY
        .0
        .saturating_mul(1 << failures.saturating_sub(1).min(16));
    Milliseconds(doubled.min(LONGEST_RETRY.0))
}

/// What server-side apply is given: the whole status, since what is left out is taken back.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusPatch<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: PatchMetadata<'a>,
    status: &'a ProofJobStatus,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PatchMetadata<'a> {
    name: &'a str,
    namespace: &'a str,
    uid: &'a str,
    /// The API server refuses the patch where the object has another one. It does not look at the uid of a status.
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_version: Option<&'a str>,
}

/// Writes a status to this object and no other. An object that changed meanwhile is looked at again.
async fn write(
    client: Client,
    job: &JobName,
    status: &ProofJobStatus,
    mut version: Option<String>,
) -> Result<Option<String>, WriteError> {
    // The answer is the whole object, of which little is needed.
    let api: Api<PartialObjectMeta<ProofJob>> = Api::namespaced(client, &job.namespace);
    let params = PatchParams::apply(names::COORDINATOR_MANAGER).force();
    let failed = |error: kube::Error| match error {
        kube::Error::Api(status) if status.code == 404 => WriteError::Gone,
        error => WriteError::Api {
            source: Box::new(error),
        },
    };
    for _ in 0..CONFLICTS {
        if version.is_none() {
            let present = api.get_metadata(&job.name).await.map_err(failed)?;
            if present.metadata.uid.as_deref() != Some(&*job.uid) {
                return Err(WriteError::Gone);
            }
            version = present.metadata.resource_version;
        }
        let patch = StatusPatch {
            api_version: "proving.rs/v1alpha1",
            kind: "ProofJob",
            metadata: PatchMetadata {
                name: &job.name,
                namespace: &job.namespace,
                uid: &job.uid,
                resource_version: version.as_deref(),
            },
            status,
        };
        match api.patch_status(&job.name, &params, &Patch::Apply(&patch)).await {
            Ok(written) => return Ok(written.metadata.resource_version),
            Err(kube::Error::Api(status)) if status.code == 409 => version = None,
            Err(error) => return Err(failed(error)),
        }
    }
    Err(WriteError::Conflict)
}

#[cfg(test)]
mod tests;
