//! Condition types and reasons, and the one way to set a condition.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::{Schema, SchemaGenerator, json_schema};

use crate::{Phase, reasons};

// ---- types of a ProofJob ----

/// The cluster takes the job; False says why not.
pub const ACCEPTED: &str = "Accepted";
/// Tasks of the job may run; False says what it waits for.
pub const RUNNING: &str = "Running";
/// The job is suspended.
pub const SUSPENDED: &str = "Suspended";
/// The job can be done before its deadline; the message shows the arithmetic. Absent for jobs without a deadline.
pub const DEADLINE_FEASIBLE: &str = "DeadlineFeasible";
/// The job has ended; the reason is `Succeeded`, `Failed` or `Cancelled`.
pub const FINISHED: &str = "Finished";
/// The job has ended with what was asked for.
pub const SUCCEEDED: &str = "Succeeded";
/// The job has ended without; the reason says why.
pub const FAILED: &str = "Failed";
/// The user stopped the job.
pub const CANCELLED: &str = "Cancelled";
/// Of a job that is being deleted: what it left in the store is deleted, so its object may go.
pub const ARTIFACTS_COLLECTED: &str = "ArtifactsCollected";
/// The proof and the public values of an ended job are deleted, since their retention is over; what the status tells of
/// them stays as a record.
pub const PROOF_DELETED: &str = "ProofDeleted";

// ---- types of a ProverCluster ----

/// The cluster can prove. True with zero workers when nothing waits.
pub const READY: &str = "Ready";
/// The artifact store answers and offers conditional writes.
pub const STORE_READY: &str = "StoreReady";
/// A coordinator leads; another could take over.
pub const COORDINATOR_READY: &str = "CoordinatorReady";
/// As many workers are connected as wanted.
pub const WORKERS_READY: &str = "WorkersReady";
/// External metrics for HorizontalPodAutoscalers are served.
pub const METRICS_API_AVAILABLE: &str = "MetricsAPIAvailable";
/// The cluster is going and finishes its jobs.
pub const DRAINING: &str = "Draining";
/// False while the annotation `proving.rs/apply` keeps the operator from changing anything; absent otherwise.
pub const APPLYING: &str = "Applying";
/// False while not every allowed namespace is served; absent otherwise.
pub const NAMESPACES_SERVED: &str = "NamespacesServed";

/// Longest message in bytes; longer ones end with an ellipsis. Kubernetes would take 32 KiB, people don't.
pub const LONGEST_MESSAGE: usize = 2_048;
/// Longest reason in bytes.
const LONGEST_REASON: usize = 256;
const ELLIPSIS: char = '…';

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// It does.
    True,
    /// It does not.
    False,
    /// Nobody can tell.
    Unknown,
}

impl Holds {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Holds::True => "True",
            Holds::False => "False",
            Holds::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Holds {
    fn from(holds: bool) -> Self {
        if holds { Holds::True } else { Holds::False }
    }
}

/// Sets conditions of one object as seen at one moment.
pub struct Conditions<'a> {
    list: &'a mut Vec<Condition>,
    generation: Option<i64>,
    now: Time,
}

impl<'a> Conditions<'a> {
    /// `generation` is `metadata.generation` of the object that was looked at.
    pub fn new(list: &'a mut Vec<Condition>, generation: Option<i64>, now: Time) -> Self {
        Conditions {
            list,
            generation,
            now,
        }
    }

    /// Sets one condition and tells whether anything but the observed generation changed. The transition time
    /// changes only when the status does. A reason that Kubernetes would refuse becomes `OtherFailure` and goes
    /// into the message.
    pub fn set(&mut self, type_: &str, holds: impl Into<Holds>, reason: &str, message: &str) -> bool {
        let status = holds.into().as_str();
        let (reason, message) = if is_reason(reason) {
            (reason.to_owned(), truncated(message))
        } else {
            (
                reasons::OTHER_FAILURE.to_owned(),
                truncated(&format!("{reason}: {message}")),
            )
        };
        let Some(present) = self.list.iter_mut().find(|condition| condition.type_ == type_) else {
            self.list.push(Condition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason,
                message,
                observed_generation: self.generation,
                last_transition_time: self.now.clone(),
            });
            return true;
        };
        present.observed_generation = self.generation;
        if present.status != status {
            present.last_transition_time = self.now.clone();
        } else if present.reason == reason && present.message == message {
            return false;
        }
        present.status = status.to_owned();
        present.reason = reason;
        present.message = message;
        true
    }

    /// Sets what every ended ProofJob has: `Finished`, the condition of its outcome, and that nothing runs any
    /// more. Does nothing for a phase that is not terminal.
    pub fn set_finished(&mut self, phase: Phase, reason: &str, message: &str) -> bool {
        let (type_, outcome) = match phase {
            Phase::Succeeded => (SUCCEEDED, reasons::SUCCEEDED),
            Phase::Failed => (FAILED, reasons::FAILED),
            Phase::Cancelled => (CANCELLED, reasons::CANCELLED),
            Phase::Pending | Phase::Queued | Phase::Running | Phase::Suspended => return false,
        };
        let mut changed = self.set(type_, true, reason, message);
        for other in [RUNNING, SUSPENDED] {
            if self.list.iter().any(|condition| condition.type_ == other) {
                changed |= self.set(other, false, outcome, "the job has ended");
            }
        }
        changed | self.set(FINISHED, true, outcome, message)
    }
}

/// The condition of a type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition of a type is there and true.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == Holds::True.as_str())
}

/// Whether a word can be a reason: what Kubernetes allows, without its separators.
pub fn is_reason(word: &str) -> bool {
    word.len() <= LONGEST_REASON
        && word.starts_with(|letter: char| letter.is_ascii_alphabetic())
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// At most `LONGEST_MESSAGE` bytes, cut between characters.
pub fn truncated(message: &str) -> String {
    if message.len() <= LONGEST_MESSAGE {
        return message.to_owned();
    }
    let room = LONGEST_MESSAGE - ELLIPSIS.len_utf8();
    let end = (0..=room)
        .rev()
        .find(|end| message.is_char_boundary(*end))
        .unwrap_or_default();
    let mut kept = message[..end].to_owned();
    kept.push(ELLIPSIS);
    kept
}

/// The standard condition list: a map by `type`, so that several field managers can own their own conditions.
pub(crate) fn conditions_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {
                    "type": "string",
                    "description": "What the condition speaks of.",
                    "minLength": 1,
                    "maxLength": 316,
                    "pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"
                },
                "status": { "type": "string", "description": "Whether it holds.", "enum": ["True", "False", "Unknown"] },
                "observedGeneration": {
                    "type": "integer",
                    "format": "int64",
                    "description": "metadata.generation that the condition speaks of.",
                    "minimum": 0
                },
                "lastTransitionTime": { "type": "string", "format": "date-time", "description": "When status last changed." },
                "reason": {
                    "type": "string",
                    "description": "Why, in one documented CamelCase word.",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"
                },
                "message": { "type": "string", "description": "Why, for people.", "maxLength": 32768 }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    fn set(
        list: &mut Vec<Condition>,
        generation: i64,
        second: i64,
        holds: bool,
        reason: &str,
        message: &str,
    ) -> bool {
        Conditions::new(list, Some(generation), at(second)).set(READY, holds, reason, message)
    }

    #[test]
    fn the_transition_time_changes_only_with_the_status() {
        let mut list = Vec::new();
        assert!(set(&mut list, 1, 10, false, reasons::PROGRESSING, "starting"));
        assert!(set(&mut list, 2, 20, false, reasons::NO_LEADER, "still starting"));
        assert_eq!(
            (list[0].last_transition_time.clone(), list[0].reason.as_str()),
            (at(10), reasons::NO_LEADER)
        );
        assert!(set(&mut list, 2, 30, true, reasons::READY, ""));
        assert_eq!(list[0].last_transition_time, at(30));
        assert_eq!(list.len(), 1);
    }

    #[test]
    fn the_same_condition_again_changes_only_the_observed_generation() {
        let mut list = Vec::new();
        set(&mut list, 1, 10, true, reasons::READY, "all is well");
        assert!(!set(&mut list, 2, 20, true, reasons::READY, "all is well"));
        assert_eq!(
            (list[0].observed_generation, list[0].last_transition_time.clone()),
            (Some(2), at(10))
        );
    }

    #[test]
    fn conditions_of_others_are_left_alone() {
        let mut list = Vec::new();
        Conditions::new(&mut list, Some(1), at(1)).set(ACCEPTED, true, reasons::ACCEPTED, "");
        set(&mut list, 1, 2, true, reasons::READY, "");
        assert_eq!(
            list.iter()
                .map(|condition| condition.type_.as_str())
                .collect::<Vec<_>>(),
            [ACCEPTED, READY]
        );
        assert!(is_true(&list, ACCEPTED) && !is_true(&list, FINISHED));
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let mut list = Vec::new();
        set(
            &mut list,
            1,
            1,
            false,
            reasons::STORE_FAILED,
            &"é".repeat(LONGEST_MESSAGE),
        );
        assert!(list[0].message.len() <= LONGEST_MESSAGE && list[0].message.ends_with("é…"));
        assert_eq!(truncated("short"), "short");
    }

    #[test]
    fn a_reason_that_kubernetes_would_refuse_goes_into_the_message() {
        let mut list = Vec::new();
        set(&mut list, 1, 1, false, "it broke", "badly");
        assert_eq!(
            (list[0].reason.as_str(), list[0].message.as_str()),
            (reasons::OTHER_FAILURE, "it broke: badly")
        );
        assert!(!is_reason("") && !is_reason("1st") && !is_reason("a b") && is_reason("GuestPanicked"));
    }

    #[test]
    fn an_ended_job_says_so_in_two_conditions_and_runs_no_more() {
        let mut list = Vec::new();
        let mut conditions = Conditions::new(&mut list, Some(1), at(1));
        conditions.set(RUNNING, true, reasons::STARTED, "");
        assert!(!conditions.set_finished(Phase::Running, reasons::STARTED, ""));
        assert!(conditions.set_finished(Phase::Failed, reasons::DEADLINE_EXCEEDED, "too late"));
        assert!(is_true(&list, FINISHED) && is_true(&list, FAILED) && !is_true(&list, RUNNING));
        assert_eq!(
            find(&list, FINISHED).map(|condition| condition.reason.as_str()),
            Some(reasons::FAILED)
        );
        assert_eq!(
            find(&list, FAILED).map(|condition| condition.reason.as_str()),
            Some(reasons::DEADLINE_EXCEEDED)
        );
        assert!(find(&list, SUSPENDED).is_none());
    }
}
