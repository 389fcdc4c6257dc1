//! Giving accepted jobs to the coordinator, a bounded number at once, the most urgent first.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::api::Api;
use prover_coordinator::{
    AdmissionError, ClusterSources, CoordinatorHandle, JobHandle, JobPolicy, Milliseconds, Retry,
    SourceAccess, SourceError,
};
use prover_crds::{JobDefaults, Phase, ProofJob, reasons};

use super::entry::{Stage, Views, apply_defaults, policy_of};
use super::{Jobs, PARALLEL_ADMISSIONS};
use crate::events;
use crate::status::{Ending, Situation};
use crate::writer::JobName;

/// Longest time that fetching one object may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(15);
/// First wait after a failed admission; it doubles.
const FIRST_RETRY: Milliseconds = Milliseconds(1_000);
/// Longest wait after a failed admission.
const LONGEST_RETRY: Milliseconds = Milliseconds(60_000);

/// How an admission ended.
#[derive(Debug)]
pub(super) struct Admitted {
    name: JobName,
    /// What the job was submitted with.
    policy: Option<JobPolicy>,
    result: Result<JobHandle, AdmitError>,
}

/// Why an admission failed.
#[derive(Debug, thiserror::Error)]
enum AdmitError {
    /// The object is gone.
    #[error("the object is gone")]
    Gone,
    /// The API server did not answer.
    #[error("the ProofJob can't be read from the API server: {reason}")]
    Unreadable { reason: String },
    /// The coordinator did not take it.
    #[error(transparent)]
    Refused(#[from] AdmissionError),
}

impl AdmitError {
    fn category(&self) -> &'static str {
        match self {
            AdmitError::Gone => "gone",
            AdmitError::Unreadable { .. } => "unreadable",
            AdmitError::Refused(error) => error.category(),
        }
    }
}

/// What is done about a failed admission.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Consequence {
    /// Nothing: the object or the coordinator is gone.
    Nothing,
    /// Try again, and tell this meanwhile.
    Retry { reason: &'static str },
    /// The cluster does not take it now; ask again later.
    Refuse { reason: &'static str },
    /// The job has failed.
    Fail { reason: String, accepted: bool },
}

fn consequence(error: &AdmitError) -> Consequence {
    let retry = |reason| Consequence::Retry { reason };
    let error = match error {
        AdmitError::Gone => return Consequence::Nothing,
        AdmitError::Unreadable { .. } => return retry(reasons::FETCHING_SOURCES),
        AdmitError::Refused(error) => error,
    };
    let fail = |reason: &str, accepted| Consequence::Fail {
        reason: reason.to_owned(),
        accepted,
    };
    match error {
        AdmissionError::Stopped | AdmissionError::NotLeader => Consequence::Nothing,
        AdmissionError::TooManyJobs { .. } => Consequence::Refuse {
            reason: reasons::TOO_MANY_JOBS,
        },
        AdmissionError::Source(SourceError::Upload { .. }) if error.retry() == Retry::Backoff => {
            retry(reasons::STORE_UNREACHABLE)
        }
        AdmissionError::LogUnavailable => retry(reasons::STORE_UNREACHABLE),
        _ if error.retry() == Retry::Backoff => retry(reasons::FETCHING_SOURCES),
        AdmissionError::InvalidSpec { .. } | AdmissionError::NotSupported { .. } => {
            fail(reasons::INVALID_SPEC, false)
        }
        AdmissionError::KindNotOffered { .. } => fail(reasons::PROOF_NOT_OFFERED, false),
        AdmissionError::Withheld { .. } if !prover_crds::conditions::is_reason(error.reason()) => {
            fail(reasons::PROOF_NOT_OFFERED, false)
        }
        AdmissionError::Withheld { .. } => fail(error.reason(), false),
        AdmissionError::Refused { .. } => fail(reasons::OTHER_FAILURE, true),
        AdmissionError::Source(_) | AdmissionError::Program(_) => fail(error.reason(), true),
    }
}

impl Jobs {
    /// Begins as many admissions as may run at once.
    pub(super) fn start_admissions(&mut self) {
        while self.admissions.len() < PARALLEL_ADMISSIONS {
            let Some((.., name)) = self.backlog.first().cloned() else {
                return;
            };
            self.admit_now(&name, None);
        }
    }

    /// Begins the admission of a job of the backlog. Without its object, that is fetched first.
    pub(super) fn admit_now(&mut self, name: &JobName, object: Option<Box<ProofJob>>) {
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        let Some(turn) = job.turn.take() else { return };
        self.backlog.remove(&turn);
        job.stage = Stage::Admitting;
        self.try_slot(name);
        let Some(job) = self.jobs.get(name) else { return };
        let cluster = self.rules.cluster.as_ref();
        let admission = Admission {
            client: self.parts.client.clone(),
            coordinator: Arc::clone(&self.parts.coordinator),
            sources: Arc::clone(&self.parts.sources),
            defaults: cluster
                .map(|cluster| cluster.defaults.clone())
                .unwrap_or_default(),
            name: name.clone(),
            held: !job.slot,
        };
        self.admissions.push(Box::pin(admission.run(object)));
    }

    pub(super) async fn admitted(&mut self, admitted: Admitted) {
        let Admitted { name, policy, result } = admitted;
        match result {
            Ok(handle) => self.taken(&name, handle, policy).await,
            Err(error) => self.admission_failed(&name, &error),
        }
    }

    async fn taken(&mut self, name: &JobName, handle: JobHandle, submitted: Option<JobPolicy>) {
        self.tell_tenant(&name.namespace).await;
        self.clamp_priority(name);
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        // What the log has of it goes on where it was.
        if std::mem::take(&mut job.restarted) && handle.view().started_at.is_none() {
            self.parts.teller.tell(name, events::restarted());
        }
        let mut views = handle.watch();
        let (queue, told) = (self.views.0.clone(), name.clone());
        let following = tokio::spawn(async move {
            while views.changed().await.is_ok() {
                if queue.send(told.clone()).await.is_err() {
                    return;
                }
            }
        });
        let stop = job.cancel || job.deleting || job.gone;
        let policy = job.core_policy();
        let changed = submitted.is_some_and(|submitted| submitted != policy);
        job.failed_admissions = 0;
        job.stage = Stage::Taken {
            handle: handle.clone(),
            _views: Views(following.abort_handle()),
        };
        // A coordinator that has stopped has no jobs left to change.
        if stop {
            let _ = handle.cancel().await;
        } else if changed {
            let _ = handle.set_policy(policy).await;
        }
        self.refresh(name, true).await;
    }

    fn admission_failed(&mut self, name: &JobName, error: &AdmitError) {
        let now = self.now();
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        job.stage = Stage::Unknown;
        self.free_slot(name);
        let Some(job) = self.jobs.get_mut(name) else {
            return;
        };
        if job.gone {
            self.remove(name);
            return;
        }
        if job.deleting {
            self.end_early(name, super::sightings::deleted());
            return;
        }
        let message = error.to_string();
        match consequence(error) {
            Consequence::Nothing => {}
            Consequence::Retry { reason } => {
                job.failed_admissions = job.failed_admissions.saturating_add(1);
                let at = now + retry_wait(job.failed_admissions);
                tracing::warn!(
                    namespace = %name.namespace, name = %name.name, failures = job.failed_admissions, %error,
                    "a job could not be admitted and is tried again"
                );
                job.stage = Stage::Retrying { at };
                job.situation = Situation::Waiting { reason, message };
                self.parts
                    .metrics
                    .admission_retries
                    .with_label_values(&[error.category()])
                    .inc();
                self.show(name);
                self.set_deadline_timer(name);
            }
            Consequence::Refuse { reason } => self.refuse(name, reason, message),
            Consequence::Fail { reason, accepted } => {
                let ending = Ending {
                    phase: Phase::Failed,
                    reason,
                    message,
                    invalid_input: matches!(error, AdmitError::Refused(error) if error.bad_input()),
                    accepted,
                };
                self.end_early(name, ending);
            }
        }
    }
}

fn retry_wait(failures: u32) -> Milliseconds {
    let doubled = FIRST_RETRY
        .0
        .saturating_mul(1 << failures.saturating_sub(1).min(16));
    Milliseconds(doubled.min(LONGEST_RETRY.0))
}

struct Admission {
    client: Client,
    coordinator: Arc<CoordinatorHandle>,
    sources: Arc<dyn ClusterSources>,
    defaults: JobDefaults,
    name: JobName,
    /// It is not to run yet.
    held: bool,
}

impl Admission {
    async fn run(self, object: Option<Box<ProofJob>>) -> Admitted {
        let mut policy = None;
        let result = self.submit(object, &mut policy).await;
        Admitted {
            name: self.name,
            policy,
            result,
        }
    }

    async fn submit(
        &self,
        object: Option<Box<ProofJob>>,
        policy: &mut Option<JobPolicy>,
    ) -> Result<JobHandle, AdmitError> {
        let mut object = match object {
            Some(object) => object,
            None => self.fetch().await?,
        };
        apply_defaults(&mut object.spec, &self.defaults);
        object.spec.suspend |= self.held;
        *policy = Some(policy_of(&object.spec, &self.defaults));
        object.status = None;
        let access = SourceAccess::Cluster(Arc::clone(&self.sources));
        Ok(self.coordinator.submit(*object, access).await?)
    }

    async fn fetch(&self) -> Result<Box<ProofJob>, AdmitError> {
        let api: Api<ProofJob> = Api::namespaced(self.client.clone(), &self.name.namespace);
        let unreadable = |reason: String| AdmitError::Unreadable { reason };
        let found = tokio::time::timeout(FETCH_TIMEOUT, api.get_opt(&self.name.name))
            .await
            .map_err(|_| unreadable(format!("no answer within {FETCH_TIMEOUT:?}")))?
            .map_err(|error| unreadable(error.to_string()))?;
        found
            .filter(|object| object.metadata.uid.as_deref() == Some(&*self.name.uid))
            .map(Box::new)
            .ok_or(AdmitError::Gone)
    }
}
