//! Calls that a running attempt makes through its agent.

use prover_agent::Departure;
use prover_wire::protocol::{Answer, Assign, ChannelMessage, ErrorKind, TaskResult, call};

use crate::support::steps::Step;
use crate::support::{Bench, PREFIX, mk_assign};

fn mk_with_output(step: Step) -> Assign {
    Assign {
        outputs: vec!["told".to_owned()],
        ..mk_assign(1, &[step])
    }
}

fn output() -> String {
    "told".to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_artifact_is_in_the_store_before_its_name_is_bound_and_a_get_reads_what_is_bound() {
    let mut bench = Bench::mk().await;
    let source = bench.source("source", "from the store").await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    let put = Step::Put {
        name: "early".to_owned(),
        text: "put".to_owned(),
    };
    let get = Step::Get {
        name: "source".to_owned(),
        output: output(),
    };
    session
        .assign(Assign {
            outputs: vec![output()],
            ..mk_assign(1, &[put, get])
        })
        .await;
    session.started(1).await;
    let bind = session.called().await;
    assert_eq!(bind.attempt_id, 1);
    let Some(call::Call::BindArtifact(binding)) = bind.call else {
        panic!("{bind:?}")
    };
    let bound = binding.artifact.unwrap();
    assert_eq!(bound.key, format!("{PREFIX}/attempts/1/early"));
    assert_eq!(bench.content(&bound).await, "put");
    session
        .answer(Answer {
            call_id: bind.call_id,
            artifact: Some(bound),
            ..Answer::default()
        })
        .await;
    let resolve = session.called().await;
    let Some(call::Call::ResolveArtifact(_)) = resolve.call else {
        panic!("{resolve:?}")
    };
    session
        .answer(Answer {
            call_id: resolve.call_id,
            artifact: Some(source),
            ..Answer::default()
        })
        .await;
    let succeeded = session.succeeded(1).await;
    assert_eq!(bench.content(&succeeded.outputs[0]).await, "from the store");
    session.acknowledge(1).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_outside_of_the_attempts_directory_is_refused() {
    let mut bench = Bench::mk().await;
    let secret = bench.path("token");
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    session
        .assign(mk_with_output(Step::PutForeign {
            path: secret,
            output: output(),
        }))
        .await;
    session.started(1).await;
    let succeeded = session.succeeded(1).await;
    let told = bench.content(&succeeded.outputs[0]).await;
    assert!(told.starts_with("InvalidArgument"), "{told}");
    assert!(told.contains("outside"), "{told}");
    session.acknowledge(1).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unanswered_submission_is_sent_again_on_the_next_stream_with_the_same_id() {
    let mut bench = Bench::mk().await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    let request_ids = vec!["a".to_owned(), "b".to_owned()];
    session
        .assign(mk_with_output(Step::Submit {
            request_ids,
            output: output(),
        }))
        .await;
    session.started(1).await;
    let submitted = session.called().await;
    session.break_off().await;
    let mut session = bench.coordinator.welcomed(2).await;
    assert_eq!(session.called().await, submitted);
    let (task_ids, already_succeeded) = (vec![11, 12], vec![false, true]);
    let answer = Answer {
        call_id: submitted.call_id,
        task_ids,
        already_succeeded,
        ..Answer::default()
    };
    session.answer(answer).await;
    let succeeded = session.succeeded(1).await;
    let told = bench.content(&succeeded.outputs[0]).await;
    assert!(told.contains("task_id: 12, already_succeeded: true"), "{told}");
    session.acknowledge(1).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_goes_on_over_a_broken_stream_without_repeating_or_losing_a_result() {
    let mut bench = Bench::mk().await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    let request_ids = vec!["a".to_owned(), "b".to_owned()];
    session
        .assign(mk_with_output(Step::Subscribe {
            request_ids,
            output: output(),
        }))
        .await;
    session.started(1).await;
    let call_id = session.called().await.call_id;
    let result = |id: &str| TaskResult {
        call_id,
        request_id: id.to_owned(),
        succeeded: true,
        result: format!("result of {id}").into_bytes(),
        ..TaskResult::default()
    };
    session.send(result("b")).await;
    // Answered in order: the result before it has arrived when this answer has.
    session.recall(99).await;
    assert!(!session.recall_answered(99).await);
    session.break_off().await;
    let mut session = bench.coordinator.welcomed(1).await;
    let renewed = session.called().await;
    let Some(call::Call::SubscribeTasks(subscription)) = renewed.call else {
        panic!("{renewed:?}")
    };
    assert_eq!(
        (renewed.call_id, subscription.request_ids),
        (call_id, vec!["a".to_owned()])
    );
    session.send(result("b")).await;
    session.send(result("a")).await;
    let succeeded = session.succeeded(1).await;
    assert_eq!(
        bench.content(&succeeded.outputs[0]).await,
        "b=result of b;a=result of a;"
    );
    session.acknowledge(1).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn markers_channels_references_permits_and_progress_reach_the_coordinator() {
    let mut bench = Bench::mk().await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    let name = "artifact".to_owned();
    let steps = [
        Step::CompleteMarker("marker".to_owned()),
        Step::Send("hello".to_owned()),
        Step::Permit {
            name: name.clone(),
            bytes: 5,
        },
        Step::Progress(0.5),
        Step::Reference {
            name,
            output: "referenced".to_owned(),
        },
        Step::ReadChannel {
            request_id: "other".to_owned(),
            output: output(),
        },
    ];
    let outputs = vec!["referenced".to_owned(), output()];
    session
        .assign(Assign {
            outputs,
            ..mk_assign(1, &steps)
        })
        .await;
    session.started(1).await;
    let mut kinds = Vec::new();
    for _ in 0..6 {
        let (call_id, kind) = match session.next().await {
            prover_wire::protocol::worker_message::Message::Call(call) => (call.call_id, call.call.unwrap()),
            prover_wire::protocol::worker_message::Message::Progress(progress) => {
                assert_eq!(progress.attempt_id, 1);
                kinds.push("progress");
                continue;
            }
            other => panic!("{other:?}"),
        };
        kinds.push(match kind {
            call::Call::CompleteMarker(_) => "marker",
            call::Call::SendChannelMessage(_) => "send",
            call::Call::AcquirePermit(_) => "permit",
            call::Call::AddReference(_) => "add",
            call::Call::RemoveReference(_) => "remove",
            other => panic!("{other:?}"),
        });
        session
            .answer(Answer {
                call_id,
                dropped: true,
                ..Answer::default()
            })
            .await;
    }
    kinds.sort_unstable();
    assert_eq!(kinds, ["add", "marker", "permit", "progress", "remove", "send"]);
    let call_id = session.called().await.call_id;
    for (offset, text) in [(0, "one "), (1, "two")] {
        let payload = text.as_bytes().to_vec();
        session
            .send(ChannelMessage {
                call_id,
                offset,
                payload,
                end_of_channel: false,
            })
            .await;
    }
    session
        .send(ChannelMessage {
            call_id,
            offset: 2,
            payload: Vec::new(),
            end_of_channel: true,
        })
        .await;
    let succeeded = session.succeeded(1).await;
    assert_eq!(bench.content(&succeeded.outputs[0]).await, "dropped=true");
    assert_eq!(bench.content(&succeeded.outputs[1]).await, "one two");
    session.acknowledge(1).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_coordinator_reaches_the_caller_with_its_kind() {
    let mut bench = Bench::mk().await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    session
        .assign(mk_with_output(Step::Get {
            name: "unknown".to_owned(),
            output: output(),
        }))
        .await;
    session.started(1).await;
    let call_id = session.called().await.call_id;
    let error = "unknown is not known in this job".to_owned();
    session
        .answer(Answer {
            call_id,
            error,
            error_kind: ErrorKind::NotFound.into(),
            ..Answer::default()
        })
        .await;
    let succeeded = session.succeeded(1).await;
    let told = bench.content(&succeeded.outputs[0]).await;
    assert_eq!(told, "not_found: unknown is not known in this job");
    session.acknowledge(1).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}
