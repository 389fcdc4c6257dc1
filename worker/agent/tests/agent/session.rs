//! The stream to the coordinator: what survives a broken one, and what is refused.

use std::time::Duration;

use prover_agent::{Connection, Departure};
use prover_wire::protocol::worker_message::Message as Said;
use prover_wire::protocol::{Assign, CompletionAcknowledged, CoordinatorBatch};

use crate::support::steps::Step;
use crate::support::{Bench, Coordinator, mk_assign, mk_plan, within, write};

#[tokio::test(flavor = "multi_thread")]
async fn a_running_attempt_lives_on_over_a_broken_stream_and_is_reported_on_the_next() {
    let mut bench = Bench::mk().await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    let steps = [
        Step::ProcessId(bench.path("pid")),
        bench.step_wait("gate"),
        write("out", "x"),
    ];
    session
        .assign(Assign {
            outputs: vec!["out".to_owned()],
            ..mk_assign(1, &steps)
        })
        .await;
    session.started(1).await;
    let process = bench.process_id("pid").await;
    session.break_off().await;
    let mut session = bench.coordinator.welcomed(1).await;
    let held = &session.hello.held;
    assert_eq!(held.len(), 1);
    assert!(
        held[0].attempt_id == 1 && held[0].started && !held[0].completed,
        "{held:?}"
    );
    session.nothing_more().await;
    bench.open_gate("gate");
    session.succeeded(1).await;
    session.acknowledge(1).await;
    session
        .assign(mk_assign(2, &[Step::ProcessId(bench.path("second"))]))
        .await;
    session.started(2).await;
    session.succeeded(2).await;
    session.acknowledge(2).await;
    assert_eq!(
        bench.process_id("second").await,
        process,
        "the child has lived on, too"
    );
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_is_reported_again_until_it_is_acknowledged() {
    let mut bench = Bench::mk().await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    session
        .assign(Assign {
            outputs: vec!["out".to_owned()],
            ..mk_assign(1, &[write("out", "x")])
        })
        .await;
    session.started(1).await;
    let first = session.succeeded(1).await;
    // Seen, but not acknowledged: as by a leader that dies before its commit.
    session.break_off().await;
    let mut session = bench.coordinator.welcomed(2).await;
    assert!(session.hello.held[0].completed);
    assert_eq!(session.hello.highest_epoch, 1);
    assert_eq!(session.succeeded(1).await, first);
    session.acknowledge(1).await;
    session.assign(mk_assign(2, &[])).await;
    session.started(2).await;
    session.succeeded(2).await;
    session.break_off().await;
    let mut session = bench.coordinator.welcomed(2).await;
    assert_eq!(session.hello.held.len(), 1, "what was acknowledged is forgotten");
    session.succeeded(2).await;
    session.acknowledge(2).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_between_two_streams_is_reported_on_the_second() {
    let mut bench = Bench::mk().await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    session.assign(mk_assign(1, &[bench.step_wait("gate")])).await;
    session.started(1).await;
    session
        .assign(Assign {
            prefetch: true,
            ..mk_assign(2, &[])
        })
        .await;
    session.recall(99).await;
    assert!(!session.recall_answered(99).await);
    session.break_off().await;
    let mut session = bench.coordinator.session().await;
    let started: Vec<bool> = session.hello.held.iter().map(|held| held.started).collect();
    assert_eq!(started, [true, false]);
    // Both end after the hello and before the welcome.
    bench.open_gate("gate");
    within("the end of both", async {
        while agent.registry.gather().iter().all(|family| {
            family.name() != "prover_agent_attempts_total"
                || family
                    .get_metric()
                    .iter()
                    .all(|metric| metric.get_counter().get_value() < 2.0)
        }) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    session.welcome(1, &[]).await;
    session.succeeded(1).await;
    session.started(2).await;
    session.succeeded(2).await;
    session.acknowledge(1).await;
    session.acknowledge(2).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_that_the_welcome_names_are_stopped() {
    let mut bench = Bench::mk().await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    session.assign(mk_assign(1, &[bench.step_wait("never")])).await;
    session.started(1).await;
    session.break_off().await;
    let mut session = bench.coordinator.session().await;
    session.welcome(2, &[1]).await;
    session.stopped(1).await;
    session.assign(mk_assign(2, &[])).await;
    session.started(2).await;
    session.succeeded(2).await;
    session.acknowledge(2).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_of_a_lower_epoch_is_refused() {
    let mut bench = Bench::mk().await;
    let mut agent = bench.run();
    let session = bench.coordinator.welcomed(5).await;
    session.break_off().await;
    let stale = bench.coordinator.session().await;
    stale.welcome(4, &[]).await;
    let refused = |connection: &Connection| {
        matches!(
            connection,
            Connection::Failed {
                category: "stale",
                ..
            }
        )
    };
    let told = within("the refusal", agent.connection.wait_for(refused))
        .await
        .unwrap()
        .clone();
    let Connection::Failed { message, .. } = told else {
        unreachable!()
    };
    assert!(
        message.contains("epoch 4") && message.contains("epoch 5"),
        "{message}"
    );
    let _session = bench.coordinator.welcomed(5).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_told_with_file_and_address_and_the_right_one_is_read_at_the_next_try() {
    let mut bench = Bench::mk().await;
    std::fs::write(&bench.config.token_file, "wrong").unwrap();
    let mut agent = bench.run();
    let refused = |connection: &Connection| matches!(connection, Connection::Failed { .. });
    let told = within("the refusal", agent.connection.wait_for(refused))
        .await
        .unwrap()
        .clone();
    let Connection::Failed { category, message } = told else {
        unreachable!()
    };
    assert_eq!(category, "token_refused");
    for part in [
        &bench.coordinator.address,
        &bench.config.token_file.display().to_string(),
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(
        message.contains("Check that the file holds the token"),
        "{message}"
    );
    std::fs::write(&bench.config.token_file, crate::support::TOKEN).unwrap();
    let _session = bench.coordinator.welcomed(1).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_falls_silent_is_left_and_asked_again() {
    let mut bench = Bench::mk().await;
    let mut agent = bench.run();
    let session = bench.coordinator.welcomed(1).await;
    session.fall_silent();
    let silent = |connection: &Connection| {
        matches!(
            connection,
            Connection::Failed {
                category: "silent",
                ..
            }
        )
    };
    within("the end of the stream", agent.connection.wait_for(silent))
        .await
        .unwrap();
    let _session = bench.coordinator.welcomed(1).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_name_what_is_held_and_go_on_while_the_agents_threads_are_blocked() {
    let mut bench = Bench::mk().await;
    bench.coordinator = Coordinator::start_apart();
    bench.config.coordinator = bench.coordinator.address.clone();
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    session.assign(mk_assign(1, &[bench.step_wait("gate")])).await;
    session.started(1).await;
    session.assign(mk_plan(2, &[bench.step_wait("gate")])).await;
    session.started(2).await;
    within(
        "a heartbeat with both",
        session.heartbeat.wait_for(|held| *held == [1, 2]),
    )
    .await
    .unwrap();
    // Every thread of the runtime that the agent's loop lives on.
    let threads = tokio::runtime::Handle::current().metrics().num_workers();
    let before = session.beats();
    let blocking = |_| tokio::spawn(async { std::thread::sleep(Duration::from_secs(2)) });
    let blocked: Vec<_> = (0..threads).map(blocking).collect();
    std::thread::sleep(Duration::from_secs(2));
    let beats = session.beats() - before;
    // One each 50 ms; the machine may be busy.
    assert!(beats >= 10, "only {beats} heartbeats in 2 s");
    for thread in blocked {
        thread.await.unwrap();
    }
    bench.open_gate("gate");
    for _ in 0..2 {
        let Said::Succeeded(succeeded) = session.next().await else {
            panic!("both should succeed")
        };
        session.acknowledge(succeeded.attempt_id).await;
    }
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaving_agent_finishes_what_runs_and_gives_back_the_rest() {
    let mut bench = Bench::mk().await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    session.assign(mk_assign(1, &[bench.step_wait("gate")])).await;
    session.started(1).await;
    session
        .assign(Assign {
            prefetch: true,
            ..mk_assign(2, &[])
        })
        .await;
    session.recall(99).await;
    assert!(!session.recall_answered(99).await);
    agent.leave.send_replace(prover_agent::Leave::Drain);
    let Said::Draining(draining) = session.next().await else {
        panic!("the drain should be told first")
    };
    assert!(draining.seconds_left > 0);
    assert!(session.recall_answered(2).await);
    // What was on its way to it comes back.
    session.assign(mk_assign(3, &[])).await;
    assert!(session.recall_answered(3).await);
    bench.open_gate("gate");
    session.succeeded(1).await;
    session.acknowledge(1).await;
    assert_eq!(agent.ended().await.unwrap(), Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_of_the_drain_time_what_runs_is_reported_as_leaving() {
    let mut bench = Bench::mk().await;
    bench.config.drain = Duration::from_millis(300);
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    session
        .assign(mk_assign(
            1,
            &[Step::ProcessId(bench.path("pid")), bench.step_wait("never")],
        ))
        .await;
    session.started(1).await;
    let process = bench.process_id("pid").await;
    agent.leave.send_replace(prover_agent::Leave::Drain);
    let Said::Draining(_) = session.next().await else {
        panic!("the drain should be told first")
    };
    let failed = session
        .failed_with(1, prover_wire::protocol::FailureClass::WorkerLeaving)
        .await;
    assert_eq!(failed.reason, "WorkerLeaving");
    session.acknowledge(1).await;
    assert_eq!(
        agent.ended().await.unwrap(),
        Departure::OutOfTime {
            stopped: 1,
            unacknowledged: 0
        }
    );
    crate::support::process_gone(process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_in_one_batch_is_done_in_its_order() {
    let mut bench = Bench::mk().await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    assert!(session.hello.batch_messages > 0, "the agent takes batches");
    let ahead = Assign {
        prefetch: true,
        ..mk_assign(2, &[])
    };
    let batch = [mk_assign(1, &[]), ahead].map(|assign| Assign { epoch: 1, ..assign }.into());
    session
        .send(CoordinatorBatch {
            messages: batch.to_vec(),
        })
        .await;
    session.started(1).await;
    let mut rest = Vec::new();
    for _ in 0..3 {
        rest.push(match session.next().await {
            Said::Succeeded(succeeded) => ("succeeded", succeeded.attempt_id),
            Said::Started(started) => ("started", started.attempt_id),
            other => panic!("{other:?}"),
        });
    }
    // The second one may start before what the first one made is in the store.
    rest.sort_unstable();
    assert_eq!(rest, [("started", 2), ("succeeded", 1), ("succeeded", 2)]);
    let acknowledged = [1, 2].map(|attempt_id| {
        let accepted = true;
        CompletionAcknowledged { attempt_id, accepted }.into()
    });
    session
        .send(CoordinatorBatch {
            messages: acknowledged.to_vec(),
        })
        .await;
    assert_eq!(agent.drained().await, Departure::Empty);
}
