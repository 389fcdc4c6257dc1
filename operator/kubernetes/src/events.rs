//! The events of ProofJobs: what `kubectl describe` tells.
//!
//! Owns which change of a status is worth telling, and the bounded queue of what is told. Events are told once and may
//! be lost, so nothing depends on them.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use prover_coordinator::{Milliseconds, Timestamp};
use prover_crds::{Phase, ProofJobStatus, conditions, names, reasons};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::status::cut;
use crate::writer::JobName;

/// Events that wait to be sent; further ones are dropped.
const QUEUE: usize = 4_096;
/// Longest time that an event may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest note in bytes, as Kubernetes has it.
const NOTE_BYTES: usize = 1_024;
/// Shortest time between two events of a job that only tell what it waits for, or of lost and failed attempts.
pub(crate) const CHATTER_INTERVAL: Milliseconds = Milliseconds(30_000);

/// One thing to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) warning: bool,
    pub(crate) reason: String,
    pub(crate) action: &'static str,
    pub(crate) text: String,
}

fn note(warning: bool, reason: &str, action: &'static str, text: impl Into<String>) -> Note {
    Note {
        warning,
        reason: reason.to_owned(),
        action,
        text: text.into(),
    }
}

/// The note at a ProverCluster about a replica that leads from now on.
pub(crate) fn took_over(text: String) -> Note {
    note(false, reasons::COORDINATOR_TOOK_OVER, "TakeOver", text)
}

/// The note about a job that had begun, and of which the log knows nothing.
pub(crate) fn restarted() -> Note {
    note(
        true,
        reasons::COORDINATOR_RESTARTED,
        "Restart",
        "the coordinator's log knows nothing of this job: it begins again",
    )
}

/// The note about results whose retention is over.
pub(crate) fn retention_over(text: String) -> Note {
    note(false, reasons::RETENTION_OVER, "DeleteProof", text)
}

/// The note about a priority that is higher than the job's namespace may use.
pub(crate) fn priority_too_high(text: String) -> Note {
    note(true, reasons::PRIORITY_TOO_HIGH, "ChangePolicy", text)
}

/// When a job's last chatter was told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chatter {
    last: Option<Timestamp>,
    /// Failed and lost attempts that were told of.
    failed: i64,
    lost: i64,
}

impl Chatter {
    fn may_talk(&self, now: Timestamp) -> bool {
        self.last.is_none_or(|last| last + CHATTER_INTERVAL <= now)
    }
}

/// What to tell about a status that follows another.
pub(crate) fn notes(
    before: &ProofJobStatus,
    after: &ProofJobStatus,
    chatter: &mut Chatter,
    now: Timestamp,
) -> Vec<Note> {
    let mut notes = Vec::new();
    let reason = after.reason.as_deref().unwrap_or_default();
    let message = after.message.as_deref().unwrap_or_default();
    accepted(before, after, &mut notes);
    if before.phase != after.phase {
        match after.phase {
            Some(Phase::Queued) => {
                if conditions::is_true(&before.conditions, conditions::SUSPENDED) {
                    notes.push(note(
                        false,
                        reasons::RESUMED,
                        "Resume",
                        "spec.suspend is false: the job waits for its turn",
                    ));
                } else {
                    notes.push(note(
                        false,
                        "Queued",
                        "Queue",
                        format!("the job waits ({reason}): {message}"),
                    ));
                }
                chatter.last = Some(now);
            }
            Some(Phase::Running) => {
                let resumed = conditions::is_true(&before.conditions, conditions::SUSPENDED);
                let (reason, action, text) = if resumed {
                    (
                        reasons::RESUMED,
                        "Resume",
                        "spec.suspend is false: the job goes on",
                    )
                } else {
                    (reasons::STARTED, "Start", "the first task was given to a worker")
                };
                notes.push(note(false, reason, action, text));
            }
            Some(Phase::Suspended) => notes.push(note(
                false,
                reasons::SUSPENDED,
                "Suspend",
                "spec.suspend is true: nothing of the job runs, finished tasks are kept",
            )),
            Some(Phase::Succeeded) => notes.push(note(false, reasons::SUCCEEDED, "Finish", succeeded(after))),
            Some(Phase::Failed) => notes.push(note(true, reason, "Fail", message)),
            Some(Phase::Cancelled) => notes.push(note(false, reasons::CANCELLED, "Cancel", message)),
            Some(Phase::Pending) | None => {}
        }
    } else if after.phase == Some(Phase::Queued) && before.reason != after.reason && chatter.may_talk(now) {
        chatter.last = Some(now);
        notes.push(note(
            false,
            "Queued",
            "Queue",
            format!("the job waits ({reason}): {message}"),
        ));
    }
    attempts(after, chatter, now, &mut notes);
    notes
}

fn accepted(before: &ProofJobStatus, after: &ProofJobStatus, notes: &mut Vec<Note>) {
    let of = |status: &ProofJobStatus| {
        conditions::find(&status.conditions, conditions::ACCEPTED).map(|condition| {
            (
                condition.status.clone(),
                condition.reason.clone(),
                condition.message.clone(),
            )
        })
    };
    let (old, new) = (of(before), of(after));
    let same = old.as_ref().map(|(status, reason, _)| (status, reason))
        == new.as_ref().map(|(status, reason, _)| (status, reason));
    let Some((status, reason, message)) = new.filter(|_| !same) else {
        return;
    };
    if status == conditions::Holds::True.as_str() {
        notes.push(note(
            false,
            reasons::ACCEPTED,
            "Accept",
            "the cluster takes the job",
        ));
    } else if after.phase != Some(Phase::Failed) {
        notes.push(note(true, &reason, "Refuse", message));
    }
}

fn attempts(after: &ProofJobStatus, chatter: &mut Chatter, now: Timestamp, notes: &mut Vec<Note>) {
    let Some(counts) = after.attempts.as_ref() else {
        return;
    };
    let (failed, lost) = (counts.failed - chatter.failed, counts.lost - chatter.lost);
    if (failed <= 0 && lost <= 0) || !chatter.may_talk(now) {
        return;
    }
    if failed > 0 {
        notes.push(note(
            true,
            reasons::ATTEMPTS_FAILED,
            "Retry",
            format!(
                "{failed} attempts failed and are tried again, {} in all",
                counts.failed
            ),
        ));
    }
    if lost > 0 {
        notes.push(note(
            true,
            reasons::ATTEMPTS_LOST,
            "Retry",
            format!(
                "{lost} attempts were lost with their workers and run elsewhere, {} in all",
                counts.lost
            ),
        ));
    }
    chatter.last = Some(now);
    (chatter.failed, chatter.lost) = (counts.failed, counts.lost);
}

fn succeeded(status: &ProofJobStatus) -> String {
    let seconds = match (&status.start_time, &status.completion_time) {
        (Some(start), Some(end)) => end.0.as_second() - start.0.as_second(),
        _ => 0,
    };
    match (&status.proof, &status.public_values, status.emulated) {
        (_, _, true) => format!("the model ran for {seconds} s; nothing was proved"),
        (Some(proof), ..) => format!("proved and verified in {seconds} s: {}", proof.uri),
        (None, Some(values), _) => format!("executed in {seconds} s: {}", values.uri),
        (None, None, _) => format!("finished in {seconds} s"),
    }
}

/// What a note is about.
#[derive(Debug)]
struct Subject {
    kind: &'static str,
    name: JobName,
}

/// Where notes go.
#[derive(Clone, Debug)]
pub(crate) struct Teller {
    queue: mpsc::Sender<(Subject, Note)>,
    metrics: Metrics,
}

impl Teller {
    /// Begins to send events until it is stopped.
    pub(crate) fn start(
        client: Client,
        instance: Option<String>,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> Self {
        let (queue, notes) = mpsc::channel(QUEUE);
        let reporter = Reporter {
            controller: names::COORDINATOR_MANAGER.to_owned(),
            instance,
        };
        let recorder = Recorder::new(client, reporter);
        tokio::spawn(send_all(recorder, notes, metrics.clone(), stop));
        Teller { queue, metrics }
    }

    /// Tells something of a job, unless too much waits to be told.
    pub(crate) fn tell(&self, job: &JobName, note: Note) {
        self.send("ProofJob", job.clone(), note);
    }

    /// Tells something of the ProverCluster.
    pub(crate) fn tell_of_cluster(&self, cluster: JobName, note: Note) {
        self.send("ProverCluster", cluster, note);
    }

    fn send(&self, kind: &'static str, name: JobName, note: Note) {
        if self.queue.try_send((Subject { kind, name }, note)).is_err() {
            self.metrics.events_dropped.inc();
        }
    }
}

async fn send_all(
    recorder: Recorder,
    mut notes: mpsc::Receiver<(Subject, Note)>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => return,
            next = notes.recv() => next,
        };
        let Some((Subject { kind, name: job }, note)) = next else {
            return;
        };
        let reference = ObjectReference {
            api_version: Some("proving.rs/v1alpha1".to_owned()),
            kind: Some(kind.to_owned()),
            namespace: Some(job.namespace.to_string()),
            name: Some(job.name.to_string()),
            uid: Some(job.uid.to_string()),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: if note.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: note.reason,
            note: Some(cut(&note.text, NOTE_BYTES)).filter(|text| !text.is_empty()),
            action: note.action.to_owned(),
            secondary: None,
        };
        let sent = tokio::time::timeout(TIMEOUT, recorder.publish(&event, &reference)).await;
        if let Err(error) = sent
            .map_err(|_| "it took too long".to_owned())
            .and_then(|sent| sent.map_err(|error| error.to_string()))
        {
            metrics.event_errors.inc();
            tracing::debug!(namespace = %job.namespace, name = %job.name, reason = %event.reason, %error, "an event was not sent");
        }
    }
}

#[cfg(test)]
mod tests;
