//! Coordinators with a log: what outlives a leader, who leads, and what waits for the log.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "support/gate.rs"]
mod gate;
mod support;

use std::sync::Arc;
use std::time::Duration;

use gate::{Gate, GatedStore};
use prover_artifacts::{ArtifactStore, Condition, Key, Prefix};
use prover_coordinator::{Durability, JobView, LogConfig, Milliseconds, Phase, ReleaseError, Role, start};
use prover_crds::{ProofKind, ProofSystem};
use prover_wire::protocol::coordinator_message::Message as FromCoordinator;
use prover_wire::protocol::{self as wire, call};
use support::{
    FakeWorker, Fixture, SOON, finished, mk_config, mk_description, mk_graph, mk_hello, mk_job, mk_job_of,
    mk_success, open_stream, until,
};
use tempfile::TempDir;

/// One coordinator of several over one store.
struct Replica {
    fixture: Fixture,
    /// Of its log alone.
    log: Arc<GatedStore>,
}

impl std::ops::Deref for Replica {
    type Target = Fixture;

    fn deref(&self) -> &Fixture {
        &self.fixture
    }
}

fn mk_folder() -> Arc<TempDir> {
    Arc::new(tempfile::tempdir().unwrap())
}

async fn mk_store(folder: &TempDir) -> Arc<dyn ArtifactStore> {
    let url = format!("file://{}", folder.path().join("store").display());
    prover_artifacts::open(&url).await.unwrap()
}

async fn mk_standby(folder: &Arc<TempDir>) -> Replica {
    let store = mk_store(folder).await;
    let log = GatedStore::over(mk_store(folder).await);
    let mut config = mk_config();
    let gated: Arc<dyn ArtifactStore> = Arc::clone(&log) as _;
    let mut kept = LogConfig::new(gated, Prefix::new("coordinator").unwrap());
    kept.follow_interval = Duration::from_millis(50);
    kept.limits.commit_interval = Duration::from_millis(5);
    kept.limits.longest_backoff = Duration::from_millis(200);
    config.durability = Durability::Log(Box::new(kept));
    config.limits.reconnect_grace = Milliseconds(3_000);
    let registry = config.registry.clone();
    let coordinator = start(config, Arc::clone(&store)).await.unwrap();
    let fixture = Fixture {
        coordinator,
        store,
        folder: Arc::clone(folder),
        registry,
    };
    Replica { fixture, log }
}

async fn mk_leader(folder: &Arc<TempDir>) -> Replica {
    let replica = mk_standby(folder).await;
    let led = tokio::time::timeout(SOON, replica.coordinator.take_over()).await;
    led.unwrap().unwrap();
    replica
}

impl Replica {
    /// It ends as by a signal that nobody can catch: its engine is gone, and nobody is told anything.
    async fn kill(self) {
        self.fixture.coordinator.shutdown().await;
    }

    async fn until_gone(&self, key: &Key) {
        let gone = async {
            while self.store.stat(key).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(SOON, gone).await.unwrap();
    }

    async fn until_role(&self, what: &str, wanted: impl Fn(&Role) -> bool) {
        let mut role = self.coordinator.role();
        let waited = tokio::time::timeout(SOON, role.wait_for(|role| wanted(role))).await;
        assert!(
            waited.is_ok(),
            "{what}: it is {:?}",
            *self.coordinator.role().borrow()
        );
    }
}

/// A job that was proved by a leader that is gone since, as it was shown last.
async fn proved_before_its_leader_died(folder: &Arc<TempDir>, name: &str) -> Arc<JobView> {
    let leader = mk_leader(folder).await;
    let worker = FakeWorker::connect_as(&leader, mk_hello_with(Vec::new(), 0)).await;
    tokio::spawn(worker.work(2));
    let job = leader.submit(mk_risc0_job(name)).await;
    let view = finished(&job).await;
    leader.kill().await;
    view
}

/// A hello with what an agent holds.
fn mk_hello_with(held: Vec<wire::HeldAttempt>, highest_epoch: u64) -> wire::WorkerHello {
    let mut hello = mk_hello("worker", &mk_description("risc0", "Succinct", false));
    hello.held = held;
    hello.highest_epoch = highest_epoch;
    hello
}

fn mk_held(assign: &wire::Assign, completed: bool) -> wire::HeldAttempt {
    wire::HeldAttempt {
        attempt_id: assign.attempt_id,
        started: true,
        completed,
        task_id: assign.task_id,
        device_id: assign.device_id.clone(),
        attempt_number: assign.attempt_number,
        plan_epoch: assign.plan_epoch,
    }
}

fn mk_risc0_job(name: &str) -> prover_crds::ProofJob {
    mk_job_of(name, ProofSystem::Risc0, ProofKind::Succinct)
}

/// Nothing of this kind comes for a while that is long enough for what was due.
async fn nothing_like(worker: &mut FakeWorker, unwanted: impl Fn(&FromCoordinator) -> bool) {
    let waiting = async {
        loop {
            let message = worker.receive().await.unwrap();
            assert!(!unwanted(&message), "{message:?}");
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_millis(300), waiting)
            .await
            .is_err()
    );
}

fn is_acknowledgement(message: &FromCoordinator) -> bool {
    matches!(message, FromCoordinator::Acknowledged(_))
}

#[tokio::test]
async fn the_next_leader_goes_on_where_a_dead_one_was_and_dispatches_nothing_twice() {
    let folder = mk_folder();
    let first = mk_leader(&folder).await;
    let mut worker = FakeWorker::connect_as(&first, mk_hello_with(Vec::new(), 0)).await;
    let job = first.submit(mk_risc0_job("handed-on")).await;
    let id = job.id();
    let plan = worker.plan(3).await;
    assert!(worker.expect_acknowledgement(plan.attempt_id).await);
    let done = worker.expect_assign_of("prove").await;
    worker.start(&done).await;
    worker.succeed(&done).await;
    assert!(worker.expect_acknowledgement(done.attempt_id).await);
    let running = worker.expect_assign_of("prove").await;
    worker.start(&running).await;
    let prefetched = worker.expect_assign_of("prove").await;
    let standby = mk_standby(&folder).await;
    standby
        .until_role("the standby follows", |role| {
            *role == Role::Following { caught_up: true }
        })
        .await;
    first.kill().await;

    assert_eq!(standby.coordinator.take_over().await.unwrap(), 2);
    let held = vec![
        mk_held(&running, true),
        wire::HeldAttempt {
            started: false,
            ..mk_held(&prefetched, false)
        },
    ];
    let mut worker = FakeWorker::connect_as(&standby, mk_hello_with(held, 1)).await;
    assert_eq!((worker.welcome.epoch, &worker.welcome.stop), (2, &Vec::new()));
    let again = standby.submit(mk_risc0_job("handed-on")).await;
    assert_eq!(again.id(), id, "a job keeps its identity");
    // Reported again: the first leader had not acknowledged it.
    worker.succeed(&running).await;
    assert!(worker.expect_acknowledgement(running.attempt_id).await);
    worker.start(&prefetched).await;
    worker.succeed(&prefetched).await;
    assert!(worker.expect_acknowledgement(prefetched.attempt_id).await);
    let join = worker.expect_assign().await;
    assert_eq!(join.task_type, "join", "no segment is proved again");
    assert!(join.attempt_id != running.attempt_id && join.epoch == 2);
    worker.start(&join).await;
    worker.succeed(&join).await;
    tokio::spawn(worker.work(3));
    let view = finished(&again).await;
    assert_eq!(view.phase, Phase::Succeeded, "{view:#?}");
    assert!(view.tasks.iter().all(|task| task.attempts == 1), "{view:#?}");
    assert!(view.proof.is_some() && view.execution.is_some());
}

#[tokio::test]
async fn a_worker_is_welcome_before_it_is_told_what_its_dead_leader_had_accepted() {
    let folder = mk_folder();
    let first = mk_leader(&folder).await;
    let mut worker = FakeWorker::connect_as(&first, mk_hello_with(Vec::new(), 0)).await;
    let _job = first.submit(mk_risc0_job("accepted")).await;
    let plan = worker.plan(2).await;
    let done = worker.expect_assign_of("prove").await;
    worker.start(&done).await;
    worker.succeed(&done).await;
    assert!(worker.expect_acknowledgement(done.attempt_id).await);
    first.kill().await;

    // As if the acknowledgements had been lost with the first leader.
    let second = mk_leader(&folder).await;
    let held = vec![mk_held(&plan, true), mk_held(&done, true)];
    let mut worker = FakeWorker::connect_as(&second, mk_hello_with(held, 1)).await;
    assert_eq!((worker.welcome.epoch, &worker.welcome.stop), (2, &Vec::new()));
    for attempt in [plan.attempt_id, done.attempt_id] {
        assert!(worker.expect_acknowledgement(attempt).await, "{attempt}");
    }
}

#[tokio::test]
async fn nothing_is_acknowledged_answered_or_shown_as_over_before_the_log_has_it() {
    let folder = mk_folder();
    let leader = mk_leader(&folder).await;
    let mut worker = FakeWorker::connect_as(&leader, mk_hello_with(Vec::new(), 0)).await;
    let job = leader.submit(mk_risc0_job("held-up")).await;
    let plan = worker.expect_assign_of("plan").await;
    worker.start(&plan).await;
    leader.log.set(Gate::Held);
    let encoded = prost::Message::encode_to_vec(&prover_backend::protocol::SubmitTasksRequest {
        attempt_id: plan.attempt_id,
        tasks: mk_graph(1),
    });
    let submitted = worker
        .start_call(
            plan.attempt_id,
            call::Call::SubmitTasks(wire::SubmitTasks { encoded }),
        )
        .await;
    // What is scheduled does not wait: the tasks run before the log has them.
    let prove = worker.expect_assign_of("prove").await;
    worker.succeed(&plan).await;
    worker.start(&prove).await;
    worker.succeed(&prove).await;
    for task_type in ["join", "verify"] {
        let assign = worker.expect_assign_of(task_type).await;
        worker.start(&assign).await;
        worker.succeed(&assign).await;
    }
    nothing_like(&mut worker, |message| {
        is_acknowledgement(message) || matches!(message, FromCoordinator::Answer(_))
    })
    .await;
    assert_eq!(job.view().phase, Phase::Running, "its end is not shown");
    assert!(leader.metric("prover_coordinator_waiting_for_log") >= 5.0);

    leader.log.set(Gate::Open);
    assert_eq!(worker.expect_answer(submitted).await.error, "");
    assert!(worker.expect_acknowledgement(prove.attempt_id).await);
    assert_eq!(finished(&job).await.phase, Phase::Succeeded);
    assert_eq!(leader.metric("prover_coordinator_waiting_for_log"), 0.0);
    assert!(leader.metric("prover_coordinator_log_requests_total") > 0.0);
    assert!(leader.metric("prover_coordinator_log_request_dollars_total") > 0.0);
    assert!(leader.metric("prover_coordinator_log_commits_total") > 0.0);
}

#[tokio::test]
async fn what_others_read_of_a_deleted_job_is_told_once_its_attempts_have_left_and_the_log_has_its_end() {
    let folder = mk_folder();
    let leader = mk_leader(&folder).await;
    let mut description = mk_description("risc0", "Succinct", false);
    for task_type in &mut description.task_types {
        task_type.cacheable = task_type.name == "prove";
    }
    let mut worker = FakeWorker::connect_as(&leader, mk_hello("worker", &description)).await;
    let mut graph = mk_graph(2);
    graph[0].cache_key = "the same for both".to_owned();
    graph[1].cache_key = "of the first job alone".to_owned();
    leader.submit(mk_risc0_job("first")).await;
    let plan = worker.expect_assign_of("plan").await;
    worker.start(&plan).await;
    worker.submit(plan.attempt_id, graph.clone()).await;
    worker.succeed(&plan).await;
    let mut keys = Vec::new();
    for _ in 0..2 {
        let prove = worker.expect_assign_of("prove").await;
        keys.push(mk_success(&prove).outputs[0].key.clone());
        worker.start(&prove).await;
        worker.succeed(&prove).await;
    }
    keys.sort();
    let join = worker.expect_assign_of("join").await;
    worker.start(&join).await;
    leader.submit(mk_risc0_job("second")).await;
    let plan = worker.expect_assign_of("plan").await;
    worker.start(&plan).await;
    graph[1].cache_key = "of the second job alone".to_owned();
    let answer = worker.submit(plan.attempt_id, graph).await;
    assert_eq!(answer.already_succeeded, [true, false, false, false]);
    for key in &keys {
        let key = Key::new(key.as_str()).unwrap();
        let stored = leader
            .store
            .put_bytes(&key, "x".into(), Condition::CreateOnly)
            .await;
        stored.unwrap();
    }

    let release = |uid: &'static str| {
        let prefix = Prefix::job(uid).unwrap();
        Box::pin(leader.coordinator.release(uid, prefix))
    };
    let mut answer = release("uid-first");
    let too_early = tokio::time::timeout(Duration::from_millis(300), &mut answer).await;
    assert!(too_early.is_err(), "{too_early:?}");
    worker.expect_stop(join.attempt_id).await;
    leader.log.set(Gate::Held);
    let stopped = wire::AttemptStopped {
        attempt_id: join.attempt_id,
    };
    worker.send(stopped).await;
    let too_early = tokio::time::timeout(Duration::from_millis(300), &mut answer).await;
    assert!(too_early.is_err(), "{too_early:?}");
    leader.log.set(Gate::Open);
    let shared = answer.await.unwrap();
    assert_eq!(shared.iter().map(|key| &**key).collect::<Vec<_>>(), [&keys[0]]);
    // Asking again does no harm, and what only the first job had goes without being asked for.
    assert_eq!(release("uid-first").await.unwrap(), shared);
    let path = |key: &str| support::store_path(&leader).join(key);
    until_gone(&path(&keys[1])).await;
    assert!(support::exists(&path(&keys[0])), "the second job reads it");
    tokio::spawn(worker.work(1));
    assert!(release("uid-second").await.unwrap().is_empty());
    until_gone(&path(&keys[0])).await;
    assert!(release("uid-first").await.unwrap().is_empty());
    let standby = mk_standby(&folder).await;
    let refused = standby
        .coordinator
        .release("uid-first", Prefix::job("uid-first").unwrap())
        .await;
    assert_eq!(refused, Err(ReleaseError::NotLeader));
}

async fn until_gone(path: &std::path::Path) {
    let gone = async {
        while support::exists(path) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, gone).await.unwrap();
}

#[tokio::test]
async fn a_leader_that_was_stopped_and_wakes_up_says_nothing_more() {
    let folder = mk_folder();
    let stale = mk_leader(&folder).await;
    let mut worker = FakeWorker::connect_as(&stale, mk_hello_with(Vec::new(), 0)).await;
    let job = stale.submit(mk_risc0_job("contested")).await;
    worker.plan(1).await;
    let prove = worker.expect_assign_of("prove").await;
    worker.start(&prove).await;
    until(&job, "the running job", |view| view.phase == Phase::Running).await;
    stale.log.set(Gate::Held);
    worker.succeed(&prove).await;
    let next = mk_leader(&folder).await;
    stale
        .coordinator
        .set_leader(Some(next.coordinator.address().to_string()));
    stale.log.set(Gate::Open);
    stale
        .until_role("the stale leader is fenced", |role| *role == Role::Fenced)
        .await;
    let last = loop {
        let message = worker.receive().await.unwrap();
        assert!(
            !is_acknowledgement(&message),
            "what the log refused is not acknowledged"
        );
        if let FromCoordinator::NotLeader(other) = message {
            break other.address;
        }
    };
    assert_eq!(last, next.coordinator.address().to_string());
    assert_eq!(job.view().phase, Phase::Running);
    let refused = stale.refuse(mk_risc0_job("late")).await;
    assert_eq!(refused.category(), "not_leader");

    // The completion is told again to who leads.
    let held = vec![mk_held(&prove, true)];
    let worker = FakeWorker::connect_as(&next, mk_hello_with(held, 1)).await;
    worker.succeed(&prove).await;
    tokio::spawn(worker.work(1));
    let job = next.submit(mk_risc0_job("contested")).await;
    let view = finished(&job).await;
    assert_eq!(view.phase, Phase::Succeeded);
    assert!(view.tasks.iter().all(|task| task.attempts == 1), "{view:#?}");
}

#[tokio::test]
async fn a_verdict_about_a_proof_that_was_never_committed_is_reached_again() {
    let folder = mk_folder();
    let first = mk_leader(&folder).await;
    let mut worker = FakeWorker::connect_as(&first, mk_hello_with(Vec::new(), 0)).await;
    first.submit(mk_risc0_job("handed-on")).await;
    worker.plan(1).await;
    let prove = worker.expect_assign_of("prove").await;
    worker.start(&prove).await;
    worker.succeed(&prove).await;
    assert!(worker.expect_acknowledgement(prove.attempt_id).await);
    first.log.set(Gate::Held);
    let join = worker.expect_assign_of("join").await;
    worker.start(&join).await;
    worker.succeed(&join).await;
    let verify = worker.expect_assign_of("verify").await;
    worker.start(&verify).await;

    let next = mk_leader(&folder).await;
    let held = vec![mk_held(&join, true), mk_held(&verify, true)];
    let mut worker = FakeWorker::connect_as(&next, mk_hello_with(held, 1)).await;
    let job = next.submit(mk_risc0_job("handed-on")).await;
    // The next leader hears of the verdict before it hears of the proof.
    worker.succeed(&verify).await;
    assert!(!worker.expect_acknowledgement(verify.attempt_id).await);
    worker.succeed(&join).await;
    assert!(worker.expect_acknowledgement(join.attempt_id).await);
    tokio::spawn(worker.work(1));
    let view = finished(&job).await;
    assert_eq!(view.phase, Phase::Succeeded, "{view:#?}");
}

#[tokio::test]
async fn a_stale_leader_without_workers_deletes_nothing_of_a_job_that_it_never_took() {
    let folder = mk_folder();
    let stale = mk_leader(&folder).await;
    stale.log.set(Gate::Held);
    let next = mk_leader(&folder).await;
    let waiting = stale.submit(mk_risc0_job("contested")).await;
    let job = next.submit(mk_risc0_job("contested")).await;
    // It knows no backend and has written nothing, so it has not heard that another one leads.
    waiting.cancel().await.unwrap();
    stale.log.set(Gate::Open);
    stale
        .until_role("the stale leader is fenced", |role| *role == Role::Fenced)
        .await;
    assert_eq!(waiting.view().phase, Phase::Queued);
    let mut worker = FakeWorker::connect_as(&next, mk_hello_with(Vec::new(), 0)).await;
    let plan = worker.expect_assign_of("plan").await;
    for input in &plan.inputs {
        let key = Key::new(input.key.as_str()).unwrap();
        next.store.stat(&key).await.unwrap();
    }
    assert!(!plan.inputs.is_empty() && job.view().phase != Phase::Failed);
}

#[tokio::test]
async fn a_standby_sends_workers_to_the_leader_and_takes_no_jobs() {
    let folder = mk_folder();
    let standby = mk_standby(&folder).await;
    let (outgoing, mut incoming) = open_stream(&standby, Some(support::TOKEN)).await.unwrap();
    let unknown = tokio::time::timeout(SOON, incoming.message())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::Unavailable, "{unknown}");
    drop(outgoing);
    standby.coordinator.set_leader(Some("10.0.0.1:7000".to_owned()));
    let (_outgoing, mut incoming) = open_stream(&standby, Some(support::TOKEN)).await.unwrap();
    let told = tokio::time::timeout(SOON, incoming.message())
        .await
        .unwrap()
        .unwrap();
    let Some(FromCoordinator::NotLeader(leader)) = told.and_then(|told| told.message) else {
        panic!("no word of the leader");
    };
    assert_eq!(leader.address, "10.0.0.1:7000");
    let refused = standby.refuse(mk_job("early")).await;
    assert_eq!(
        (refused.category(), refused.retry()),
        ("not_leader", prover_coordinator::Retry::Backoff)
    );
}

#[tokio::test]
async fn a_job_that_was_over_is_shown_as_it_was_after_both_coordinators_were_gone() {
    let folder = mk_folder();
    let before = proved_before_its_leader_died(&folder, "over").await;

    let second = mk_leader(&folder).await;
    let again = second.submit(mk_risc0_job("over")).await;
    let after = again.view();
    assert_eq!(
        (after.phase, after.id, &after.proof, &after.public_values),
        (before.phase, before.id, &before.proof, &before.public_values)
    );
    assert_eq!(
        (
            &after.stages,
            &after.execution,
            after.attempts,
            after.failed_attempts
        ),
        (
            &before.stages,
            &before.execution,
            before.attempts,
            before.failed_attempts
        )
    );
    assert_eq!(
        (
            after.started_at,
            after.finished_at,
            after.elapsed,
            after.device_seconds
        ),
        (
            before.started_at,
            before.finished_at,
            before.elapsed,
            before.device_seconds
        )
    );
    assert_eq!(after.backend, before.backend);
    // A third one reads a checkpoint or the same log, and a job that does not exist any more is gone.
    second.coordinator.jobs_synced().await.unwrap();
    assert_eq!(
        second.submit(mk_risc0_job("over")).await.view().phase,
        Phase::Succeeded
    );
    second.kill().await;
    let third = mk_leader(&folder).await;
    third.coordinator.jobs_synced().await.unwrap();
    let new = third.submit(mk_risc0_job("over")).await;
    assert_eq!(new.view().phase, Phase::Queued, "it is another job by now");
}

#[tokio::test]
async fn a_takeover_waits_while_the_store_is_away() {
    let folder = mk_folder();
    let first = mk_leader(&folder).await;
    let job = first.submit(mk_risc0_job("waiting")).await;
    assert_eq!(job.view().phase, Phase::Queued);
    let standby = mk_standby(&folder).await;
    standby
        .until_role("the standby follows", |role| {
            *role == Role::Following { caught_up: true }
        })
        .await;
    first.kill().await;
    standby.log.set(Gate::Away);
    let mut role = standby.coordinator.role();
    let taking = standby.coordinator.take_over();
    tokio::pin!(taking);
    let early = tokio::time::timeout(Duration::from_millis(500), &mut taking).await;
    assert!(early.is_err(), "{early:?}");
    assert!(!role.borrow_and_update().leads());
    standby.log.set(Gate::Open);
    let epoch = tokio::time::timeout(SOON, taking).await.unwrap().unwrap();
    assert_eq!(epoch, 2);
    assert!(role.borrow().leads());
}

#[tokio::test]
async fn a_leader_that_steps_down_leaves_nothing_unwritten() {
    let folder = mk_folder();
    let first = mk_leader(&folder).await;
    let mut worker = FakeWorker::connect_as(&first, mk_hello_with(Vec::new(), 0)).await;
    let job = first.submit(mk_risc0_job("in-good-order")).await;
    worker.plan(1).await;
    let prove = worker.expect_assign_of("prove").await;
    worker.start(&prove).await;
    worker.succeed(&prove).await;
    first.coordinator.step_down().await;
    assert_eq!(*first.coordinator.role().borrow(), Role::Fenced);
    drop(job);
    let second = mk_leader(&folder).await;
    let worker = FakeWorker::connect_as(&second, mk_hello_with(vec![mk_held(&prove, true)], 1)).await;
    worker.succeed(&prove).await;
    tokio::spawn(worker.work(1));
    let job = second.submit(mk_risc0_job("in-good-order")).await;
    assert_eq!(finished(&job).await.phase, Phase::Succeeded);
}

#[tokio::test]
async fn what_attempts_left_in_the_store_goes_with_the_end_of_their_job_and_what_is_named_stays() {
    let folder = mk_folder();
    let leader = mk_leader(&folder).await;
    let mut worker = FakeWorker::connect_as(&leader, mk_hello_with(Vec::new(), 0)).await;
    let job = leader.submit(mk_risc0_job("untidy")).await;
    let plan = worker.plan(1).await;
    let put = |name: &str| {
        let key = Key::new(format!("jobs/uid-untidy/attempts/{name}")).unwrap();
        let store = Arc::clone(&leader.store);
        async move {
            let content = bytes::Bytes::from_static(b"left");
            store
                .put_bytes(&key, content, Condition::CreateOnly)
                .await
                .unwrap();
            key
        }
    };
    let left = put(&format!("{}/of-a-killed-child", plan.attempt_id)).await;
    let mut named = None;
    for task_type in ["prove", "join", "verify"] {
        let assign = worker.expect_assign_of(task_type).await;
        worker.start(&assign).await;
        if task_type == "verify" {
            named = Some(put(&format!("{}/proof", assign.attempt_id)).await);
            assert!(
                leader.store.stat(&left).await.is_ok(),
                "nothing is swept while the job runs"
            );
        }
        worker.succeed(&assign).await;
    }
    assert_eq!(finished(&job).await.phase, Phase::Succeeded);
    leader.until_gone(&left).await;
    leader.store.stat(&named.unwrap()).await.unwrap();
}

#[tokio::test]
async fn what_a_job_left_that_ended_as_its_leader_died_goes_with_the_next_leader() {
    let folder = mk_folder();
    let view = proved_before_its_leader_died(&folder, "untidy").await;
    let proof = &view.proof.as_ref().expect("it is proved").proof.key;
    let left = Key::new("jobs/uid-untidy/attempts/1/of-a-killed-child").unwrap();
    let content = bytes::Bytes::from_static(b"left");
    let store = mk_store(&folder).await;
    store
        .put_bytes(&left, content.clone(), Condition::CreateOnly)
        .await
        .unwrap();
    let proof = Key::new(&**proof).unwrap();
    store
        .put_bytes(&proof, content, Condition::CreateOnly)
        .await
        .unwrap();

    let second = mk_leader(&folder).await;
    second.until_gone(&left).await;
    second.store.stat(&proof).await.unwrap();
}
