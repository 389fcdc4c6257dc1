//! Jobs from their submission to their being forgotten, those that wait for a backend among them.

use std::sync::Arc;

use prover_core::{Action, Event, JobId, JobPolicy, Refusal, Timestamp};
use tokio::sync::{oneshot, watch};

use super::Engine;
use super::durable::Held;
use crate::admission::JobRequest;
use crate::catalogue::{Backend, Choice};
use crate::command::Submitted;
use crate::config::VIEW_INTERVAL;
use crate::deletes::Deletion;
use crate::error::AdmissionError;
use crate::record::{JobRecord, early_view};
use crate::remembered::{JobNotTaken, ShellChange};
use crate::view::{JobView, Phase};

/// As the core names the wait of a job whose backend is pinned already.
const NO_WORKER_OF_BACKEND: &str = "NoWorkerOfBackend";
/// As the core names it.
const DEADLINE_PASSED: &str = "DeadlineExceeded";

/// A job whose proof system no worker offers yet, so that it has no backend and the core can't hold it.
#[derive(Debug)]
pub(super) struct WaitingJob {
    request: JobRequest,
    submitted_at: Timestamp,
    sender: watch::Sender<Arc<JobView>>,
}

impl WaitingJob {
    /// The word under which backends offer its proof.
    pub(super) fn system(&self) -> &str {
        &self.request.system
    }
}

impl Engine {
    pub(super) fn submit(&mut self, request: JobRequest, reply: oneshot::Sender<Submitted>) {
        let answer = self.try_submit(request);
        match &answer {
            Ok(_) => self.parts.metrics.jobs_admitted.inc(),
            Err(error) => self
                .parts
                .metrics
                .jobs_refused
                .with_label_values(&[error.category()])
                .inc(),
        }
        // A submitter that has gone away finds its job by its uid.
        let _ = reply.send(answer);
    }

    fn try_submit(&mut self, request: JobRequest) -> Submitted {
        if let Some(job) = self.state.job_by_uid(&request.uid)
            && let Some(record) = self.jobs.get_mut(&job)
        {
            let returned = !std::mem::replace(&mut record.claimed, true);
            let views = record.subscribe();
            if returned {
                self.claim(job, &request);
            }
            return Ok(views);
        }
        if let Some(waiting) = self.waiting.get(&request.uid) {
            return Ok(waiting.sender.subscribe());
        }
        if self.log_full {
            self.parts
                .metrics
                .refused_without_log
                .with_label_values(&["job"])
                .inc();
            return Err(AdmissionError::LogUnavailable);
        }
        let limit = self.parts.limits.jobs;
        if self.jobs.len() + self.waiting.len() >= limit {
            self.delete_all(&request);
            return Err(AdmissionError::TooManyJobs { limit });
        }
        let now = self.now();
        let (sender, receiver) =
            watch::channel(Arc::new(early_view(&request, now, Phase::Queued, "Admitted", "")));
        match self.catalogue.choose(&request.system, &request.kind) {
            Choice::Backend(backend) => self.admit(request, &backend, sender)?,
            Choice::KindNotOffered(backend) => {
                self.delete_all(&request);
                return Err(kind_not_offered(&request, &backend));
            }
            Choice::Withheld(backend) => {
                self.delete_all(&request);
                return Err(withheld(&request, &backend));
            }
            Choice::NobodyYet => self.wait_for_backend(request, now, sender),
        }
        Ok(receiver)
    }

    /// A job that is known from the log is submitted again: what the user has changed meanwhile counts.
    fn claim(&mut self, job: JobId, request: &JobRequest) {
        let Some(told) = self.state.job(job) else { return };
        if told.finished_at.is_some() {
            return;
        }
        if told.policy != request.policy {
            let policy = request.policy;
            self.apply(Event::JobPolicyChanged { job, policy });
        }
        if request.cancelled {
            self.apply(Event::JobCancelled { job });
        }
    }

    /// Gives a job to the core, pinned to a backend.
    fn admit(
        &mut self,
        request: JobRequest,
        backend: &Arc<Backend>,
        sender: watch::Sender<Arc<JobView>>,
    ) -> Result<(), AdmissionError> {
        let Some(offer) = backend.offer(&request.system, &request.kind) else {
            return Err(kind_not_offered(&request, backend));
        };
        let spec = Box::new(request.job_spec(backend, offer));
        let actions = self.core_actions(Event::JobSubmitted(spec));
        let job = match answer_of(&actions) {
            Ok(job) => job,
            Err(refusal) => {
                self.execute_all(actions);
                self.delete_all(&request);
                return Err(AdmissionError::Refused {
                    job: request.name.to_string(),
                    refusal,
                });
            }
        };
        let taken = ShellChange::Taken(request.taken(backend.encoded()));
        self.record_shell(&request.uid, taken, true);
        let cancelled = request.cancelled;
        tracing::info!(
            %job, uid = %request.uid, name = %request.name, system = %request.system, kind = %request.kind,
            backend = %backend.version.name, version = %backend.version.version, "a job is admitted"
        );
        self.jobs
            .insert(job, JobRecord::new(job, request, Arc::clone(backend), sender));
        self.execute_all(actions);
        if cancelled {
            self.apply(Event::JobCancelled { job });
        }
        self.publish(job);
        Ok(())
    }

    fn wait_for_backend(&mut self, request: JobRequest, now: Timestamp, sender: watch::Sender<Arc<JobView>>) {
        let message = format!(
            "no connected worker has a backend for {} proofs yet",
            request.system
        );
        tracing::info!(uid = %request.uid, name = %request.name, system = %request.system, "a job waits for a backend");
        let view = early_view(&request, now, Phase::Queued, NO_WORKER_OF_BACKEND, &message);
        sender.send_replace(Arc::new(view));
        let uid = request.uid.clone();
        let cancelled = request.cancelled;
        if let Some(deadline) = request.policy.deadline {
            self.waiting_deadlines.insert((deadline, uid.clone()));
        }
        self.waiting.insert(
            uid.clone(),
            WaitingJob {
                request,
                submitted_at: now,
                sender,
            },
        );
        if cancelled {
            self.cancel(&uid);
        }
        self.show_waiting();
    }

    /// A worker came: some of the waiting jobs may have their backend now.
    pub(super) fn admit_waiting(&mut self) {
        let decided: Vec<_> = self
            .waiting
            .iter()
            .map(|(uid, waiting)| {
                (
                    uid.clone(),
                    self.catalogue
                        .choose(&waiting.request.system, &waiting.request.kind),
                )
            })
            .filter(|(_, choice)| *choice != Choice::NobodyYet)
            .collect();
        for (uid, choice) in decided {
            let Some(waiting) = self.remove_waiting(&uid) else {
                continue;
            };
            let error = match choice {
                Choice::Backend(backend) => {
                    let (request, sender) = (waiting.request.clone(), waiting.sender.clone());
                    self.admit(request, &backend, sender).err()
                }
                Choice::KindNotOffered(backend) => Some(kind_not_offered(&waiting.request, &backend)),
                Choice::Withheld(backend) => Some(withheld(&waiting.request, &backend)),
                Choice::NobodyYet => None,
            };
            if let Some(error) = error {
                self.parts
                    .metrics
                    .jobs_refused
                    .with_label_values(&[error.category()])
                    .inc();
                let (reason, message) = (error.reason(), error.to_string());
                self.end_waiting(&waiting, Phase::Failed, reason, &message, error.bad_input());
            }
        }
    }

    pub(super) fn expire_waiting_jobs(&mut self, now: Timestamp) {
        while let Some((deadline, uid)) = self.waiting_deadlines.first().cloned() {
            if deadline > now {
                return;
            }
            self.waiting_deadlines.remove(&(deadline, uid.clone()));
            if let Some(waiting) = self.remove_waiting(&uid) {
                let message = "the deadline passed before a worker offered the job's proof system";
                self.end_waiting(&waiting, Phase::Failed, DEADLINE_PASSED, message, false);
            }
        }
    }

    fn remove_waiting(&mut self, uid: &Arc<str>) -> Option<WaitingJob> {
        let waiting = self.waiting.remove(uid)?;
        if let Some(deadline) = waiting.request.policy.deadline {
            self.waiting_deadlines.remove(&(deadline, uid.clone()));
        }
        self.show_waiting();
        Some(waiting)
    }

    fn end_waiting(
        &mut self,
        waiting: &WaitingJob,
        phase: Phase,
        reason: &str,
        message: &str,
        bad_input: bool,
    ) {
        tracing::info!(uid = %waiting.request.uid, phase = phase.as_str(), reason, words = message, "a waiting job ended");
        let mut view = early_view(&waiting.request, waiting.submitted_at, phase, reason, message);
        view.bad_input = bad_input;
        view.finished_at = Some(self.now());
        self.delete_all(&waiting.request);
        self.hold(Held::EndWaiting {
            sender: waiting.sender.clone(),
            view: Box::new(view),
        });
        self.parts
            .metrics
            .jobs_finished
            .with_label_values(&[phase.as_str()])
            .inc();
    }

    fn show_waiting(&self) {
        self.parts
            .metrics
            .waiting_for_backend
            .set(i64::try_from(self.waiting.len()).unwrap_or(i64::MAX));
    }

    pub(super) fn cancel(&mut self, uid: &Arc<str>) {
        if let Some(waiting) = self.remove_waiting(uid) {
            self.end_waiting(
                &waiting,
                Phase::Cancelled,
                "Cancelled",
                "the job was cancelled",
                false,
            );
        } else if let Some(job) = self.state.job_by_uid(uid) {
            self.apply(Event::JobCancelled { job });
        }
    }

    pub(super) fn set_policy(&mut self, uid: &Arc<str>, policy: JobPolicy) {
        if let Some(waiting) = self.waiting.get_mut(uid) {
            let before = std::mem::replace(&mut waiting.request.policy, policy);
            if let Some(deadline) = before.deadline {
                self.waiting_deadlines.remove(&(deadline, uid.clone()));
            }
            if let Some(deadline) = policy.deadline {
                self.waiting_deadlines.insert((deadline, uid.clone()));
            }
        } else if let Some(job) = self.state.job_by_uid(uid) {
            self.apply(Event::JobPolicyChanged { job, policy });
        }
    }

    pub(super) fn forget(&mut self, uid: &Arc<str>) {
        let Some(job) = self.state.job_by_uid(uid) else {
            return;
        };
        let terminal = self
            .jobs
            .get(&job)
            .is_some_and(|record| record.phase.is_terminal());
        if !terminal {
            tracing::warn!(%job, %uid, "a job that is not finished can't be forgotten");
            return;
        }
        self.apply(Event::JobForgotten { job });
        let Some(record) = self.jobs.remove(&job) else {
            return;
        };
        if let Some(due) = record.view_due {
            self.due_views.remove(&(due, job));
        }
        // The core looks after what attempts made; what the shell put into the store is the shell's to delete.
        for (_, binding) in &record.request.sources {
            self.hold(Held::Delete(Deletion::Artifact(binding.key.clone())));
        }
    }

    /// The job's next view is made when it is due.
    pub(super) fn mark_changed(&mut self, job: JobId) {
        if let Some(record) = self.jobs.get_mut(&job)
            && record.view_due.is_none()
        {
            let due = record.next_view(VIEW_INTERVAL);
            record.view_due = Some(due);
            self.due_views.insert((due, job));
        }
    }

    /// Makes a view of the job now.
    pub(super) fn publish(&mut self, job: JobId) {
        let now = self.now();
        if let Some(record) = self.jobs.get_mut(&job) {
            if let Some(due) = record.view_due.take() {
                self.due_views.remove(&(due, job));
            }
            if record.withheld {
                return;
            }
            record.publish(&self.state, now);
            if let Some(used) = record.newly_used() {
                let uid = record.request.uid.clone();
                self.record_shell(&uid, ShellChange::Used(used), false);
            }
        }
    }

    /// A job that was refused leaves nothing in the store. A coordinator that was replaced, and from which all workers
    /// have gone, knows no backend and may not have heard of its successor: the log tells it.
    fn delete_all(&mut self, request: &JobRequest) {
        let change = ShellChange::NotTaken(JobNotTaken {});
        self.record_shell(&request.uid, change, false);
        self.hold(Held::Delete(Deletion::Job(request.prefix.clone())));
    }
}

fn kind_not_offered(request: &JobRequest, backend: &Backend) -> AdmissionError {
    AdmissionError::KindNotOffered {
        backend: backend.version.name.to_string(),
        version: backend.version.version.to_string(),
        system: request.system.to_string(),
        kind: request.kind.to_string(),
        offered: backend.kinds(&request.system),
    }
}

fn withheld(request: &JobRequest, backend: &Backend) -> AdmissionError {
    let told = backend
        .withheld(&request.system, &request.kind)
        .cloned()
        .unwrap_or_default();
    AdmissionError::Withheld {
        backend: format!("{} {}", backend.version.name, backend.version.version),
        kind: format!("{} {}", request.system, request.kind),
        reason: told.reason,
        message: told.message,
    }
}

/// The core answers a submission at once.
fn answer_of(actions: &[Action]) -> Result<JobId, Refusal> {
    let answer = actions.iter().find_map(|action| match action {
        Action::JobAnswered { answer, .. } => Some(answer.clone()),
        _ => None,
    });
    answer.unwrap_or(Err(Refusal::JobOver))
}
