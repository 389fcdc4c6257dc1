//! What a ProofJob's status says: a pure function of what is known of the job.
//!
//! Owns every word of the status that does not come from the prover. Does not own when it is written
//! ([`crate::write_plan`]) nor by whom ([`crate::writer`]).

mod usage;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use prover_coordinator::{Binding, Feasible, Forecast, JobView, Phase as ViewPhase, TaskState, Timestamp};
use prover_crds::conditions::{self, Conditions, Holds};
use prover_crds::{
    AttemptCounts, Execution, JobFailure, Phase, Progress, ProofJobStatus, ProofResult, StageProgress,
    StoredArtifact, reasons,
};

pub(crate) use usage::{GroupPrices, prices};

/// Why a job waits that has no place.
const QUOTA: &str = "the namespace or the ProverCluster runs as many jobs as it may";

/// Longest message of a failure in bytes, as the schema has it.
const FAILURE_MESSAGE_BYTES: usize = 4_096;
/// Longest message of a status in bytes, as the schema has it.
const MESSAGE_BYTES: usize = 1_024;
/// Longest identity of a program and name of a verifier, as the schema has it.
const NAME_BYTES: usize = 128;
/// Longest name of a stage, as the schema has it.
const STAGE_BYTES: usize = 63;
/// Most stages, as the schema has it.
const STAGES: usize = 32;

/// What is known of a job.
#[derive(Clone, Debug)]
pub(crate) enum Situation {
    /// The cluster does not take it now; that may change.
    Refused { reason: &'static str, message: String },
    /// The cluster takes it, but the core does not have it yet.
    Waiting { reason: &'static str, message: String },
    /// The core has it.
    Taken(Arc<JobView>),
    /// It ended before the core had it.
    Ended(Ending),
}

/// How a job ended that the core never had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) phase: Phase,
    pub(crate) reason: String,
    pub(crate) message: String,
    /// Whether program, input or specification are at fault.
    pub(crate) invalid_input: bool,
    /// Whether the cluster had accepted it.
    pub(crate) accepted: bool,
}

/// What a status depends on beside the situation.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings<'a> {
    /// `metadata.generation` that was looked at.
    pub(crate) generation: Option<i64>,
    /// `spec.suspend`.
    pub(crate) suspended: bool,
    /// It has no place among the jobs that may run at once.
    pub(crate) held: bool,
    /// Put before a key it makes the URI of an artifact.
    pub(crate) store: &'a str,
    /// What the worker groups cost.
    pub(crate) prices: &'a GroupPrices,
}

/// The status of a job. What `previous` says of the past is kept: conditions and their times, and when it was
/// accepted.
pub(crate) fn status(
    situation: &Situation,
    surroundings: &Surroundings<'_>,
    previous: &ProofJobStatus,
    now: &Time,
) -> ProofJobStatus {
    let mut status = ProofJobStatus {
        observed_generation: surroundings.generation,
        conditions: previous.conditions.clone(),
        accepted_time: previous.accepted_time.clone(),
        ..ProofJobStatus::default()
    };
    match situation {
        Situation::Refused { reason, message } => refused(&mut status, surroundings, now, reason, message),
        Situation::Waiting { reason, message } => {
            accept(&mut status, surroundings, now);
            let phase = if surroundings.suspended {
                Phase::Suspended
            } else {
                Phase::Queued
            };
            set_alive(&mut status, surroundings, now, phase, reason, message);
        }
        Situation::Taken(view) => {
            accept(&mut status, surroundings, now);
            taken(&mut status, surroundings, now, view);
        }
        Situation::Ended(ending) => {
            if ending.accepted {
                accept(&mut status, surroundings, now);
            } else {
                conditions_of(&mut status, surroundings, now).set(
                    conditions::ACCEPTED,
                    false,
                    &ending.reason,
                    &ending.message,
                );
            }
            status.completion_time = previous.completion_time.clone().or_else(|| Some(now.clone()));
            let words = (ending.reason.as_str(), ending.message.as_str());
            set_ended(
                &mut status,
                surroundings,
                now,
                ending.phase,
                words,
                ending.invalid_input,
            );
        }
    }
    status
}

fn conditions_of<'a>(
    status: &'a mut ProofJobStatus,
    surroundings: &Surroundings<'_>,
    now: &Time,
) -> Conditions<'a> {
    Conditions::new(&mut status.conditions, surroundings.generation, now.clone())
}

fn accept(status: &mut ProofJobStatus, surroundings: &Surroundings<'_>, now: &Time) {
    status.accepted_time.get_or_insert_with(|| now.clone());
    conditions_of(status, surroundings, now).set(
        conditions::ACCEPTED,
        true,
        reasons::ACCEPTED,
        "the cluster takes the job",
    );
}

fn refused(
    status: &mut ProofJobStatus,
    surroundings: &Surroundings<'_>,
    now: &Time,
    reason: &str,
    message: &str,
) {
    status.accepted_time = None;
    status.phase = Some(Phase::Pending);
    set_words(status, reason, message);
    let mut conditions = conditions_of(status, surroundings, now);
    conditions.set(conditions::ACCEPTED, false, reason, message);
    conditions.set(conditions::RUNNING, false, reason, message);
}

fn set_words(status: &mut ProofJobStatus, reason: &str, message: &str) {
    let known = conditions::is_reason(reason);
    status.reason = Some(if known { reason } else { reasons::OTHER_FAILURE }.to_owned());
    let message = cut(message, MESSAGE_BYTES);
    status.message = (!message.is_empty()).then_some(message);
}

/// The phase of a job that has not ended, and the conditions that go with it.
fn set_alive(
    status: &mut ProofJobStatus,
    surroundings: &Surroundings<'_>,
    now: &Time,
    phase: Phase,
    reason: &str,
    message: &str,
) {
    let suspended = phase == Phase::Suspended;
    let (reason, message) = match phase {
        Phase::Suspended => (
            reasons::SUSPENDED,
            "nothing of it runs, finished tasks are kept; set spec.suspend to false to go on",
        ),
        // It runs, and waits for devices all the same.
        Phase::Running if reason == reasons::WAITING_FOR_QUOTA => (reason, message),
        Phase::Running => (reasons::STARTED, ""),
        _ => (reason, message),
    };
    status.phase = Some(phase);
    set_words(status, reason, message);
    let was_suspended = conditions::find(&status.conditions, conditions::SUSPENDED).is_some();
    let mut conditions = conditions_of(status, surroundings, now);
    conditions.set(conditions::RUNNING, phase == Phase::Running, reason, message);
    if suspended {
        conditions.set(conditions::SUSPENDED, true, reasons::SUSPENDED, message);
    } else if was_suspended {
        conditions.set(
            conditions::SUSPENDED,
            false,
            reasons::RESUMED,
            "spec.suspend is false",
        );
    }
}

fn set_ended(
    status: &mut ProofJobStatus,
    surroundings: &Surroundings<'_>,
    now: &Time,
    phase: Phase,
    (reason, message): (&str, &str),
    invalid_input: bool,
) {
    status.phase = Some(phase);
    set_words(status, reason, message);
    conditions_of(status, surroundings, now).set_finished(phase, reason, message);
    if phase == Phase::Failed {
        let (reason, message) = if conditions::is_reason(reason) {
            (reason.to_owned(), message.to_owned())
        } else {
            (reasons::OTHER_FAILURE.to_owned(), format!("{reason}: {message}"))
        };
        status.failure = Some(JobFailure {
            reason,
            message: cut(&message, FAILURE_MESSAGE_BYTES),
            invalid_input,
            stage: None,
        });
    }
}

fn taken(status: &mut ProofJobStatus, surroundings: &Surroundings<'_>, now: &Time, view: &JobView) {
    let phase = match view.phase {
        // A job that waits for its backend is not in the core yet, which would call it suspended.
        ViewPhase::Queued | ViewPhase::Suspended if surroundings.suspended => Phase::Suspended,
        // A job that is held back is suspended for the core only.
        ViewPhase::Queued | ViewPhase::Suspended => Phase::Queued,
        ViewPhase::Running => Phase::Running,

        ViewPhase::Succeeded => Phase::Succeeded,
        ViewPhase::Failed => Phase::Failed,
        ViewPhase::Cancelled => Phase::Cancelled,
    };
    status.start_time = view.started_at.map(time);
    status.progress = progress(view);
    status.attempts = attempts(view);
    status.execution = execution(view);
    status.usage = usage::usage(view, surroundings.prices);
    status.emulated = view.emulated;
    if !phase.is_terminal() {
        let words = match phase {
            Phase::Queued if surroundings.held => (reasons::WAITING_FOR_QUOTA, QUOTA),
            Phase::Queued if view.phase == ViewPhase::Suspended => (reasons::ADMITTED, ""),
            _ => (&*view.reason, &*view.message),
        };
        set_alive(status, surroundings, now, phase, words.0, words.1);
        set_feasible(status, surroundings, now, view.forecast.as_ref());
        return;
    }
    let ended = view.finished_at.map_or_else(|| now.clone(), time);
    status.completion_time = Some(ended.clone());
    status.active_milliseconds = view.started_at.map(|_| count(view.active.as_millis()));
    status.effective_hz = view.effective_hz.map(|hertz| hertz.max(0.0) as i64);
    status.pgu_per_second = view.pgu_per_second.map(|rate| rate.max(0.0) as i64);
    // The condition changed when the job ended, which may be a little before it is looked at.
    set_ended(
        status,
        surroundings,
        &ended,
        phase,
        (&view.reason, &view.message),
        view.bad_input,
    );
    if phase == Phase::Succeeded {
        status.proof = proof(view, surroundings.store);
        status.public_values = view
            .public_values
            .as_ref()
            .map(|binding| stored(binding, surroundings.store));
    }
}

/// Whether the deadline can be met. A job whose deadline was taken away has no such condition any more; one that has
/// ended keeps what was said last.
fn set_feasible(
    status: &mut ProofJobStatus,
    surroundings: &Surroundings<'_>,
    now: &Time,
    forecast: Option<&Forecast>,
) {
    let Some(forecast) = forecast else {
        let other = |condition: &Condition| condition.type_ != conditions::DEADLINE_FEASIBLE;
        return status.conditions.retain(other);
    };
    let holds = match forecast.feasible {
        Feasible::Yes => Holds::True,
        Feasible::No => Holds::False,
        Feasible::Unknown => Holds::Unknown,
    };
    conditions_of(status, surroundings, now).set(
        conditions::DEADLINE_FEASIBLE,
        holds,
        forecast.reason,
        &forecast.message,
    );
}

/// A moment in the words of Kubernetes, which knows whole seconds.
pub(crate) fn time(at: Timestamp) -> Time {
    let milliseconds = i64::try_from(at.0).unwrap_or(i64::MAX);
    // Beyond the year 9999 there is nothing to say; the oldest moment is as good as any.
    Time(k8s_openapi::jiff::Timestamp::from_second(milliseconds / 1_000).unwrap_or_default())
}

fn count<N>(number: N) -> i64
where
    i64: TryFrom<N>,
{
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn progress(view: &JobView) -> Option<Progress> {
    if view.stages.is_empty() {
        return None;
    }
    let mut times: BTreeMap<&str, StageTimes> = BTreeMap::new();
    for task in view.tasks.iter().filter(|task| !task.marker) {
        let stage = times.entry(&task.stage).or_default();
        stage.start = earlier(stage.start, task.started_at);
        stage.end = stage.end.max(task.ended_at);
        stage.device_milliseconds += count(task.device_time.as_millis());
    }
    let (mut done, mut total) = (0, 0);
    let mut stages = Vec::new();
    for stage in &view.stages {
        done += stage.done;
        total += stage.total;
        let times = times.get(&*stage.name).copied().unwrap_or_default();
        let over = stage.done == stage.total;
        stages.push(StageProgress {
            name: cut(&stage.name, STAGE_BYTES),
            done: count(stage.done),
            total: count(stage.total),
            running: count(stage.running),
            start_time: times.start.map(time),
            completion_time: times.end.filter(|_| over).map(time),
            device_milliseconds: times.device_milliseconds,
        });
    }
    stages.truncate(STAGES);
    Some(Progress {
        summary: format!("{done}/{total}"),
        stages,
    })
}

#[derive(Clone, Copy, Debug, Default)]
struct StageTimes {
    start: Option<Timestamp>,
    end: Option<Timestamp>,
    device_milliseconds: i64,
}

fn earlier(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

fn attempts(view: &JobView) -> Option<AttemptCounts> {
    let succeeded = view
        .tasks
        .iter()
        .filter(|task| task.state == TaskState::Succeeded && !task.marker && !task.from_cache);
    (view.attempts > 0).then(|| AttemptCounts {
        started: count(view.attempts),
        succeeded: count(succeeded.count()),
        failed: i64::from(view.failures),
        lost: i64::from(view.infrastructure_failures),
        replans: i64::from(view.replans),
    })
}

fn execution(view: &JobView) -> Option<Execution> {
    let told = view.execution.as_ref()?;
    let program_id = cut(&told.program_id, NAME_BYTES);
    Some(Execution {
        program_id: (!program_id.is_empty()).then_some(program_id),
        segments: count(told.segments),
        user_cycles: count(told.user_cycles),
        total_cycles: count(told.total_cycles),
        segment_po2: (1..=64)
            .contains(&told.segment_po2)
            .then(|| i32::try_from(told.segment_po2).unwrap_or(64)),
        exit_code: Some(told.exit_code.clamp(-(1 << 32), 1 << 32)),
        gas: told.gas.map(count),
        public_values_sha256: is_sha256(&told.public_values_sha256)
            .then(|| told.public_values_sha256.clone()),
    })
}

/// Whether the schema takes it: backends are programs of others.
fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn stored(binding: &Binding, store: &str) -> StoredArtifact {
    StoredArtifact {
        uri: format!("{store}{}", binding.key),
        sha256: hex::encode(binding.sha256),
        size_bytes: count(binding.size_bytes),
    }
}

fn proof(view: &JobView, store: &str) -> Option<ProofResult> {
    let proof = view.proof.as_ref()?;
    let StoredArtifact {
        uri,
        sha256,
        size_bytes,
    } = stored(&proof.proof, store);
    Some(ProofResult {
        uri,
        sha256,
        size_bytes,
        program_id: cut(&proof.report.program_id, NAME_BYTES),
        verifier: cut(&proof.report.verifier, NAME_BYTES),
    })
}

/// At most so many bytes, cut between characters.
pub(crate) fn cut(text: &str, bytes: usize) -> String {
    let end = (0..=bytes.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or_default()].to_owned()
}

#[cfg(test)]
mod tests;
