//! Jobs through a real coordinator: from the manifest to a terminal view, with workers that come and go.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use prover_coordinator::{JobPolicy, Phase, TaskState};
use prover_crds::{ProofKind, ProofSystem};
use prover_wire::protocol::coordinator_message::Message as FromCoordinator;
use prover_wire::protocol::{self as wire, FailureClass, call};
use support::{
    FakeWorker, ReadingClock, finished, mk_description, mk_fixture, mk_fixture_with, mk_graph, mk_hello,
    mk_job, mk_job_of, mk_success, mk_task, until,
};

#[tokio::test]
async fn a_job_of_two_workers_runs_to_its_verified_proof() {
    let fixture = mk_fixture_with(|config| config.clock = Arc::new(ReadingClock::default())).await;
    let first = FakeWorker::connect_risc0(&fixture, "first").await;
    let second = FakeWorker::connect_risc0(&fixture, "second").await;
    tokio::spawn(first.work(4));
    tokio::spawn(second.work(4));
    let job = fixture
        .submit(mk_job_of("fibonacci", ProofSystem::Risc0, ProofKind::Succinct))
        .await;
    let view = finished(&job).await;

    assert_eq!(
        (view.phase, &*view.reason, &*view.message),
        (Phase::Succeeded, "Succeeded", "")
    );
    assert!(!view.bad_input && !view.emulated);
    let stages: Vec<_> = view
        .stages
        .iter()
        .map(|stage| (&*stage.name, stage.done, stage.total))
        .collect();
    assert_eq!(
        stages,
        [
            ("Execute", 1, 1),
            ("Prove", 4, 4),
            ("Join", 1, 1),
            ("Verify", 1, 1)
        ]
    );
    assert_eq!(view.tasks.len(), 7);
    for task in view.tasks.iter() {
        assert_eq!((task.state, task.attempts), (TaskState::Succeeded, 1), "{task:?}");
        assert!(
            task.worker
                .as_deref()
                .is_some_and(|worker| ["first", "second"].contains(&worker)),
            "{task:?}"
        );
        assert!(task.started_at.is_some() && task.ended_at.is_some(), "{task:?}");
    }
    let execution = view.execution.as_ref().unwrap();
    assert_eq!((execution.segments, execution.total_cycles), (4, 262_144));
    let proof = view.proof.as_ref().unwrap();
    assert_eq!(proof.report.verifier, "made up");
    assert!(
        proof.proof.key.contains("/attempts/") && proof.proof.key.ends_with("/proof"),
        "{}",
        proof.proof.key
    );
    assert_eq!(view.public_values, proof.public_values);
    assert_eq!(view.attempts, 7);
    assert!(
        view.device_seconds > 0.0 && view.effective_hz.is_some(),
        "{view:?}"
    );
    assert_eq!(execution.gas, Some(300_000));
    assert_eq!(execution.public_values_sha256, "cd".repeat(32));
    assert!(view.pgu_per_second > view.effective_hz, "{view:?}");
    assert!(
        view.started_at.unwrap() >= view.submitted_at
            && view.finished_at.unwrap() >= view.started_at.unwrap()
    );
    assert_eq!(fixture.metric("prover_coordinator_completions_total"), 7.0);
    assert_eq!(fixture.metric("prover_coordinator_jobs_finished_total"), 1.0);
}

#[tokio::test]
async fn an_emulated_job_says_so_and_claims_no_proof() {
    let fixture = mk_fixture().await;
    let worker = FakeWorker::connect(&fixture, "worker").await;
    tokio::spawn(worker.work(2));
    let job = fixture.submit(mk_job("emulated")).await;
    let view = finished(&job).await;
    assert_eq!(view.phase, Phase::Succeeded);
    assert!(view.emulated);
    assert_eq!(view.proof, None);
}

#[tokio::test]
async fn the_planner_is_told_its_job_and_its_sources() {
    use prost::Message;
    let fixture = mk_fixture().await;
    let mut worker = FakeWorker::connect_risc0(&fixture, "worker").await;
    let mut job = mk_job_of("planned", ProofSystem::Risc0, ProofKind::Succinct);
    job.spec.max_cycles = Some(1_000_000);
    job.spec.segment_po2 = Some(17);
    job.spec.input = Some(prover_crds::Input {
        text: Some("hello".to_owned()),
        ..prover_crds::Input::default()
    });
    fixture.submit(job).await;
    let assign = worker.expect_assign().await;
    assert_eq!(
        (assign.task_type.as_str(), assign.epoch, assign.attempt_number),
        ("plan", 1, 1)
    );
    assert_eq!(
        (assign.job_id.as_str(), assign.artifact_prefix.as_str()),
        ("uid-planned", "jobs/uid-planned")
    );
    let names: Vec<_> = assign
        .inputs
        .iter()
        .map(|input| (input.name.as_str(), input.size_bytes))
        .collect();
    assert_eq!(names, [("program", 8), ("input", 5)]);
    assert_eq!(assign.inputs[0].key, "jobs/uid-planned/sources/program");
    let plan = prover_backend::protocol::JobPlan::decode(assign.plan.as_slice()).unwrap();
    assert_eq!((plan.system.as_str(), plan.kind.as_str()), ("risc0", "Succinct"));
    assert_eq!(
        (plan.max_cycles, plan.segment_po2, plan.segment_po2_reduction),
        (1_000_000, 17, 0)
    );
    assert_eq!((plan.program.as_str(), plan.input.as_str()), ("program", "input"));
    assert_eq!(
        (plan.proof_output.as_str(), plan.public_values_output.as_str()),
        ("proof", "public-values")
    );
    assert_eq!(plan.smallest_worker_memory_bytes, 16 << 30);
    assert!(
        !plan.report_gas,
        "it costs another execution, and nobody asked for it"
    );
    assert!(plan.max_in_flight >= 1 && !plan.execute_only);
}

#[tokio::test]
async fn a_job_without_a_backend_waits_with_its_reason_and_starts_when_a_worker_comes() {
    let fixture = mk_fixture().await;
    let job = fixture.submit(mk_job("early")).await;
    assert_eq!(job.id(), None);
    let view = job.view();
    assert_eq!((view.phase, &*view.reason), (Phase::Queued, "NoWorkerOfBackend"));
    assert!(view.message.contains("emulated"), "{}", view.message);
    let worker = FakeWorker::connect(&fixture, "late").await;
    tokio::spawn(worker.work(1));
    let view = finished(&job).await;
    assert_eq!(view.phase, Phase::Succeeded);
    assert!(job.id().is_some());
}

#[tokio::test]
async fn a_kind_that_the_connected_backend_does_not_make_is_refused_with_what_it_makes() {
    let fixture = mk_fixture().await;
    let _worker = FakeWorker::connect_risc0(&fixture, "worker").await;
    let error = fixture
        .refuse(mk_job_of("wrong-kind", ProofSystem::Risc0, ProofKind::Groth16))
        .await;
    assert_eq!((error.reason(), error.bad_input()), ("KindNotOffered", true));
    let message = error.to_string();
    assert!(
        message.contains("made-up 1.0.0 does not make risc0 proofs of kind Groth16"),
        "{message}"
    );
    assert!(message.contains("it offers Succinct"), "{message}");
}

#[tokio::test]
async fn a_waiting_job_fails_when_the_backend_that_comes_does_not_make_its_kind() {
    let fixture = mk_fixture().await;
    let job = fixture
        .submit(mk_job_of("wrong-kind", ProofSystem::Risc0, ProofKind::Composite))
        .await;
    let _worker = FakeWorker::connect_risc0(&fixture, "worker").await;
    let view = finished(&job).await;
    assert_eq!(
        (view.phase, &*view.reason, view.bad_input),
        (Phase::Failed, "KindNotOffered", true)
    );
}

/// A worker whose backend would make Groth16 proofs, but for what it says.
fn mk_withholding_hello() -> wire::WorkerHello {
    let mut description = mk_description("risc0", "Succinct", false);
    description.withheld = vec![prover_backend::protocol::WithheldProof {
        system: "risc0".to_owned(),
        kind: "Groth16".to_owned(),
        reason: "CircuitsMissing".to_owned(),
        message: "the circuits at /circuits are incomplete: .complete is missing".to_owned(),
    }];
    mk_hello("worker", &description)
}

#[tokio::test]
async fn a_kind_that_is_withheld_is_refused_with_what_is_missing_and_the_workers_are_shown_with_it() {
    let fixture = mk_fixture().await;
    let _worker = FakeWorker::connect_as(&fixture, mk_withholding_hello()).await;
    let error = fixture
        .refuse(mk_job_of("wrap", ProofSystem::Risc0, ProofKind::Groth16))
        .await;
    assert_eq!((error.reason(), error.bad_input()), ("CircuitsMissing", false));
    assert!(
        error
            .to_string()
            .contains("/circuits are incomplete: .complete is missing"),
        "{error}"
    );
    let mut cluster = fixture.coordinator.watch_cluster();
    let view = cluster
        .wait_for(|view| !view.proofs.is_empty())
        .await
        .unwrap()
        .clone();
    let [group] = view.proofs.as_slice() else {
        panic!("{view:?}")
    };
    assert_eq!(&*group.group, "test");
    assert_eq!(
        group.offered.iter().collect::<Vec<_>>(),
        [&("risc0".to_owned(), "Succinct".to_owned())]
    );
    let [withheld] = group.withheld.as_slice() else {
        panic!("{group:?}")
    };
    assert_eq!((withheld.kind.as_str(), withheld.workers), ("Groth16", 1));
}

#[tokio::test]
async fn a_waiting_job_fails_with_what_is_missing_once_a_backend_says_so() {
    let fixture = mk_fixture().await;
    let job = fixture
        .submit(mk_job_of("wrap", ProofSystem::Risc0, ProofKind::Groth16))
        .await;
    let _worker = FakeWorker::connect_as(&fixture, mk_withholding_hello()).await;
    let view = finished(&job).await;
    assert_eq!(
        (view.phase, &*view.reason, view.bad_input),
        (Phase::Failed, "CircuitsMissing", false)
    );
    assert!(view.message.contains(".complete is missing"), "{}", view.message);
}

#[tokio::test]
async fn a_waiting_job_can_be_cancelled() {
    let fixture = mk_fixture().await;
    let job = fixture.submit(mk_job("early")).await;
    job.cancel().await.unwrap();
    assert_eq!(finished(&job).await.phase, Phase::Cancelled);
}

#[tokio::test]
async fn a_job_that_is_cancelled_when_it_is_submitted_ends_though_no_worker_is_there() {
    let fixture = mk_fixture().await;
    let mut cancelled = mk_job("cancelled");
    cancelled.spec.cancel = true;
    let job = fixture.submit(cancelled).await;
    assert_eq!(finished(&job).await.phase, Phase::Cancelled);
}

#[tokio::test]
async fn a_waiting_job_fails_when_its_deadline_passes() {
    let fixture = mk_fixture().await;
    let job = fixture.submit(mk_job("early")).await;
    let passed = JobPolicy {
        priority: 0,
        deadline: Some(prover_coordinator::Timestamp(1)),
        active_deadline: None,
        max_workers: None,
        suspended: false,
    };
    job.set_policy(passed).await.unwrap();
    let view = finished(&job).await;
    assert_eq!((view.phase, &*view.reason), (Phase::Failed, "DeadlineExceeded"));
}

#[tokio::test]
async fn the_same_job_submitted_twice_is_one_job() {
    let fixture = mk_fixture().await;
    let mut worker = FakeWorker::connect(&fixture, "worker").await;
    let first = fixture.submit(mk_job("twice")).await;
    let second = fixture.submit(mk_job("twice")).await;
    assert_eq!(first.id(), second.id());
    worker.plan(1).await;
    tokio::spawn(worker.work(1));
    assert_eq!(finished(&first).await.phase, Phase::Succeeded);
    assert_eq!(finished(&second).await.phase, Phase::Succeeded);
}

#[tokio::test]
async fn a_completion_that_comes_twice_counts_once() {
    let fixture = mk_fixture().await;
    let mut worker = FakeWorker::connect(&fixture, "worker").await;
    let job = fixture.submit(mk_job("duplicate")).await;
    worker.plan(1).await;
    let prove = worker.expect_assign_of("prove").await;
    worker.start(&prove).await;
    worker.succeed(&prove).await;
    assert!(worker.expect_acknowledgement(prove.attempt_id).await);
    worker.succeed(&prove).await;
    // Acknowledged again, so that the worker forgets it, whatever is said of it.
    worker.expect_acknowledgement(prove.attempt_id).await;
    tokio::spawn(worker.work(1));
    let view = finished(&job).await;
    assert_eq!(view.phase, Phase::Succeeded);
    let stage = view.stages.iter().find(|stage| &*stage.name == "Prove").unwrap();
    assert_eq!((stage.done, stage.total), (1, 1));
}

#[tokio::test]
async fn a_failure_is_acknowledged_so_that_its_worker_can_leave() {
    let fixture = mk_fixture().await;
    let mut worker = FakeWorker::connect(&fixture, "worker").await;
    let job = fixture.submit(mk_job("failure")).await;
    worker.plan(1).await;
    let prove = worker.expect_assign_of("prove").await;
    worker.start(&prove).await;
    worker
        .fail(&prove, wire::FailureClass::Retryable, "Unlucky", "try again")
        .await;
    assert!(worker.expect_acknowledgement(prove.attempt_id).await);
    job.cancel().await.unwrap();
}

#[tokio::test]
async fn a_running_attempt_survives_a_broken_stream_that_comes_back() {
    let fixture = mk_fixture().await;
    let mut worker = FakeWorker::connect(&fixture, "worker").await;
    let job = fixture.submit(mk_job("reconnect")).await;
    worker.plan(1).await;
    let prove = worker.expect_assign_of("prove").await;
    worker.start(&prove).await;
    until(&job, "the start", |view| {
        view.tasks
            .iter()
            .any(|task| &*task.task_type == "prove" && task.state == TaskState::Running)
    })
    .await;
    drop(worker);
    fixture.until_connected(0).await;

    let mut hello = mk_hello("worker", &mk_description("emulated", "Emulated", true));
    hello.held = vec![wire::HeldAttempt {
        attempt_id: prove.attempt_id,
        started: true,
        completed: false,
        ..wire::HeldAttempt::default()
    }];
    let mut worker = FakeWorker::connect_as(&fixture, hello).await;
    assert_eq!(worker.welcome.stop, Vec::<u64>::new());
    worker.succeed(&prove).await;
    assert!(worker.expect_acknowledgement(prove.attempt_id).await);
    tokio::spawn(worker.work(1));
    let view = finished(&job).await;
    assert_eq!(view.phase, Phase::Succeeded);
    let prove = view
        .tasks
        .iter()
        .find(|task| &*task.task_type == "prove")
        .unwrap();
    assert_eq!(prove.attempts, 1);
}

#[tokio::test]
async fn an_attempt_that_the_coordinator_does_not_know_is_stopped_in_the_welcome() {
    let fixture = mk_fixture().await;
    let mut hello = mk_hello("worker", &mk_description("emulated", "Emulated", true));
    hello.held = vec![wire::HeldAttempt {
        attempt_id: 4711,
        started: true,
        completed: false,
        ..wire::HeldAttempt::default()
    }];
    let worker = FakeWorker::connect_as(&fixture, hello).await;
    assert_eq!(worker.welcome.stop, [4711]);
}

#[tokio::test]
async fn the_attempts_of_a_worker_that_is_gone_run_elsewhere_at_once() {
    let fixture = mk_fixture().await;
    let mut dying = FakeWorker::connect(&fixture, "dying").await;
    let job = fixture.submit(mk_job("rerun")).await;
    dying.plan(1).await;
    let prove = dying.expect_assign_of("prove").await;
    dying.start(&prove).await;
    until(&job, "the start", |view| {
        view.tasks.iter().any(|task| task.state == TaskState::Running)
    })
    .await;
    let mut other = FakeWorker::connect(&fixture, "other").await;
    let asked = Instant::now();
    fixture.coordinator.worker_gone("dying").await;
    let again = other.expect_assign_of("prove").await;
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert_ne!(again.attempt_id, prove.attempt_id);
    assert_eq!(again.attempt_number, 2);
    other.start(&again).await;
    other.succeed(&again).await;
    tokio::spawn(other.work(1));
    let view = finished(&job).await;
    assert_eq!(view.phase, Phase::Succeeded);
    let prove = view
        .tasks
        .iter()
        .find(|task| &*task.task_type == "prove")
        .unwrap();
    assert_eq!((prove.attempts, prove.worker.as_deref()), (2, Some("other")));
    assert_eq!(dying.end().await.message(), "this worker was reported gone");
    let mut cluster = fixture.coordinator.watch_cluster();
    let left = cluster.wait_for(|view| view.workers.len() == 1 && &*view.workers[0].worker_id == "other");
    tokio::time::timeout(support::SOON, left).await.unwrap().unwrap();
}

#[tokio::test]
async fn cancelling_stops_running_attempts_within_a_second() {
    let fixture = mk_fixture().await;
    let mut worker = FakeWorker::connect(&fixture, "worker").await;
    let job = fixture.submit(mk_job("cancelled")).await;
    worker.plan(1).await;
    let prove = worker.expect_assign_of("prove").await;
    worker.start(&prove).await;
    let asked = Instant::now();
    job.cancel().await.unwrap();
    let stop = worker.expect_stop(prove.attempt_id).await;
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!(stop.reason, "Cancelled");
    assert_eq!(finished(&job).await.phase, Phase::Cancelled);
    // What it made meanwhile is acknowledged, and discarded.
    worker.succeed(&prove).await;
    assert!(!worker.expect_acknowledgement(prove.attempt_id).await);
}

#[tokio::test]
async fn the_view_of_a_job_that_ends_tells_at_once_what_became_of_tasks_that_were_shown_before() {
    let fixture = mk_fixture().await;
    let mut worker = FakeWorker::connect(&fixture, "worker").await;
    let job = fixture.submit(mk_job("dropped")).await;
    worker.plan(3).await;
    until(&job, "the tasks", |view| view.tasks.len() == 6).await;
    job.cancel().await.unwrap();
    let view = finished(&job).await;
    let dropped = view.tasks.iter().filter(|task| task.state == TaskState::Dropped);
    assert_eq!(dropped.count(), 5, "{view:#?}");
}

#[tokio::test]
async fn a_suspended_job_goes_on_when_it_is_resumed() {
    let fixture = mk_fixture().await;
    let worker = FakeWorker::connect(&fixture, "worker").await;
    let mut manifest = mk_job("suspended");
    manifest.spec.suspend = true;
    let job = fixture.submit(manifest.clone()).await;
    until(&job, "suspension", |view| view.phase == Phase::Suspended).await;
    manifest.spec.suspend = false;
    job.set_policy(prover_coordinator::policy(&manifest.spec))
        .await
        .unwrap();
    tokio::spawn(worker.work(1));
    assert_eq!(finished(&job).await.phase, Phase::Succeeded);
}

#[tokio::test]
async fn a_concluding_task_that_verified_nothing_fails_the_job() {
    type Change = fn(&mut wire::AttemptSucceeded);
    let cases: [(&str, Change, &str); 3] = [
        (
            "no-report",
            |success| success.proof = Vec::new(),
            "reported no verified proof",
        ),
        (
            "no-artifact",
            |success| success.outputs.retain(|output| output.name != "proof"),
            "reported as artifact \"proof\", which does not exist",
        ),
        (
            "no-public-values",
            |success| success.outputs.retain(|output| output.name != "public-values"),
            "reported as artifact \"public-values\", which does not exist",
        ),
    ];
    for (name, break_it, expected) in cases {
        let fixture = mk_fixture().await;
        let mut worker = FakeWorker::connect_risc0(&fixture, "worker").await;
        let job = fixture
            .submit(mk_job_of(name, ProofSystem::Risc0, ProofKind::Succinct))
            .await;
        worker.plan(1).await;
        for task_type in ["prove", "join"] {
            let assign = worker.expect_assign_of(task_type).await;
            worker.start(&assign).await;
            worker.succeed(&assign).await;
        }
        let verify = worker.expect_assign_of("verify").await;
        worker.start(&verify).await;
        let mut success = mk_success(&verify);
        break_it(&mut success);
        worker.send(success).await;
        let view = finished(&job).await;
        assert_eq!(
            (view.phase, &*view.reason),
            (Phase::Failed, "InvalidConclusion"),
            "{name}: {view:?}"
        );
        assert!(view.message.contains(expected), "{name}: {}", view.message);
        assert!(!worker.expect_acknowledgement(verify.attempt_id).await, "{name}");
        assert_eq!(view.proof, None);
    }
}

#[tokio::test]
async fn a_task_that_verifies_nothing_may_not_be_submitted_as_the_conclusion() {
    let fixture = mk_fixture().await;
    let mut worker = FakeWorker::connect(&fixture, "worker").await;
    fixture.submit(mk_job("conclusion")).await;
    let plan = worker.expect_assign().await;
    worker.start(&plan).await;
    let mut task = mk_task("prove-0", "prove", Vec::new());
    task.concludes_job = true;
    let answer = worker.submit(plan.attempt_id, vec![task]).await;
    assert_eq!(answer.error_kind(), wire::ErrorKind::InvalidArgument);
    assert!(answer.error.contains("prove"), "{}", answer.error);
    // The stream lives on, and the attempt may do better.
    assert_eq!(worker.submit(plan.attempt_id, mk_graph(1)).await.error, "");
}

#[tokio::test]
async fn failures_of_the_program_and_of_the_store_are_told_as_bad_input_with_their_own_words() {
    let cases = [
        (FailureClass::InvalidInput, "GuestPanicked", true),
        (FailureClass::Fatal, "StoreFull", true),
        (FailureClass::Fatal, "StoreNotWritable", true),
        (FailureClass::Fatal, "ProverBroken", false),
    ];
    for (class, reason, bad_input) in cases {
        let fixture = mk_fixture().await;
        let mut worker = FakeWorker::connect(&fixture, "worker").await;
        let job = fixture.submit(mk_job("failing")).await;
        let plan = worker.expect_assign().await;
        worker.start(&plan).await;
        worker.fail(&plan, class, reason, "its own words").await;
        let view = finished(&job).await;
        assert_eq!((view.phase, &*view.reason), (Phase::Failed, reason), "{view:?}");
        assert!(view.message.contains("its own words"), "{}", view.message);
        assert_eq!(view.bad_input, bad_input, "{reason}");
        assert_eq!(view.failed_attempts, 1);
    }
}

#[tokio::test]
async fn an_execution_ends_with_its_planner_and_shows_its_public_values() {
    let fixture = mk_fixture().await;
    let hello = mk_hello("worker", &mk_description("risc0", "ExecuteOnly", false));
    let mut worker = FakeWorker::connect_as(&fixture, hello).await;
    let job = fixture
        .submit(mk_job_of("execution", ProofSystem::Risc0, ProofKind::ExecuteOnly))
        .await;
    let plan = worker.expect_assign().await;
    worker.start(&plan).await;
    let artifact = Some(support::mk_artifact(&plan, "public-values"));
    let answer = worker
        .call(
            plan.attempt_id,
            call::Call::BindArtifact(wire::BindArtifact { artifact }),
        )
        .await;
    assert_eq!(
        (answer.error.as_str(), answer.artifact.unwrap().name.as_str()),
        ("", "public-values")
    );
    worker.succeed(&plan).await;
    let view = finished(&job).await;
    assert_eq!((view.phase, &view.proof), (Phase::Succeeded, &None), "{view:?}");
    assert_eq!(
        view.public_values.as_ref().map(|binding| binding.size_bytes),
        Some(42)
    );
    assert_eq!(
        view.execution.as_ref().map(|execution| execution.segments),
        Some(4)
    );
}

#[tokio::test]
async fn a_name_is_not_bound_to_a_key_of_somebody_else() {
    let fixture = mk_fixture().await;
    let mut worker = FakeWorker::connect(&fixture, "worker").await;
    let job = fixture.submit(mk_job("foreign")).await;
    let plan = worker.expect_assign().await;
    worker.start(&plan).await;
    let artifact = Some(prover_wire::artifact(
        "proof",
        "jobs/other/attempts/1/proof",
        [1; 32],
        1,
    ));
    let answer = worker
        .call(
            plan.attempt_id,
            call::Call::BindArtifact(wire::BindArtifact { artifact }),
        )
        .await;
    assert_eq!(answer.error_kind(), wire::ErrorKind::InvalidArgument);
    assert!(
        answer.error.contains("jobs/other/attempts/1/proof"),
        "{}",
        answer.error
    );

    worker.submit(plan.attempt_id, mk_graph(1)).await;
    worker.succeed(&plan).await;
    let prove = worker.expect_assign_of("prove").await;
    worker.start(&prove).await;
    let mut success = mk_success(&prove);
    success.outputs[0].key = "jobs/uid-foreign/attempts/999/prove-0".to_owned();
    worker.send(success).await;
    let view = finished(&job).await;
    assert_eq!(
        (view.phase, &*view.reason),
        (Phase::Failed, "ForeignArtifactKey"),
        "{view:?}"
    );
}

#[tokio::test]
async fn a_message_to_a_channel_that_is_sent_again_after_a_broken_stream_arrives_once() {
    let fixture = mk_fixture().await;
    let mut worker = FakeWorker::connect(&fixture, "worker").await;
    fixture.submit(mk_job("channel")).await;
    let plan = worker.expect_assign().await;
    worker.start(&plan).await;
    let send = |call_id, number, payload: &[u8]| wire::Call {
        call_id,
        attempt_id: plan.attempt_id,
        call: Some(call::Call::SendChannelMessage(wire::SendChannelMessage {
            request_id: String::new(),
            payload: payload.to_vec(),
            number,
        })),
    };
    worker.send(send(900, 0, b"one")).await;
    assert_eq!(worker.expect_answer(900).await.error, "");
    // The same call again, as after a stream that broke before the answer came, then another.
    worker.send(send(900, 0, b"one")).await;
    assert_eq!(worker.expect_answer(900).await.error, "");
    worker.send(send(901, 1, b"two")).await;
    assert_eq!(worker.expect_answer(901).await.error, "");
    let request_id = "@root".to_owned();
    worker
        .send(wire::Call {
            call_id: 902,
            attempt_id: plan.attempt_id,
            call: Some(call::Call::ReadChannel(wire::ReadChannel {
                request_id,
                start_offset: 0,
            })),
        })
        .await;
    for (offset, payload) in [(0, b"one"), (1, b"two")] {
        let told = worker
            .expect(|message| match message {
                FromCoordinator::ChannelMessage(told) if told.call_id == 902 => Some(told.clone()),
                _ => None,
            })
            .await;
        assert_eq!(
            (told.offset, told.payload.as_slice()),
            (offset, payload.as_slice())
        );
    }
}

#[tokio::test]
async fn a_forgotten_job_leaves_no_sources_in_the_store() {
    let fixture = mk_fixture().await;
    let worker = FakeWorker::connect(&fixture, "worker").await;
    tokio::spawn(worker.work(1));
    let job = fixture.submit(mk_job("forgotten")).await;
    assert_eq!(finished(&job).await.phase, Phase::Succeeded);
    let program = support::store_path(&fixture).join("jobs/uid-forgotten/sources/program");
    assert!(support::exists(&program));
    let mut views = job.watch();
    job.forget().await.unwrap();
    // The record is gone when its views end.
    while views.changed().await.is_ok() {}
    let gone = async {
        while support::exists(&program) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(support::SOON, gone).await.unwrap();
}

#[tokio::test]
async fn views_are_made_a_few_times_per_second_however_much_happens() {
    let fixture = mk_fixture().await;
    let job = fixture.submit(mk_job("views")).await;
    let mut views = job.watch();
    let counting = tokio::spawn(async move {
        let mut count = 0;
        while views.changed().await.is_ok() {
            count += 1;
            if views.borrow().phase.is_terminal() {
                break;
            }
        }
        count
    });
    let worker = FakeWorker::connect(&fixture, "worker").await;
    let started = Instant::now();
    tokio::spawn(worker.work(400));
    let view = finished(&job).await;
    assert_eq!(view.tasks.len(), 403);
    let count: u128 = counting.await.unwrap();
    // Each task changes at least four times; the phases are Queued with two reasons, Running and Succeeded.
    let allowed = started.elapsed().as_millis() / 200 + 6;
    assert!(count <= allowed, "{count} views in {:?}", started.elapsed());
}

#[tokio::test]
async fn a_task_that_no_message_can_carry_fails_its_job_and_not_its_workers_stream() {
    let fixture = mk_fixture().await;
    let mut worker = FakeWorker::connect(&fixture, "worker").await;
    let job = fixture.submit(mk_job("too-large")).await;
    let plan = worker.expect_assign().await;
    worker.start(&plan).await;
    assert_eq!(worker.submit(plan.attempt_id, mk_graph(60)).await.error, "");
    worker.succeed(&plan).await;
    for _ in 0..60 {
        let prove = worker.expect_assign_of("prove").await;
        worker.start(&prove).await;
        let mut success = mk_success(&prove);
        success.result = vec![0; 64 << 10];
        worker.send(success).await;
    }
    let view = finished(&job).await;
    assert_eq!(
        (view.phase, &*view.reason),
        (Phase::Failed, "AssignmentTooLarge"),
        "{}",
        view.message
    );
    assert!(view.message.contains("task type join"), "{}", view.message);
    let next = fixture.submit(mk_job("next")).await;
    tokio::spawn(worker.work(1));
    assert_eq!(finished(&next).await.phase, Phase::Succeeded);
}
