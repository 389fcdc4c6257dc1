//! How a backend's container ended, as the kubelet tells it, and what that makes of a failure which its agent could
//! only see as the end of the container. Pure: the engine holds the failures and feeds the core.
//!
//! Under cgroup v2 the kernel kills all processes of a container that runs out of memory, its supervisor too, so
//! that nobody inside can tell why; the kubelet can, a moment later.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use prover_core::{Event, FailureClass, Milliseconds, Timestamp, WorkerId};

/// Reason of a failure whose container has ended, as agents report it.
pub(crate) const CONTAINER_ENDED: &str = "ContainerEnded";
/// The kubelet's word for a container that was killed for its memory.
const OOM_KILLED: &str = "OOMKilled";
/// How long a failure waits for the kubelet's word.
const PATIENCE: Milliseconds = Milliseconds(3_000);
/// How long the kubelet's word counts for failures that are reported after it.
const MEMORY: Milliseconds = Milliseconds(10_000);
/// Failures that wait; further ones are judged without the kubelet's word.
const WAITING: usize = 1_024;
/// Ends that are remembered; the oldest goes first.
const ENDS: usize = 4_096;

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerEnd {
    /// Such as `OOMKilled` or `Error`.
    pub reason: Arc<str>,
    /// 137 after SIGKILL.
    pub exit_code: i32,
}

/// A container of a pod.
pub(crate) type ContainerKey = (Arc<str>, Arc<str>);

/// A failure that waits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeldFailure {
    pub(crate) worker: WorkerId,
    pub(crate) event: Event,
}

/// What is to be done with a failure now.
#[derive(Debug, PartialEq)]
pub(crate) enum Decision {
    /// It goes to the core as it is here.
    Judge(Event),
    /// The kubelet's word is waited for.
    Hold,
}

/// Failures that wait for the kubelet, and the kubelet's words that wait for failures.
#[derive(Debug, Default)]
pub(crate) struct Containers {
    waiting: VecDeque<(Timestamp, ContainerKey, HeldFailure)>,
    ends: BTreeMap<ContainerKey, (Timestamp, ContainerEnd)>,
    order: VecDeque<(Timestamp, ContainerKey)>,
}

/// Whether the failure of an attempt may be explained by how its container ended.
pub(crate) fn waits_for_container(event: &Event) -> bool {
    matches!(
        event,
        Event::AttemptFailed { class: FailureClass::ChildCrashed, reason, .. } if **reason == *CONTAINER_ENDED
    )
}

/// The failure in the light of how the container ended.
pub(crate) fn explain(event: Event, end: &ContainerEnd) -> Event {
    let Event::AttemptFailed {
        attempt,
        class,
        reason,
        message,
        usage,
    } = event
    else {
        return event;
    };
    let told = if end.reason.is_empty() {
        "no reason"
    } else {
        &end.reason
    };
    let message = format!(
        "{message} (the kubelet says: container ended with {told}, exit code {})",
        end.exit_code
    );
    let (class, reason) = if *end.reason == *OOM_KILLED {
        (FailureClass::ChildOutOfMemory, OOM_KILLED.into())
    } else {
        (class, reason)
    };
    Event::AttemptFailed {
        attempt,
        class,
        reason,
        message: message.into(),
        usage,
    }
}

impl Containers {
    /// Takes a failure that may be explained by its container's end.
    pub(crate) fn failed(&mut self, key: ContainerKey, held: HeldFailure, now: Timestamp) -> Decision {
        if let Some((at, end)) = self.ends.get(&key)
            && now <= *at + MEMORY
        {
            return Decision::Judge(explain(held.event, end));
        }
        if self.waiting.len() >= WAITING {
            return Decision::Judge(held.event);
        }
        self.waiting.push_back((now + PATIENCE, key, held));
        Decision::Hold
    }

    /// Takes the kubelet's word and answers the failures that it explains.
    pub(crate) fn ended(
        &mut self,
        key: &ContainerKey,
        end: &ContainerEnd,
        now: Timestamp,
    ) -> Vec<HeldFailure> {
        self.ends.insert(key.clone(), (now, end.clone()));
        self.order.push_back((now, key.clone()));
        while self.order.len() > ENDS || self.order.front().is_some_and(|(at, _)| *at + MEMORY < now) {
            let Some((at, oldest)) = self.order.pop_front() else {
                break;
            };
            // A later end of the same container is remembered for itself.
            if self.ends.get(&oldest).is_some_and(|(told, _)| *told == at) {
                self.ends.remove(&oldest);
            }
        }
        let (explained, others) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|(_, waits_for, _)| waits_for == key);
        self.waiting = others;
        let explained: VecDeque<(Timestamp, ContainerKey, HeldFailure)> = explained;
        explained
            .into_iter()
            .map(|(_, _, held)| HeldFailure {
                worker: held.worker,
                event: explain(held.event, end),
            })
            .collect()
    }

    /// When the next failure has waited for long enough.
    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.waiting.front().map(|(due, _, _)| *due)
    }

    /// A failure that has waited for long enough.
    pub(crate) fn overdue(&mut self, now: Timestamp) -> Option<HeldFailure> {
        self.waiting.front().filter(|(due, _, _)| *due <= now)?;
        self.waiting.pop_front().map(|(_, _, held)| held)
    }
}

#[cfg(test)]
mod tests {
    use prover_core::{AttemptId, Usage};

    use super::*;

    fn mk_failure(attempt: u64) -> HeldFailure {
        HeldFailure {
            worker: WorkerId(1),
            event: Event::AttemptFailed {
                attempt: AttemptId(attempt),
                class: FailureClass::ChildCrashed,
                reason: CONTAINER_ENDED.into(),
                message: "the connection ended".into(),
                usage: Usage::default(),
            },
        }
    }

    fn mk_key(container: &str) -> ContainerKey {
        ("uid".into(), container.into())
    }

    fn mk_end(reason: &str) -> ContainerEnd {
        ContainerEnd {
            reason: reason.into(),
            exit_code: 137,
        }
    }

    fn class_and_words(event: &Event) -> (FailureClass, String) {
        let Event::AttemptFailed { class, message, .. } = event else {
            panic!("no failure: {event:?}");
        };
        (*class, message.to_string())
    }

    #[test]
    fn a_failure_becomes_one_of_memory_when_the_kubelet_says_so() {
        let mut containers = Containers::default();
        let held = containers.failed(mk_key("backend-gpu-0"), mk_failure(1), Timestamp(1_000));
        assert_eq!(held, Decision::Hold);
        assert_eq!(containers.next_due(), Some(Timestamp(4_000)));
        let others = containers.ended(&mk_key("backend-gpu-1"), &mk_end("Error"), Timestamp(1_500));
        assert!(others.is_empty(), "another container's end explains nothing");
        let explained = containers.ended(&mk_key("backend-gpu-0"), &mk_end("OOMKilled"), Timestamp(2_000));
        let (class, words) = class_and_words(&explained[0].event);
        assert_eq!(class, FailureClass::ChildOutOfMemory);
        assert!(words.contains("the connection ended") && words.contains("OOMKilled, exit code 137"));
        assert_eq!(containers.next_due(), None);
    }

    #[test]
    fn the_kubelets_word_may_come_first_and_counts_for_a_while() {
        let mut containers = Containers::default();
        containers.ended(&mk_key("backend-cpu-0"), &mk_end("OOMKilled"), Timestamp(1_000));
        let Decision::Judge(event) =
            containers.failed(mk_key("backend-cpu-0"), mk_failure(1), Timestamp(2_000))
        else {
            panic!("the kubelet has spoken already");
        };
        assert_eq!(class_and_words(&event).0, FailureClass::ChildOutOfMemory);
        let later = containers.failed(mk_key("backend-cpu-0"), mk_failure(2), Timestamp(11_001));
        assert_eq!(
            later,
            Decision::Hold,
            "an old word does not explain a new failure"
        );
    }

    #[test]
    fn another_end_leaves_a_crash_a_crash_and_tells_of_itself() {
        let explained = explain(mk_failure(1).event, &mk_end("Error"));
        let (class, words) = class_and_words(&explained);
        assert_eq!(class, FailureClass::ChildCrashed);
        assert!(words.contains("Error, exit code 137"));
    }

    #[test]
    fn without_a_word_in_time_a_failure_is_judged_as_it_was_reported() {
        let mut containers = Containers::default();
        containers.failed(mk_key("backend-cpu-0"), mk_failure(1), Timestamp(0));
        assert_eq!(containers.overdue(Timestamp(2_999)), None);
        assert_eq!(containers.overdue(Timestamp(3_000)), Some(mk_failure(1)));
        assert_eq!(containers.overdue(Timestamp(3_000)), None);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut containers = Containers::default();
        for attempt in 0..WAITING as u64 {
            let held = containers.failed(mk_key("backend-cpu-0"), mk_failure(attempt), Timestamp(0));
            assert_eq!(held, Decision::Hold);
        }
        let one_more = containers.failed(mk_key("backend-cpu-0"), mk_failure(9), Timestamp(0));
        assert_eq!(one_more, Decision::Judge(mk_failure(9).event));
    }
}
