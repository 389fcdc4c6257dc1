use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use proptest::prelude::*;
use prover_crds::{Progress, conditions, reasons};

use super::*;

fn mk_status(phase: Phase, done: u32) -> ProofJobStatus {
    ProofJobStatus {
        observed_generation: Some(1),
        phase: Some(phase),
        progress: Some(Progress {
            summary: format!("{done}/9"),
            stages: Vec::new(),
        }),
        ..ProofJobStatus::default()
    }
}

const LATER: Timestamp = Timestamp(100_000);

fn since(last_write: Option<Timestamp>) -> Times {
    Times {
        first_wanted: Some(Timestamp(0)),
        last_write,
    }
}

#[test]
fn the_first_status_of_a_job_that_only_waits_is_held_back_for_a_moment() {
    let nothing = ProofJobStatus::default();
    let times = Times {
        first_wanted: Some(LATER),
        last_write: None,
    };
    let until = LATER + FIRST_WAIT_HOLD;
    let decided = |phase, now| plan_write(Some(&nothing), &mk_status(phase, 0), times, now);
    let held = WriteDecision::At(until, WriteReason::Changed);
    assert_eq!(decided(Phase::Queued, LATER), held);
    assert_eq!(decided(Phase::Queued, Timestamp(until.0 - 1)), held);
    assert_eq!(
        decided(Phase::Queued, until),
        WriteDecision::Now(WriteReason::Changed)
    );
    for phase in [Phase::Running, Phase::Pending, Phase::Suspended] {
        assert_eq!(
            decided(phase, LATER),
            WriteDecision::Now(WriteReason::Changed),
            "{phase:?}"
        );
    }
    assert_eq!(
        decided(Phase::Failed, LATER),
        WriteDecision::Now(WriteReason::Ended)
    );
    // A job that has a status already is not new.
    let refused = mk_status(Phase::Pending, 0);
    let decision = plan_write(Some(&refused), &mk_status(Phase::Queued, 0), times, LATER);
    assert_eq!(decision, WriteDecision::Now(WriteReason::Changed));
}

#[test]
fn what_is_written_is_not_written_again() {
    let status = mk_status(Phase::Running, 1);
    let decision = plan_write(Some(&status), &status.clone(), Times::default(), LATER);
    assert_eq!(decision, WriteDecision::Nothing);
}

#[test]
fn changes_that_somebody_waits_for_are_written_at_once() {
    let running = mk_status(Phase::Running, 1);
    let mut generation = running.clone();
    generation.observed_generation = Some(2);
    let mut condition = running.clone();
    condition.conditions.push(Condition {
        type_: conditions::RUNNING.to_owned(),
        status: "True".to_owned(),
        reason: reasons::STARTED.to_owned(),
        message: String::new(),
        observed_generation: None,
        last_transition_time: Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH),
    });
    for (what, wanted, reason) in [
        ("phase", mk_status(Phase::Suspended, 1), WriteReason::Changed),
        ("generation", generation, WriteReason::Changed),
        ("condition", condition, WriteReason::Changed),
        ("end", mk_status(Phase::Failed, 1), WriteReason::Ended),
    ] {
        let decision = plan_write(Some(&running), &wanted, since(Some(LATER)), LATER);
        assert_eq!(decision, WriteDecision::Now(reason), "{what}");
    }
    assert_eq!(
        plan_write(None, &running, since(Some(LATER)), LATER),
        WriteDecision::Now(WriteReason::Changed)
    );
}

#[test]
fn progress_waits_for_its_interval() {
    for (phase, interval) in [
        (Phase::Running, PROGRESS_INTERVAL),
        (Phase::Queued, WAIT_INTERVAL),
    ] {
        let (before, after) = (mk_status(phase, 1), mk_status(phase, 2));
        let last = Timestamp(LATER.0 - interval.0 + 1);
        assert_eq!(
            plan_write(Some(&before), &after, since(Some(last)), LATER),
            WriteDecision::At(Timestamp(LATER.0 + 1), WriteReason::Progress)
        );
        let last = Timestamp(LATER.0 - interval.0);
        assert_eq!(
            plan_write(Some(&before), &after, since(Some(last)), LATER),
            WriteDecision::Now(WriteReason::Progress)
        );
    }
}

fn phases() -> impl Strategy<Value = Phase> {
    prop_oneof![
        Just(Phase::Pending),
        Just(Phase::Queued),
        Just(Phase::Running),
        Just(Phase::Suspended),
        Just(Phase::Succeeded),
        Just(Phase::Failed),
    ]
}

proptest! {
    /// Whatever a job goes through, following the plan writes its last status, no end late, and progress no more
    /// often than allowed.
    #[test]
    fn following_the_plan_ends_with_the_last_status(
        steps in prop::collection::vec((phases(), 0_u32..5, 1_u64..4_000), 1..60)
    ) {
        let (mut written, mut last, mut now) = (None::<ProofJobStatus>, None, Timestamp(0));
        let mut wanted = ProofJobStatus::default();
        for (phase, done, passed) in steps {
            wanted = mk_status(phase, done);
            if let WriteDecision::Now(reason) = plan_write(written.as_ref(), &wanted, since(last), now) {
                if reason == WriteReason::Progress
                    && let Some(last) = last
                {
                    prop_assert!(now.0 - last.0 >= WAIT_INTERVAL.0);
                }
                (written, last) = (Some(wanted.clone()), Some(now));
            }
            if phase.is_terminal() {
                prop_assert_eq!(written.as_ref(), Some(&wanted));
            }
            now = now + Milliseconds(passed);
        }
        match plan_write(written.as_ref(), &wanted, since(last), now) {
            WriteDecision::Nothing => prop_assert_eq!(written, Some(wanted)),
            WriteDecision::At(at, _) => {
                prop_assert!(at.0 <= now.0 + PROGRESS_INTERVAL.0);
                prop_assert!(matches!(
                    plan_write(written.as_ref(), &wanted, since(last), at),
                    WriteDecision::Now(WriteReason::Progress)
                ));
            }
            WriteDecision::Now(_) => {}
        }
    }

    /// In no second more writes than allowed, and a refusal names a time at which there is room.
    #[test]
    fn the_budget_holds_in_every_second(waits in prop::collection::vec(0_u64..200, 1..300)) {
        let mut budget = Budget::default();
        let mut now = Timestamp(5);
        let mut taken: Vec<u64> = Vec::new();
        for wait in waits {
            now = now + Milliseconds(wait);
            match budget.take(now) {
                Ok(()) => taken.push(now.0),
                Err(later) => {
                    prop_assert!(later > now);
                    let mut again = Budget { written: budget.written.clone() };
                    prop_assert!(again.take(later).is_ok());
                }
            }
            let in_second = taken.iter().filter(|at| **at + SECOND.0 > now.0).count();
            prop_assert!(in_second <= PROGRESS_WRITES_PER_SECOND);
        }
    }
}
