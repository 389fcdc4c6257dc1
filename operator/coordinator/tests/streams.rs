//! What the worker plane refuses, and what it does with streams that break, are replaced or don't read.

mod support;

use std::sync::Arc;

use prover_coordinator::{CoordinatorConfig, Phase};
use prover_runtime::ManualClock;
use prover_wire::protocol as wire;
use prover_wire::protocol::coordinator_message::Message as FromCoordinator;
use support::{
    FakeWorker, SOON, TOKEN, finished, mk_description, mk_fixture, mk_fixture_with, mk_hello, mk_job,
    open_stream,
};
use tonic::{Code, Status};

fn hello(id: &str) -> wire::WorkerHello {
    mk_hello(id, &mk_description("emulated", "Emulated", true))
}

async fn refused(change: impl FnOnce(&mut wire::WorkerHello)) -> Status {
    let fixture = mk_fixture().await;
    let mut hello = hello("worker");
    change(&mut hello);
    let Err(status) = FakeWorker::try_connect(&fixture, hello).await else {
        panic!("the hello was taken");
    };
    assert_eq!(fixture.metric("prover_coordinator_sessions_refused_total"), 1.0);
    status
}

#[tokio::test]
async fn a_stream_without_a_token_or_with_another_one_is_refused_before_anything_is_read() {
    let fixture = mk_fixture().await;
    let status = open_stream(&fixture, None).await.err().unwrap();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(
        status.message().contains("carries no bearer token"),
        "{}",
        status.message()
    );
    for wrong in ["", "another token", "the right tokem", "the right token "] {
        let status = open_stream(&fixture, Some(wrong)).await.err();
        let status = status.unwrap_or_else(|| panic!("{wrong:?} was taken"));
        assert_eq!(status.code(), Code::Unauthenticated, "{wrong:?}");
        assert!(!status.message().contains(TOKEN), "{}", status.message());
    }
}

#[tokio::test]
async fn a_worker_of_another_protocol_version_is_refused_with_both_versions() {
    let status = refused(|hello| hello.protocol_version = 9).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains("speaks version 9"),
        "{}",
        status.message()
    );
}

#[tokio::test]
async fn a_worker_that_has_seen_a_newer_coordinator_is_refused() {
    let status = refused(|hello| hello.highest_epoch = 2).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(
        status.message().contains("has seen epoch 2"),
        "{}",
        status.message()
    );
}

#[tokio::test]
async fn a_hello_that_was_long_on_its_way_does_not_take_the_place_of_a_newer_stream() {
    let fixture = mk_fixture().await;
    let numbered = |stream| wire::WorkerHello {
        stream,
        ..hello("worker")
    };
    let _newer = FakeWorker::try_connect(&fixture, numbered(2)).await.unwrap();
    let Err(late) = FakeWorker::try_connect(&fixture, numbered(1)).await else {
        panic!("the late hello was taken");
    };
    assert_eq!(late.code(), Code::Aborted);
    assert!(
        late.message().contains("opened stream 2 since"),
        "{}",
        late.message()
    );
    FakeWorker::try_connect(&fixture, numbered(3)).await.unwrap();
    // Another process of the same worker counts from one again.
    let restarted = wire::WorkerHello {
        process_nonce: 8,
        ..numbered(1)
    };
    FakeWorker::try_connect(&fixture, restarted).await.unwrap();
}

#[tokio::test]
async fn a_hello_that_passes_a_limit_or_contradicts_itself_is_refused() {
    let status = refused(|hello| hello.devices = vec![hello.devices[0].clone(); 65]).await;
    assert!(
        status.message().contains("devices has 65 entries"),
        "{}",
        status.message()
    );
    let status = refused(|hello| hello.backend.as_mut().unwrap().encoded = vec![0xff; 8]).await;
    assert!(
        status.message().contains("backend.encoded is malformed"),
        "{}",
        status.message()
    );
    let status = refused(|hello| hello.backend.as_mut().unwrap().version = "2".to_owned()).await;
    assert!(
        status.message().contains("its own description made-up 1.0.0"),
        "{}",
        status.message()
    );
}

#[tokio::test]
async fn a_stream_must_open_with_a_hello() {
    let fixture = mk_fixture().await;
    let (outgoing, mut incoming) = open_stream(&fixture, Some(TOKEN)).await.unwrap();
    outgoing
        .send(wire::AttemptStarted { attempt_id: 1 }.into())
        .await
        .unwrap();
    let status = incoming.message().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains("must be a hello"),
        "{}",
        status.message()
    );
}

#[tokio::test]
async fn a_message_that_is_too_large_ends_the_stream_with_its_reason() {
    let fixture = mk_fixture().await;
    let mut worker = FakeWorker::connect(&fixture, "worker").await;
    let progress = wire::AttemptProgress {
        attempt_id: 1,
        encoded: vec![0; 5 << 20],
    };
    worker.send(progress).await;
    let status = worker.end().await;
    assert!(status.message().contains("too large"), "{status:?}");
    // One that fits the envelope, but not the limit of its field.
    let mut worker = FakeWorker::connect(&fixture, "worker").await;
    let progress = wire::AttemptProgress {
        attempt_id: 1,
        encoded: vec![0; 65 << 10],
    };
    worker.send(progress).await;
    let status = worker.end().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(
        status.message().contains("progress.encoded has 66560 bytes"),
        "{status:?}"
    );
}

#[tokio::test]
async fn the_second_stream_of_a_worker_takes_the_place_of_the_first() {
    let fixture = mk_fixture().await;
    let mut first = FakeWorker::connect(&fixture, "worker").await;
    let second = FakeWorker::connect(&fixture, "worker").await;
    let status = first.end().await;
    assert_eq!(status.code(), Code::Aborted);
    assert!(
        status.message().contains("another stream of this worker"),
        "{}",
        status.message()
    );
    fixture.until_connected(1).await;
    let job = fixture.submit(mk_job("second")).await;
    tokio::spawn(second.work(1));
    assert_eq!(finished(&job).await.phase, Phase::Succeeded);
}

#[tokio::test]
async fn heartbeats_are_answered_with_their_number_and_shown() {
    let fixture = mk_fixture().await;
    let mut worker = FakeWorker::connect(&fixture, "worker").await;
    assert_eq!(worker.welcome.heartbeat_interval_ms, 2_000);
    worker
        .send(wire::Heartbeat {
            sequence: 7,
            attempts: Vec::new(),
            host_memory_used_bytes: 5,
        })
        .await;
    let answered = worker
        .expect(|message| match message {
            FromCoordinator::Heartbeat(answer) => Some(answer.sequence),
            _ => None,
        })
        .await;
    assert_eq!(answered, 7);
    let mut cluster = fixture.coordinator.watch_cluster();
    let shown = cluster.wait_for(|view| {
        view.workers
            .iter()
            .any(|worker| worker.host_memory_used_bytes == 5)
    });
    tokio::time::timeout(SOON, shown).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_worker_that_does_not_read_is_disconnected_and_the_others_go_on() {
    let fixture = mk_fixture_with(|config: &mut CoordinatorConfig| config.outbound_messages = 8).await;
    let deaf = FakeWorker::connect(&fixture, "deaf").await;
    // Each heartbeat is answered; nobody reads the answers, so the connection's windows fill, then the queue.
    let flood = async {
        let mut sequence = 0;
        while fixture.metric("prover_coordinator_slow_workers_total") == 0.0 {
            sequence += 1;
            let heartbeat = wire::Heartbeat {
                sequence,
                attempts: Vec::new(),
                host_memory_used_bytes: 0,
            };
            if deaf.outgoing.send(heartbeat.into()).await.is_err() {
                break;
            }
        }
    };
    tokio::time::timeout(SOON * 3, flood).await.unwrap();
    assert_eq!(fixture.metric("prover_coordinator_slow_workers_total"), 1.0);
    let reader = FakeWorker::connect(&fixture, "reader").await;
    let job = fixture.submit(mk_job("goes-on")).await;
    tokio::spawn(reader.work(2));
    assert_eq!(finished(&job).await.phase, Phase::Succeeded);
}

#[tokio::test]
async fn a_draining_worker_gets_nothing_new_and_is_told_when_it_is_empty() {
    let fixture = mk_fixture().await;
    let mut worker = FakeWorker::connect(&fixture, "worker").await;
    let job = fixture.submit(mk_job("drain")).await;
    let plan = worker.expect_assign().await;
    worker.start(&plan).await;
    worker
        .send(wire::Draining {
            reason: "asked to".to_owned(),
            seconds_left: 60,
        })
        .await;
    worker.submit(plan.attempt_id, support::mk_graph(1)).await;
    worker.succeed(&plan).await;
    worker
        .expect(|message| match message {
            FromCoordinator::Drain(drain) => Some(drain.reason.clone()),
            FromCoordinator::Assign(assign) => panic!("a draining worker got {}", assign.task_type),
            _ => None,
        })
        .await;
    let other = FakeWorker::connect(&fixture, "other").await;
    tokio::spawn(other.work(1));
    assert_eq!(finished(&job).await.phase, Phase::Succeeded);
}

/// A worker with a planner and a segment, both running, before a clock that stands still.
async fn busy_worker(clock: &Arc<ManualClock>) -> (support::Fixture, FakeWorker, wire::Assign) {
    let own = Arc::clone(clock);
    let fixture = mk_fixture_with(|config: &mut CoordinatorConfig| config.clock = own).await;
    let mut worker = FakeWorker::connect(&fixture, "worker").await;
    fixture.submit(mk_job("busy")).await;
    let plan = worker.expect_assign_of("plan").await;
    worker.start(&plan).await;
    worker.submit(plan.attempt_id, support::mk_graph(1)).await;
    let prove = worker.expect_assign_of("prove").await;
    worker.start(&prove).await;
    (fixture, worker, prove)
}

#[tokio::test]
async fn an_acknowledgement_waits_for_what_its_worker_is_told_next_and_travels_with_it() {
    let clock = Arc::new(ManualClock::at(1_000_000));
    let (fixture, mut worker, prove) = busy_worker(&clock).await;
    let class = wire::FailureClass::Retryable;
    worker.fail(&prove, class, "Unlucky", "try again").await;
    let judged = async {
        while fixture.metric("prover_coordinator_acknowledgements_total") == 0.0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, judged).await.unwrap();
    worker.send(heartbeat(1)).await;
    assert_eq!(worker.next_frame().await.unwrap(), 2);
    let first = worker.receive().await.unwrap();
    assert!(matches!(first, FromCoordinator::Acknowledged(_)), "{first:?}");
    let second = worker.receive().await.unwrap();
    assert!(matches!(second, FromCoordinator::Heartbeat(_)), "{second:?}");
}

#[tokio::test]
async fn a_worker_that_drains_does_not_wait_for_its_acknowledgements() {
    let clock = Arc::new(ManualClock::at(1_000_000));
    for drains_first in [true, false] {
        let (_fixture, mut worker, prove) = busy_worker(&clock).await;
        let draining = wire::Draining {
            reason: "asked to".to_owned(),
            seconds_left: 60,
        };
        if drains_first {
            worker.send(draining.clone()).await;
        }
        let class = wire::FailureClass::Retryable;
        worker.fail(&prove, class, "Unlucky", "try again").await;
        if !drains_first {
            worker.send(draining).await;
        }
        assert!(worker.expect_acknowledgement(prove.attempt_id).await);
    }
}

#[tokio::test]
async fn a_worker_whose_stream_broke_is_given_nothing_meanwhile() {
    let clock = Arc::new(ManualClock::at(1_000_000));
    let fixture = mk_fixture_with(|config: &mut CoordinatorConfig| config.clock = clock.clone()).await;
    drop(FakeWorker::connect(&fixture, "away").await);
    while fixture
        .coordinator
        .workers()
        .iter()
        .all(|worker| worker.connected)
    {
        // Nobody has this name: it only lets the coordinator look at its clock.
        fixture.coordinator.worker_gone("nobody").await;
        tokio::task::yield_now().await;
        clock.advance(1);
    }
    fixture.submit(mk_job("away")).await;
    let mut other = FakeWorker::connect(&fixture, "other").await;
    other.expect_assign().await;
}

#[tokio::test]
async fn a_worker_that_does_not_come_back_is_forgotten_after_its_lease_and_some_time_more() {
    let clock = Arc::new(ManualClock::at(1_000_000));
    let fixture = mk_fixture_with(|config: &mut CoordinatorConfig| config.clock = clock.clone()).await;
    drop(FakeWorker::connect(&fixture, "worker").await);
    let mut waited = 0;
    let mut connected = true;
    while connected || !fixture.coordinator.workers().is_empty() {
        // Nobody has this name: it only lets the coordinator look at its clock.
        fixture.coordinator.worker_gone("nobody").await;
        tokio::task::yield_now().await;
        clock.advance(1_000);
        connected = connected
            && fixture
                .coordinator
                .workers()
                .iter()
                .all(|worker| worker.connected);
        waited += 1;
        assert!(waited < 100_000, "the worker is not forgotten");
    }
    assert!(waited >= 90, "forgotten after {waited} s");
}

#[tokio::test]
async fn shutting_down_ends_all_streams_at_once() {
    let fixture = mk_fixture().await;
    let mut worker = FakeWorker::connect(&fixture, "worker").await;
    let job = fixture.submit(mk_job("left")).await;
    let started = std::time::Instant::now();
    fixture.coordinator.shutdown().await;
    assert!(
        started.elapsed() < std::time::Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
    let status = worker.end().await;
    assert!(status.message().contains("shutting down"), "{status:?}");
    assert!(job.cancel().await.is_err());
}

fn batch(messages: Vec<wire::WorkerMessage>) -> wire::WorkerBatch {
    wire::WorkerBatch { messages }
}

fn heartbeat(sequence: u64) -> wire::Heartbeat {
    wire::Heartbeat {
        sequence,
        ..wire::Heartbeat::default()
    }
}

#[tokio::test]
async fn a_batch_counts_as_if_each_of_its_messages_had_come_alone() {
    let fixture = mk_fixture().await;
    let mut worker = FakeWorker::connect(&fixture, "worker").await;
    assert!(worker.welcome.batch_messages > 0, "the coordinator takes batches");
    // Nobody was given this attempt: the call is refused, what travels with it is not.
    let call = wire::Call {
        call_id: 7,
        attempt_id: 99,
        call: Some(wire::call::Call::SubmitTasks(wire::SubmitTasks {
            encoded: vec![0xff; 3],
        })),
    };
    worker
        .send(batch(vec![heartbeat(1).into(), call.into(), heartbeat(2).into()]))
        .await;
    worker.send(heartbeat(3)).await;
    let mut heard = Vec::new();
    let mut refused = None;
    while heard.len() < 3 {
        match worker.receive().await.unwrap() {
            FromCoordinator::Heartbeat(answer) => heard.push(answer.sequence),
            FromCoordinator::Answer(answer) => refused = Some(answer),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(heard, [1, 2, 3]);
    let refused = match refused {
        Some(answer) => answer,
        None => worker.expect_answer(7).await,
    };
    assert_eq!(
        (refused.call_id, refused.error_kind()),
        (7, wire::ErrorKind::InvalidArgument)
    );
}

#[tokio::test]
async fn a_batch_with_what_only_comes_alone_ends_the_stream() {
    let fixture = mk_fixture().await;
    let inner = batch(vec![heartbeat(1).into()]);
    let cases = [
        (batch(vec![inner.into()]), "never part of a batch"),
        (batch(vec![hello("worker").into()]), "never part of a batch"),
        (batch(Vec::new()), "carries nothing"),
        (
            batch(vec![heartbeat(1).into(); 257]),
            "has 257 entries, at most 256",
        ),
    ];
    for (number, (message, words)) in cases.into_iter().enumerate() {
        let mut worker = FakeWorker::connect(&fixture, &format!("worker-{number}")).await;
        worker.send(message).await;
        let status = worker.end().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(words), "{words}: {}", status.message());
    }
}
