//! Who may do what at a coordinator: workers under their own names, about their own attempts; the operator on its plane.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prover_coordinator::{
    AuthenticationError, CoordinatorConfig, GroupOffer, Identity, WorkerAuthentication, WorkerAuthenticator,
};
use prover_runtime::ManualClock;
use prover_wire::LEAVING_LIFE_MS;
use prover_wire::operator_plane as operator;
use prover_wire::operator_plane::operator_plane_client::OperatorPlaneClient;
use prover_wire::protocol::{self as wire, call};
use support::{
    FakeWorker, Fixture, SOON, finished, mk_artifact, mk_description, mk_fixture, mk_fixture_with, mk_hello,
    mk_job, mk_success, open_stream, until,
};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

/// A token is the name of a pod and its UID, or the word operator.
#[derive(Debug)]
struct Named;

#[async_trait::async_trait]
impl WorkerAuthenticator for Named {
    async fn authenticate(
        &self,
        token: &str,
        peer: Option<SocketAddr>,
    ) -> Result<Identity, AuthenticationError> {
        assert!(peer.is_some_and(|peer| peer.ip().is_loopback()));
        match token.split_once('/') {
            _ if token == "operator" => Ok(Identity::Operator),
            Some((pod_name, pod_uid)) => Ok(Identity::Worker {
                pod_name: pod_name.into(),
                pod_uid: pod_uid.into(),
            }),
            None if token == "later" => Err(AuthenticationError::Unavailable {
                reason: "no keys".to_owned(),
            }),
            None => Err(AuthenticationError::Refused {
                category: "token_signature",
                reason: "its signature is wrong".to_owned(),
            }),
        }
    }
}

async fn mk_cluster() -> Fixture {
    mk_cluster_with(|_| {}).await
}

async fn mk_cluster_with(change: impl FnOnce(&mut CoordinatorConfig)) -> Fixture {
    mk_fixture_with(|config| {
        config.worker_authentication = WorkerAuthentication::Custom(Arc::new(Named));
        change(config);
    })
    .await
}

fn mk_hello_of(worker_id: &str) -> wire::WorkerHello {
    mk_hello(worker_id, &mk_description("emulated", "Emulated", true))
}

async fn connect(fixture: &Fixture, token: &str, worker_id: &str) -> Result<FakeWorker, Status> {
    FakeWorker::try_connect_with(fixture, token, mk_hello_of(worker_id)).await
}

async fn operator_client(fixture: &Fixture) -> OperatorPlaneClient<tonic::transport::Channel> {
    let url = format!("http://{}", fixture.coordinator.address());
    OperatorPlaneClient::connect(url).await.unwrap()
}

/// What the operator sees, five times a second.
async fn watch(
    client: &mut OperatorPlaneClient<tonic::transport::Channel>,
) -> tonic::Streaming<operator::ClusterState> {
    let request = operator::WatchRequest { interval_ms: 200 };
    let answer = client.watch(signed("operator", request)).await;
    answer.unwrap().into_inner()
}

fn signed<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

async fn state_where(
    states: &mut tonic::Streaming<operator::ClusterState>,
    wanted: impl Fn(&operator::ClusterState) -> bool,
) -> operator::ClusterState {
    let found = async {
        loop {
            let state = states.message().await.unwrap().expect("the watch goes on");
            if wanted(&state) {
                return state;
            }
        }
    };
    tokio::time::timeout(SOON, found).await.unwrap()
}

#[tokio::test]
async fn a_worker_signs_in_under_the_name_of_its_own_pod_only() {
    let fixture = mk_cluster().await;
    connect(&fixture, "pod-a/1", "pod-a").await.unwrap();
    connect(&fixture, "pod-a/1", "pod-a:2").await.unwrap();
    for other in ["pod-b", "pod-ab", "pod-a-1", "pod-a.x"] {
        let refused = connect(&fixture, "pod-a/1", other).await.err().unwrap();
        assert_eq!(refused.code(), Code::PermissionDenied, "{other}");
        assert!(
            refused.message().contains("not the name of the pod"),
            "{refused:?}"
        );
    }
    assert!(fixture.metric("prover_coordinator_sessions_refused_total") >= 4.0);
}

#[tokio::test]
async fn neither_plane_takes_the_others_identity() {
    let fixture = mk_cluster().await;
    let refused = open_stream(&fixture, Some("operator")).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut client = operator_client(&fixture).await;
    for (token, code) in [
        ("pod-a/1", Code::PermissionDenied),
        ("nonsense", Code::Unauthenticated),
        ("later", Code::Unavailable),
    ] {
        let refused = client
            .watch(signed(token, operator::WatchRequest::default()))
            .await
            .err()
            .unwrap();
        assert_eq!(refused.code(), code, "{token}");
        let refused = client
            .set_leaving(signed(token, operator::SetLeavingRequest::default()))
            .await
            .err()
            .unwrap();
        assert_eq!(refused.code(), code, "{token}");
    }
    let local = mk_fixture().await;
    let mut client = operator_client(&local).await;
    let refused = client
        .watch(signed(support::TOKEN, operator::WatchRequest::default()))
        .await;
    assert_eq!(refused.err().unwrap().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn the_operator_learns_that_the_store_went_away_while_jobs_wait_and_that_it_is_back() {
    let fixture = mk_cluster_with(|config| config.store_probe_interval = Duration::from_millis(20)).await;
    let mut client = operator_client(&fixture).await;
    let mut states = watch(&mut client).await;
    let first = state_where(&mut states, |_| true).await;
    assert_eq!(
        (first.store_ready, first.store_reason.as_str()),
        (Some(true), "StoreReachable")
    );
    let job = fixture.submit(mk_job("a")).await;
    let (store, away) = (
        fixture.folder.path().join("store"),
        fixture.folder.path().join("away"),
    );
    std::fs::rename(&store, &away).unwrap();
    std::fs::write(&store, "no folder").unwrap();
    let told = state_where(&mut states, |state| state.store_ready == Some(false)).await;
    assert_eq!(told.store_reason, "StoreNotWritable", "{}", told.store_message);
    assert!(!told.store_message.is_empty());
    std::fs::remove_file(&store).unwrap();
    std::fs::rename(&away, &store).unwrap();
    let back = state_where(&mut states, |state| state.store_ready == Some(true)).await;
    assert_eq!(back.store_reason, "StoreReachable");
    drop(job);
}

#[tokio::test]
async fn a_pod_that_is_gone_loses_its_stream_and_can_not_come_back() {
    let fixture = mk_cluster().await;
    let mut worker = connect(&fixture, "pod-a/1", "pod-a").await.unwrap();
    let control = fixture.coordinator.worker_control();
    control.pod_gone("pod-a", "2").await;
    control.pod_gone("pod-a", "1").await;
    assert_eq!(worker.end().await.code(), Code::Aborted);
    let refused = connect(&fixture, "pod-a/1", "pod-a").await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    connect(&fixture, "pod-a/3", "pod-a").await.unwrap();
}

#[tokio::test]
async fn a_later_pod_of_the_same_name_takes_the_place_of_the_earlier() {
    let fixture = mk_cluster().await;
    let mut earlier = connect(&fixture, "pod-a/1", "pod-a").await.unwrap();
    let _later = connect(&fixture, "pod-a/2", "pod-a").await.unwrap();
    assert_eq!(earlier.end().await.code(), Code::Aborted);
    fixture.until_connected(1).await;
}

#[tokio::test]
async fn an_agent_that_ended_is_lost_at_once_but_its_successor_lives() {
    let fixture = mk_cluster().await;
    let control = fixture.coordinator.worker_control();
    let mut worker = connect(&fixture, "pod-a/1", "pod-a").await.unwrap();
    let job = fixture.submit(mk_job("a")).await;
    worker.expect_assign_of("plan").await;
    // It has a stream: whatever ended was the agent before.
    control.agent_ended("pod-a", "1").await;
    worker
        .send(wire::Heartbeat {
            sequence: 7,
            ..wire::Heartbeat::default()
        })
        .await;
    worker
        .expect(|message| matches!(message, wire::coordinator_message::Message::Heartbeat(_)).then_some(()))
        .await;
    fixture.until_connected(1).await;
    drop(worker);
    fixture.until_connected(0).await;
    control.agent_ended("pod-a", "1").await;
    let mut other = connect(&fixture, "pod-b/1", "pod-b").await.unwrap();
    // Far sooner than the grace for reconnecting.
    let taken = tokio::time::timeout(Duration::from_secs(5), other.expect_assign_of("plan")).await;
    assert_eq!(taken.unwrap().attempt_number, 2);
    drop(job);
}

#[tokio::test]
async fn nothing_that_a_worker_says_about_anothers_attempt_counts() {
    let fixture = mk_cluster().await;
    let mut owner = connect(&fixture, "pod-a/1", "pod-a").await.unwrap();
    let job = fixture.submit(mk_job("a")).await;
    let plan = owner.expect_assign_of("plan").await;
    owner.start(&plan).await;
    let mut thief = connect(&fixture, "pod-b/1", "pod-b").await.unwrap();

    thief.send(mk_success(&plan)).await;
    assert!(!thief.expect_acknowledgement(plan.attempt_id).await);
    thief
        .fail(&plan, wire::FailureClass::Fatal, "Wicked", "it can't be done")
        .await;
    assert!(!thief.expect_acknowledgement(plan.attempt_id).await);
    thief
        .send(wire::AttemptStopped {
            attempt_id: plan.attempt_id,
        })
        .await;
    thief
        .send(wire::RecallAnswer {
            attempt_id: plan.attempt_id,
            given_back: true,
        })
        .await;
    let calls = [
        call::Call::SubmitTasks(wire::SubmitTasks::default()),
        call::Call::BindArtifact(wire::BindArtifact {
            artifact: Some(mk_artifact(&plan, "proof")),
        }),
        call::Call::ResolveArtifact(wire::ResolveArtifact {
            name: "program".to_owned(),
        }),
        call::Call::DeleteArtifacts(wire::DeleteArtifacts {
            names: vec!["program".to_owned()],
        }),
    ];
    for call in calls {
        let answer = thief.call(plan.attempt_id, call).await;
        assert_ne!(answer.error, "");
        assert!(answer.artifact.is_none());
    }
    assert!(fixture.metric("prover_coordinator_messages_refused_total") >= 7.0);

    // The owner goes on as if nothing had been.
    let answer = owner.submit(plan.attempt_id, support::mk_graph(1)).await;
    assert_eq!(answer.error, "");
    owner.succeed(&plan).await;
    assert!(owner.expect_acknowledgement(plan.attempt_id).await);
    tokio::spawn(owner.work(1));
    tokio::spawn(thief.work(1));
    assert_eq!(finished(&job).await.phase.as_str(), "Succeeded");
}

#[tokio::test]
async fn a_container_that_ran_out_of_memory_explains_the_failure_of_its_attempt() {
    let fixture = mk_cluster().await;
    let mut worker = connect(&fixture, "pod-a/1", "pod-a").await.unwrap();
    let job = fixture.submit(mk_job("a")).await;
    worker.plan(1).await;
    let prove = worker.expect_assign_of("prove").await;
    worker.start(&prove).await;
    worker
        .fail(
            &prove,
            wire::FailureClass::ChildCrashed,
            "ContainerEnded",
            "the connection ended",
        )
        .await;
    let control = fixture.coordinator.worker_control();
    control
        .container_ended("1", "backend-cpu-0", "OOMKilled", 137)
        .await;
    let view = until(&job, "the kubelet's word", |view| {
        view.tasks.iter().any(|task| {
            task.failure
                .as_deref()
                .is_some_and(|words| words.contains("OOMKilled"))
        })
    })
    .await;
    let failed = view.tasks.iter().find(|task| task.failure.is_some()).unwrap();
    assert!(failed.failure.as_deref().unwrap().contains("exit code 137"));
    // There is no larger worker: the job is planned once more with smaller segments.
    assert_eq!(worker.expect_assign_of("plan").await.attempt_number, 2);
}

#[tokio::test]
async fn the_operator_sees_work_and_workers_and_lets_workers_leave() {
    let fixture = mk_cluster().await;
    let control = fixture.coordinator.worker_control();
    let offer = |group: &str, offered_as: &str| GroupOffer {
        group: group.into(),
        offered_as: offered_as.into(),
    };
    control
        .set_groups(vec![offer("test", "emulated"), offer("other", "risc0")])
        .await;
    let job = fixture.submit(mk_job("a")).await;
    let mut client = operator_client(&fixture).await;
    let mut states = watch(&mut client).await;
    let state = state_where(&mut states, |state| state.waiting_jobs == 1).await;
    let without_worker: Vec<_> = state
        .groups
        .iter()
        .map(|group| (group.group.as_str(), group.jobs_without_worker))
        .collect();
    assert_eq!(without_worker, [("other", 0), ("test", 1)]);

    let mut worker = connect(&fixture, "pod-a/1", "pod-a").await.unwrap();
    worker.plan(5).await;
    let state = state_where(&mut states, |state| {
        state.groups.iter().any(|group| group.waiting_tasks == 3)
    })
    .await;
    let group = state.groups.iter().find(|group| group.group == "test").unwrap();
    // One second each by the planner's estimate: one runs, one is fetched ahead, three wait.
    assert_eq!((group.running_tasks, group.jobs_without_worker), (2, 0));
    assert!((group.waiting_device_seconds - 3.0).abs() < 0.01, "{group:?}");
    let told = &state.workers[0];
    assert_eq!((told.pod.as_str(), told.attempts, told.idle_ms), ("pod-a", 2, 0));
    assert_eq!(state.pinned_backend_versions, ["made-up 1.0.0"]);

    let request = operator::SetLeavingRequest {
        pods: vec!["pod-a".to_owned(), "pod-z".to_owned()],
    };
    let answer = client.set_leaving(signed("operator", request)).await.unwrap();
    assert_eq!(answer.into_inner().unknown, ["pod-z"]);
    let recall = worker
        .expect(|message| match message {
            wire::coordinator_message::Message::Recall(recall) => Some(recall.attempt_id),
            _ => None,
        })
        .await;
    worker
        .send(wire::RecallAnswer {
            attempt_id: recall,
            given_back: true,
        })
        .await;
    let prove = worker
        .expect(|message| match message {
            wire::coordinator_message::Message::Assign(assign) if assign.attempt_id != recall => {
                Some(assign.clone())
            }
            _ => None,
        })
        .await;
    worker.start(&prove).await;
    worker.succeed(&prove).await;
    let state = state_where(&mut states, |state| {
        state.workers.first().is_some_and(|worker| worker.idle_ms > 0)
    })
    .await;
    assert!(state.workers[0].leaving, "it is empty and gets nothing new");
    // A device-second estimate that was measured replaces the planner's.
    let group = state.groups.iter().find(|group| group.group == "test").unwrap();
    assert_eq!(group.waiting_tasks, 4);

    let request = operator::SetLeavingRequest::default();
    client.set_leaving(signed("operator", request)).await.unwrap();
    tokio::spawn(worker.work(5));
    assert_eq!(finished(&job).await.phase.as_str(), "Succeeded");
}

#[tokio::test]
async fn workers_work_again_when_the_operator_does_not_say_again_that_they_shall_leave() {
    let clock = Arc::new(ManualClock::at(1_000_000));
    let fixture = mk_cluster_with(|config| config.clock = clock.clone()).await;
    let _worker = connect(&fixture, "pod-a/1", "pod-a").await.unwrap();
    let mut client = operator_client(&fixture).await;
    let mut states = watch(&mut client).await;
    let leaves = |leaves: bool| {
        move |state: &operator::ClusterState| {
            state
                .workers
                .first()
                .is_some_and(|worker| worker.leaving == leaves)
        }
    };
    for _ in 0..3 {
        let request = operator::SetLeavingRequest {
            pods: vec!["pod-a".to_owned()],
        };
        client.set_leaving(signed("operator", request)).await.unwrap();
        clock.advance(LEAVING_LIFE_MS - 1_000);
        // Nobody has this name: it only lets the coordinator look at its clock.
        fixture.coordinator.worker_gone("nobody").await;
        state_where(&mut states, leaves(true)).await;
    }
    clock.advance(1_000);
    fixture.coordinator.worker_gone("nobody").await;
    state_where(&mut states, leaves(false)).await;
}
