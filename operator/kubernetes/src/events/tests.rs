use prover_crds::conditions::Conditions;
use prover_crds::{AttemptCounts, ProofResult};

use super::*;

const NOW: Timestamp = Timestamp(1_000_000);

fn mk_status(phase: Phase, reason: &str) -> ProofJobStatus {
    let mut status = ProofJobStatus {
        phase: Some(phase),
        reason: Some(reason.to_owned()),
        message: Some("words".to_owned()),
        ..ProofJobStatus::default()
    };
    let now = crate::status::time(NOW);
    let mut conditions = Conditions::new(&mut status.conditions, Some(1), now);
    conditions.set(conditions::ACCEPTED, phase != Phase::Pending, reason, "why");
    if phase == Phase::Suspended {
        conditions.set(conditions::SUSPENDED, true, reason, "");
    }
    status
}

fn told(
    before: &ProofJobStatus,
    after: &ProofJobStatus,
    chatter: &mut Chatter,
    now: Timestamp,
) -> Vec<String> {
    notes(before, after, chatter, now)
        .into_iter()
        .map(|note| note.reason)
        .collect()
}

#[test]
fn each_step_of_a_life_is_told_once() {
    let steps = [
        (
            mk_status(Phase::Queued, reasons::FETCHING_SOURCES),
            vec!["Accepted", "Queued"],
        ),
        (mk_status(Phase::Running, reasons::STARTED), vec!["Started"]),
        (mk_status(Phase::Running, reasons::STARTED), vec![]),
        (mk_status(Phase::Suspended, reasons::SUSPENDED), vec!["Suspended"]),
        (mk_status(Phase::Running, reasons::STARTED), vec!["Resumed"]),
        (mk_status(Phase::Succeeded, reasons::SUCCEEDED), vec!["Succeeded"]),
    ];
    let (mut before, mut chatter) = (ProofJobStatus::default(), Chatter::default());
    for (after, expected) in steps {
        // The reason of the condition Accepted stays what it was.
        let mut after = after;
        for condition in &mut after.conditions {
            if condition.type_ == conditions::ACCEPTED {
                condition.reason = reasons::ACCEPTED.to_owned();
            }
        }
        assert_eq!(
            told(&before, &after, &mut chatter, NOW),
            expected,
            "{:?}",
            after.phase
        );
        before = after;
    }
}

#[test]
fn refusals_and_failures_are_warnings_in_the_words_of_the_status() {
    let refused = mk_status(Phase::Pending, reasons::PROOF_NOT_OFFERED);
    let mut chatter = Chatter::default();
    let notes_of = |after: &ProofJobStatus, chatter: &mut Chatter| {
        notes(&ProofJobStatus::default(), after, chatter, NOW)
    };
    let of_refusal = notes_of(&refused, &mut chatter);
    assert_eq!(of_refusal.len(), 1);
    assert!(of_refusal[0].warning && of_refusal[0].reason == reasons::PROOF_NOT_OFFERED);
    assert_eq!(of_refusal[0].text, "why");
    let failed = mk_status(Phase::Failed, reasons::OUT_OF_MEMORY);
    let of_failure = notes_of(&failed, &mut chatter);
    let last = of_failure.last().unwrap();
    assert!(last.warning && last.reason == reasons::OUT_OF_MEMORY && last.text == "words");
}

#[test]
fn what_a_job_waits_for_is_told_when_it_changes_but_not_too_often() {
    let mut chatter = Chatter::default();
    let mut before = mk_status(Phase::Queued, reasons::WAITING_FOR_CAPACITY);
    told(&ProofJobStatus::default(), &before, &mut chatter, NOW);
    let soon = NOW + Milliseconds(CHATTER_INTERVAL.0 - 1);
    let after = mk_status(Phase::Queued, reasons::NO_WORKER_OF_BACKEND);
    before.conditions.clone_from(&after.conditions);
    assert!(told(&before, &after, &mut chatter, soon).is_empty());
    let later = NOW + CHATTER_INTERVAL;
    assert_eq!(told(&before, &after, &mut chatter, later), ["Queued"]);
}

#[test]
fn failed_and_lost_attempts_are_told_together() {
    let running = mk_status(Phase::Running, reasons::STARTED);
    let mut chatter = Chatter::default();
    let with = |failed: i64, lost: i64| {
        let mut status = running.clone();
        status.attempts = Some(AttemptCounts {
            failed,
            lost,
            ..AttemptCounts::default()
        });
        status
    };
    let first = notes(&running, &with(1, 0), &mut chatter, NOW);
    assert_eq!(first.len(), 1);
    assert!(notes(&running, &with(3, 2), &mut chatter, NOW).is_empty());
    let later = notes(&running, &with(4, 2), &mut chatter, NOW + CHATTER_INTERVAL);
    let words: Vec<_> = later.iter().map(|note| note.text.as_str()).collect();
    assert_eq!(
        words,
        [
            "3 attempts failed and are tried again, 4 in all",
            "2 attempts were lost with their workers and run elsewhere, 2 in all",
        ]
    );
}

#[test]
fn success_names_the_proof_and_a_model_claims_none() {
    let mut proved = mk_status(Phase::Succeeded, reasons::SUCCEEDED);
    proved.proof = Some(ProofResult {
        uri: "s3://bucket/jobs/uid/proof".to_owned(),
        ..ProofResult::default()
    });
    assert!(succeeded(&proved).contains("s3://bucket/jobs/uid/proof"));
    let mut emulated = mk_status(Phase::Succeeded, reasons::SUCCEEDED);
    emulated.emulated = true;
    assert!(succeeded(&emulated).contains("nothing was proved"));
}
