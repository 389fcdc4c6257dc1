//! The planner against an agent in the test's own process. Programs run, nothing is proved.

#[path = "../common/mod.rs"]
mod common;
mod fake_agent;

use common::elf;
use fake_agent::FakeAgent;
use prover_backend::protocol::{
    AttemptCompleted, AttemptFailed, FailureClass, InputFormat, JobPlan, RunAttempt,
};

fn plan(kind: &str) -> JobPlan {
    JobPlan {
        system: "risc0".to_owned(),
        kind: kind.to_owned(),
        program: "program".to_owned(),
        input: "input".to_owned(),
        input_format: InputFormat::Raw.into(),
        segment_po2: 14,
        smallest_worker_memory_bytes: 8 << 30,
        proof_output: "proof".to_owned(),
        public_values_output: "public-values".to_owned(),
        max_in_flight: 1000,
        execute_only: kind == "ExecuteOnly",
        ..JobPlan::default()
    }
}

fn attempt(plan: JobPlan, attempt_number: u32) -> RunAttempt {
    RunAttempt {
        task_type: "plan".to_owned(),
        plan: Some(plan),
        attempt_number,
        ..RunAttempt::default()
    }
}

async fn run(
    agent: &mut FakeAgent,
    run: RunAttempt,
    program: &[u8],
    input: &[u8],
) -> Result<AttemptCompleted, AttemptFailed> {
    agent.begin(run, &[("program", program), ("input", input)]).await;
    agent.end().await
}

async fn failure(plan: JobPlan, program: &[u8], input: &[u8]) -> AttemptFailed {
    let mut agent = FakeAgent::start().await;
    let failed = run(&mut agent, attempt(plan, 1), program, input)
        .await
        .expect_err("it must fail");
    assert_eq!(
        agent.seen().count("verify"),
        0,
        "nothing concludes a job that failed"
    );
    failed
}

const MANY_STEPS: [u8; 8] = 8_000_u64.to_le_bytes();

#[tokio::test]
async fn tasks_are_submitted_while_the_program_runs_and_no_more_than_may_be_in_flight() {
    let mut agent = FakeAgent::start().await;
    let few = JobPlan {
        max_in_flight: 4,
        ..plan("Succinct")
    };
    agent
        .begin(
            attempt(few, 1),
            &[("program", &elf("fibonacci")), ("input", &MANY_STEPS)],
        )
        .await;
    agent.planner_waits().await;
    let early = {
        let mut seen = agent.seen();
        assert!(
            seen.most_unfinished <= 4,
            "{} tasks in flight",
            seen.most_unfinished
        );
        assert_eq!(seen.count("finalize"), 0, "the program has not ended");
        let early = seen.count("prove");
        seen.finish_all();
        early
    };
    let report = agent
        .end()
        .await
        .expect("it succeeds")
        .execution
        .expect("a report");
    let seen = agent.seen();
    assert!(
        report.segments > 4 && early < report.segments as usize,
        "{early} of {}",
        report.segments
    );
    assert_eq!(seen.count("prove"), report.segments as usize);
    assert_eq!(seen.count("join"), report.segments as usize - 1);
    assert_eq!(seen.tasks.iter().filter(|task| task.concludes_job).count(), 1);
    assert!(seen.artifacts["journal"].starts_with(&MANY_STEPS));
    assert_eq!((report.segment_po2, report.exit_code), (14, 0));
}

#[tokio::test]
async fn a_planner_that_runs_again_makes_the_same_tasks_and_uploads_no_segment_twice() {
    // The program draws random bytes, as every program with RISC Zero's own runtime does.
    let mut agent = FakeAgent::start().await;
    run(&mut agent, attempt(plan("Succinct"), 1), &elf("draws"), b"")
        .await
        .expect("it succeeds");
    let (tasks, journal) = {
        let mut seen = agent.seen();
        let segment = |name: &&String| name.starts_with("segment-");
        assert_eq!(seen.puts.iter().filter(segment).count(), seen.count("prove"));
        seen.puts.clear();
        (seen.tasks.clone(), seen.artifacts["journal"].clone())
    };
    // The fake agent checks that a request that comes again is the same one.
    run(&mut agent, attempt(plan("Succinct"), 2), &elf("draws"), b"")
        .await
        .expect("it succeeds again");
    let seen = agent.seen();
    assert_eq!(
        seen.puts,
        ["decision"],
        "bound already, so that the first one is used"
    );
    assert_eq!(seen.tasks, tasks);
    assert_eq!(seen.artifacts["journal"], journal);
}

#[tokio::test]
async fn a_planner_that_runs_again_keeps_the_segment_size_though_a_smaller_worker_came() {
    let automatic = |memory| JobPlan {
        segment_po2: 0,
        smallest_worker_memory_bytes: memory,
        ..plan("Composite")
    };
    let mut agent = FakeAgent::start().await;
    for (number, memory) in [(1, 4 << 30), (2, 1 << 30)] {
        let completed = run(
            &mut agent,
            attempt(automatic(memory), number),
            &elf("fibonacci"),
            &MANY_STEPS,
        )
        .await;
        assert_eq!(
            completed
                .expect("it succeeds")
                .execution
                .expect("a report")
                .segment_po2,
            17
        );
    }
}

#[tokio::test]
async fn jobs_do_not_share_their_randomness() {
    let mut journals = vec![];
    for _ in 0..2 {
        let mut agent = FakeAgent::start().await;
        run(&mut agent, attempt(plan("ExecuteOnly"), 1), &elf("draws"), b"")
            .await
            .expect("it succeeds");
        journals.push(agent.seen().artifacts["public-values"].clone());
    }
    assert_ne!(journals[0], journals[1]);
}

#[tokio::test]
async fn an_execution_that_differs_from_the_one_before_ends_the_job() {
    let mut agent = FakeAgent::start().await;
    agent
        .seen()
        .artifacts
        .insert("segment-0".to_owned(), b"of another execution".to_vec());
    let failed = run(
        &mut agent,
        attempt(plan("Composite"), 2),
        &elf("fibonacci"),
        &MANY_STEPS,
    )
    .await;
    let failed = failed.expect_err("it must fail");
    assert_eq!(
        (failed.reason.as_str(), failed.class()),
        ("ExecutionNotReproducible", FailureClass::Fatal)
    );
}

#[tokio::test]
async fn executing_only_leaves_the_public_values_and_no_tasks() {
    let mut agent = FakeAgent::start().await;
    let completed = run(
        &mut agent,
        attempt(plan("ExecuteOnly"), 1),
        &elf("fibonacci"),
        &MANY_STEPS,
    )
    .await;
    let report = completed.expect("it succeeds").execution.expect("a report");
    let seen = agent.seen();
    assert_eq!(
        (seen.tasks.len(), seen.puts.as_slice()),
        (0, &["decision".to_owned(), "public-values".to_owned()][..])
    );
    assert!(report.segments > 1 && report.user_cycles > 40_000 && report.total_cycles > report.user_cycles);
    assert_eq!(report.program_id.len(), 64);
}

/// Expected reason, plan, program, input, and a part of the message.
type Case<'a> = (&'a str, JobPlan, Vec<u8>, &'a [u8], &'a str);

#[tokio::test]
async fn what_the_user_got_wrong_is_told_as_bad_input_with_its_reason() {
    let fibonacci = elf("fibonacci");
    let spins = JobPlan {
        max_cycles: 30_000,
        ..plan("Composite")
    };
    let other_program = JobPlan {
        expected_program_id: "ab".repeat(32),
        ..plan("Succinct")
    };
    let frames = JobPlan {
        input_format: InputFormat::Frames.into(),
        ..plan("Succinct")
    };
    let cases: [Case; 9] = [
        (
            "GuestPanicked",
            plan("Succinct"),
            fibonacci.clone(),
            &[1],
            "input too short: need 4 bytes, got 1",
        ),
        ("CycleLimitExceeded", spins, elf("spins"), b"", "30000"),
        (
            "KeccakNotSupported",
            plan("Succinct"),
            elf("keccak"),
            b"",
            "software",
        ),
        (
            "NotAnElf",
            plan("Succinct"),
            b"#!/bin/sh".to_vec(),
            b"",
            "not an ELF file",
        ),
        (
            "ProgramIdMismatch",
            other_program,
            fibonacci.clone(),
            &MANY_STEPS,
            "abababab",
        ),
        (
            "InputMalformed",
            frames,
            fibonacci.clone(),
            &[9, 0, 0, 0, 1],
            "frame 0 at byte 0",
        ),
        (
            "ProofKindNotOffered",
            plan("Groth16"),
            fibonacci.clone(),
            &MANY_STEPS,
            "ask for Succinct",
        ),
        (
            "SegmentPo2OutOfRange",
            JobPlan {
                segment_po2: 30,
                ..plan("Succinct")
            },
            fibonacci.clone(),
            b"",
            "14 to 22",
        ),
        (
            "AssumptionMissing",
            plan("Succinct"),
            elf("composes"),
            &[5; 40],
            "spec.assumptions",
        ),
    ];
    for (reason, plan, program, input, text) in cases {
        let failed = failure(plan, &program, input).await;
        assert_eq!(
            (failed.reason.as_str(), failed.class()),
            (reason, FailureClass::InvalidInput),
            "{}",
            failed.message
        );
        assert!(failed.message.contains(text), "{reason}: {}", failed.message);
    }
}

#[tokio::test]
async fn an_assumption_that_is_no_receipt_is_told_by_its_place() {
    let mut agent = FakeAgent::start().await;
    let assumption = prover_backend::protocol::Assumption {
        proof: "assumption-0".to_owned(),
    };
    let with_assumption = JobPlan {
        assumptions: vec![assumption],
        ..plan("Succinct")
    };
    let inputs: [(&str, &[u8]); 3] = [
        ("program", &elf("composes")),
        ("input", &[5; 40]),
        ("assumption-0", b"no receipt"),
    ];
    agent.begin(attempt(with_assumption, 1), &inputs).await;
    let failed = agent.end().await.expect_err("it must fail");
    assert_eq!(
        (failed.reason.as_str(), failed.class()),
        ("AssumptionInvalid", FailureClass::InvalidInput)
    );
    assert!(failed.message.contains("assumption-0"), "{}", failed.message);
}

#[tokio::test]
async fn a_damaged_artifact_and_a_proof_that_does_not_hold_are_told_apart() {
    let mut agent = FakeAgent::start().await;
    let prove = RunAttempt {
        task_type: "prove".to_owned(),
        outputs: vec!["segment-receipt-0".to_owned()],
        attempt_number: 1,
        ..RunAttempt::default()
    };
    agent.begin(prove, &[("segment-0", b"damaged")]).await;
    let failed = agent.end().await.expect_err("it must fail");
    assert_eq!(
        (failed.reason.as_str(), failed.class()),
        ("ArtifactDamaged", FailureClass::Artifact)
    );

    let claim = risc0_zkvm::ReceiptClaim::ok(common::program("fibonacci").image_id(), b"made up".to_vec());
    let fake = risc0_zkvm::InnerReceipt::Fake(risc0_zkvm::FakeReceipt::new(claim));
    let fake = bincode::serialize(&risc0_zkvm::Receipt::new(fake, b"made up".to_vec())).expect("encodes");
    let verify = RunAttempt {
        task_type: "verify".to_owned(),
        parameters: br#"{"kind": "Succinct"}"#.to_vec(),
        attempt_number: 1,
        ..RunAttempt::default()
    };
    let inputs: [(&str, &[u8]); 3] = [
        ("program", &elf("fibonacci")),
        ("proof", &fake),
        ("public-values", b"made up"),
    ];
    agent.begin(verify, &inputs).await;
    let failed = agent.end().await.expect_err("it must fail");
    assert_eq!(
        (failed.reason.as_str(), failed.class()),
        ("ReceiptRefused", FailureClass::Fatal)
    );
}
