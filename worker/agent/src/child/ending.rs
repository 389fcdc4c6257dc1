//! How a child ended, and what that means for the attempts that ran in it. Pure.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use prover_wire::protocol::FailureClass;
use rustix::process::Signal;

use super::runner::ProcessEnd;

/// Reason of what ran in a container that has ended. Only the pod's status tells why: the coordinator, which watches
/// pods, looks for this word and judges anew where the container was killed for its memory.
pub(crate) const CONTAINER_ENDED: &str = "ContainerEnded";

/// Why the agent itself killed a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Killed {
    /// It was silent for this long.
    Hung(Duration),
    /// It did not read its commands.
    NotReading,
    /// Its session ended while the process went on.
    SessionEnded,
    /// An attempt that was stopped did not leave it.
    ToStopAttempt,
    /// It was asked to end and did not in time.
    ToEnd,
}

/// How a child ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChildEnd {
    /// What the attempts that ran in it are reported with; none where the agent wanted the end.
    pub(crate) class: Option<FailureClass>,
    /// Short CamelCase word.
    pub(crate) reason: &'static str,
    /// For people: what happened, with the child's last words.
    pub(crate) message: String,
}

/// What is known of an end.
#[derive(Clone, Debug)]
pub(crate) struct Evidence<'a> {
    /// How the process ended.
    pub(crate) end: ProcessEnd,
    /// What the agent did.
    pub(crate) killed: Option<Killed>,
    /// What speaks for a kill by the kernel for memory.
    pub(crate) out_of_memory: Option<&'static str>,
    /// Highest resident memory seen, in bytes; 0 where unknown.
    pub(crate) peak_memory_bytes: u64,
    /// Last lines of its output.
    pub(crate) last_words: &'a str,
    /// Device or lane that it served.
    pub(crate) device: &'a str,
    /// The agent asked it to end.
    pub(crate) asked_to_end: bool,
}

/// Tells crash, hang and out-of-memory kill apart.
pub(crate) fn judge(evidence: &Evidence<'_>) -> ChildEnd {
    let (class, reason, what) = cause(evidence);
    let mut message = format!("the backend process of device {} {what}", evidence.device);
    if class.is_some() && !evidence.last_words.is_empty() {
        message.push_str(". Its last words:\n");
        message.push_str(evidence.last_words);
    }
    ChildEnd {
        class,
        reason,
        message: prover_wire::limits::cut_text(&message),
    }
}

fn cause(evidence: &Evidence<'_>) -> (Option<FailureClass>, &'static str, String) {
    match evidence.killed {
        Some(Killed::Hung(silence)) => {
            let what = format!(
                "was silent for {:.1} s and was killed: it hangs, or the machine is so overloaded that it does not \
                 get a processor",
                silence.as_secs_f64()
            );
            return (Some(FailureClass::ChildHung), "BackendHung", what);
        }
        Some(Killed::NotReading) => {
            let what = "did not read the agent's commands and was killed".to_owned();
            return (Some(FailureClass::ChildHung), "BackendHung", what);
        }
        Some(Killed::SessionEnded) => {
            let what = "ended its session without ending itself and was killed".to_owned();
            return (Some(FailureClass::ChildCrashed), "BackendCrashed", what);
        }
        Some(Killed::ToStopAttempt) => {
            return (
                None,
                "Stopped",
                "was killed, since a stopped attempt did not leave it".to_owned(),
            );
        }
        Some(Killed::ToEnd) => return (None, "Stopped", "was killed at the agent's end".to_owned()),
        None if evidence.asked_to_end => return (None, "Stopped", "ended as asked".to_owned()),
        None => {}
    }
    let crashed = Some(FailureClass::ChildCrashed);
    let status = match evidence.end {
        ProcessEnd::Exit(status) => status,
        ProcessEnd::Unknown => return (crashed, "BackendCrashed", "ended in an unknown way".to_owned()),
        ProcessEnd::ContainerEnded => {
            let what =
                "ended with its container. `kubectl describe pod` tells why; a container that reaches its \
                        memory limit ends like this"
                    .to_owned();
            return (crashed, CONTAINER_ENDED, what);
        }
    };
    if let Some(signal) = status.signal() {
        return by_signal(signal, evidence);
    }
    let what = format!(
        "ended with exit code {} without being asked to",
        status.code().unwrap_or_default()
    );
    (crashed, "BackendCrashed", what)
}

fn by_signal(signal: i32, evidence: &Evidence<'_>) -> (Option<FailureClass>, &'static str, String) {
    let crashed = Some(FailureClass::ChildCrashed);
    match Signal::from_named_raw(signal) {
        Some(Signal::KILL) => match evidence.out_of_memory {
            Some(proof) => {
                let peak = match evidence.peak_memory_bytes {
                    0 => String::new(),
                    bytes => format!(" It used at most {} MiB.", bytes >> 20),
                };
                let what = format!(
                    "was killed by the kernel for its memory: {proof}.{peak} Give the worker more memory or choose \
                     a smaller segment"
                );
                (Some(FailureClass::ChildOutOfMemory), "BackendOutOfMemory", what)
            }
            None => (
                crashed,
                "BackendCrashed",
                "was killed by SIGKILL from outside".to_owned(),
            ),
        },
        Some(Signal::ILL) => {
            let what = "was killed by SIGILL (illegal instruction): it was built for another CPU. Use the build for \
                        the baseline x86-64"
                .to_owned();
            (crashed, "BackendBuiltForAnotherCpu", what)
        }
        Some(known) => {
            let what = format!("was killed by {}{}", name(known), meaning(known));
            (crashed, "BackendCrashed", what)
        }
        None => (
            crashed,
            "BackendCrashed",
            format!("was killed by signal {signal}"),
        ),
    }
}

fn name(signal: Signal) -> String {
    match signal {
        Signal::SEGV => "SIGSEGV".to_owned(),
        Signal::ABORT => "SIGABRT".to_owned(),
        Signal::BUS => "SIGBUS".to_owned(),
        Signal::FPE => "SIGFPE".to_owned(),
        Signal::TERM => "SIGTERM".to_owned(),
        other => format!("signal {}", other.as_raw()),
    }
}

fn meaning(signal: Signal) -> &'static str {
    match signal {
        Signal::SEGV => " (invalid memory access)",
        Signal::ABORT => " (it aborted itself)",
        Signal::BUS => " (bus error: often a full work directory in memory)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::process::ExitStatus;

    use super::*;

    fn mk_evidence(raw_status: i32) -> Evidence<'static> {
        Evidence {
            end: ProcessEnd::Exit(ExitStatus::from_raw(raw_status)),
            killed: None,
            out_of_memory: None,
            peak_memory_bytes: 0,
            last_words: "",
            device: "cpu-0",
            asked_to_end: false,
        }
    }

    #[test]
    fn a_kill_with_evidence_is_out_of_memory_and_tells_the_peak() {
        let end = judge(&Evidence {
            out_of_memory: Some("its limit was reached"),
            peak_memory_bytes: 300 << 20,
            ..mk_evidence(9)
        });
        assert_eq!(end.class, Some(FailureClass::ChildOutOfMemory));
        assert!(end.message.contains("300 MiB"), "{}", end.message);
    }

    #[test]
    fn a_kill_without_evidence_came_from_outside() {
        let end = judge(&mk_evidence(9));
        assert_eq!(end.class, Some(FailureClass::ChildCrashed));
        assert!(end.message.contains("SIGKILL from outside"), "{}", end.message);
    }

    #[test]
    fn an_own_kill_of_a_silent_child_is_a_hang_whatever_the_counters_say() {
        let end = judge(&Evidence {
            killed: Some(Killed::Hung(Duration::from_secs(30))),
            out_of_memory: Some("its limit was reached"),
            ..mk_evidence(9)
        });
        assert_eq!(end.class, Some(FailureClass::ChildHung));
        assert!(end.message.contains("30.0 s"), "{}", end.message);
    }

    #[test]
    fn an_illegal_instruction_says_that_the_build_is_for_another_cpu() {
        let end = judge(&mk_evidence(4));
        assert_eq!(end.reason, "BackendBuiltForAnotherCpu");
        assert!(end.message.contains("built for another CPU"), "{}", end.message);
    }

    #[test]
    fn a_crash_tells_the_signal_and_the_last_words() {
        let end = judge(&Evidence {
            last_words: "thread main panicked",
            ..mk_evidence(11)
        });
        assert_eq!(end.class, Some(FailureClass::ChildCrashed));
        assert!(end.message.contains("SIGSEGV"), "{}", end.message);
        assert!(end.message.ends_with("thread main panicked"), "{}", end.message);
    }

    #[test]
    fn an_exit_tells_its_code_even_when_it_is_zero() {
        assert!(judge(&mk_evidence(3 << 8)).message.contains("exit code 3"));
        let end = judge(&mk_evidence(0));
        assert_eq!(end.class, Some(FailureClass::ChildCrashed));
        assert!(end.message.contains("without being asked"), "{}", end.message);
    }

    #[test]
    fn the_end_of_a_container_has_a_reason_of_its_own_unless_the_agent_wanted_it() {
        let end = judge(&Evidence {
            end: ProcessEnd::ContainerEnded,
            ..mk_evidence(0)
        });
        assert_eq!(end.class, Some(FailureClass::ChildCrashed));
        assert_eq!(end.reason, "ContainerEnded");
        let asked = judge(&Evidence {
            end: ProcessEnd::ContainerEnded,
            asked_to_end: true,
            ..mk_evidence(0)
        });
        assert_eq!(asked.class, None);
    }

    #[test]
    fn an_end_that_the_agent_wanted_fails_no_attempt() {
        let asked = Evidence {
            asked_to_end: true,
            ..mk_evidence(0)
        };
        assert_eq!(judge(&asked).class, None);
        let stopped = Evidence {
            killed: Some(Killed::ToStopAttempt),
            ..mk_evidence(9)
        };
        assert_eq!(judge(&stopped).class, None);
    }
}
