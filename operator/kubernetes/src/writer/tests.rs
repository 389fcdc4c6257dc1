//! The writer against an API server that answers as each test says.

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use prover_crds::Phase;
use prover_runtime::prometheus::Registry;
use serde_json::{Value, json};
use tower_test::mock::{self, Handle};

use super::*;

type Server = Handle<Request<Body>, Response<Body>>;

/// How the API server answers one write.
#[derive(Clone, Copy, Debug)]
enum Scenario {
    Accepts,
    ObjectGone,
    Unavailable,
}

fn mk_writer() -> (StatusWriter, Server) {
    let (service, handle) = mock::pair();
    let client = Client::new(service, "default");
    let metrics = Metrics::register(&Registry::new()).unwrap();
    (StatusWriter::new(client, metrics), handle)
}

fn mk_name(name: &str) -> JobName {
    JobName {
        namespace: "tenant".into(),
        name: name.into(),
        uid: format!("uid-of-{name}").into(),
    }
}

fn mk_status(phase: Phase, generation: i64) -> ProofJobStatus {
    ProofJobStatus {
        phase: Some(phase),
        observed_generation: Some(generation),
        ..ProofJobStatus::default()
    }
}

/// Answers the next write and gives what it wrote.
async fn serve(server: &mut Server, name: &str, scenario: Scenario) -> Value {
    let (request, answer) = server.next_request().await.expect("a write");
    assert_eq!(request.method(), Method::PATCH);
    assert_eq!(
        request.uri().path(),
        format!("/apis/proving.rs/v1alpha1/namespaces/tenant/proofjobs/{name}/status")
    );
    let query = request.uri().query().unwrap_or_default().to_owned();
    assert!(
        query.contains("fieldManager=prover-coordinator") && query.contains("force=true"),
        "{query}"
    );
    assert_eq!(request.headers()["content-type"], "application/apply-patch+yaml");
    let bytes = request.into_body().collect().await.unwrap().to_bytes();
    let written: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(
        written["metadata"]["resourceVersion"], "7",
        "it holds for the version that is known"
    );
    let failure = |code: u16, reason: &str, message: &str| json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message });
    let (code, body) = match scenario {
        Scenario::Accepts => (
            200,
            json!({ "apiVersion": "proving.rs/v1alpha1", "kind": "ProofJob", "metadata": { "name": name, "resourceVersion": "7" } }),
        ),
        Scenario::ObjectGone => (404, failure(404, "NotFound", "not found")),
        Scenario::Unavailable => (503, failure(503, "ServiceUnavailable", "restarting")),
    };
    let response = Response::builder()
        .status(StatusCode::from_u16(code).unwrap())
        .body(Body::from(body.to_string().into_bytes()))
        .unwrap();
    answer.send_response(response);
    written["status"].clone()
}

/// What a watch tells of an object of version 7.
fn know(writer: &mut StatusWriter, name: &JobName, status: ProofJobStatus) {
    writer.known(name, status);
    writer.seen(name, Some("7".to_owned()));
}

/// Answers the next call with any object or refusal, and gives its method and the version in its body.
async fn answer(server: &mut Server, code: u16, body: Value) -> (Method, Option<String>) {
    let (request, answer) = server.next_request().await.expect("a call");
    let method = request.method().clone();
    let bytes = request.into_body().collect().await.unwrap().to_bytes();
    let sent: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let response = Response::builder()
        .status(StatusCode::from_u16(code).unwrap())
        .body(Body::from(body.to_string().into_bytes()))
        .unwrap();
    answer.send_response(response);
    let version = sent["metadata"]["resourceVersion"].as_str().map(str::to_owned);
    (method, version)
}

/// The object changed before the write: its present version and uid are looked up.
#[tokio::test]
async fn an_object_that_changed_is_looked_at_again_and_another_one_is_left_alone() {
    let conflict = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 409, "reason": "Conflict",
        "message": "the object has been modified",
    });
    for (uid, ours) in [("uid-of-one", true), ("uid-of-a-later-one", false)] {
        let (mut writer, mut server) = mk_writer();
        let name = mk_name("one");
        know(&mut writer, &name, ProofJobStatus::default());
        writer.want(&name, mk_status(Phase::Running, 1), NOW);
        writer.start_due(NOW);
        let object = json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": { "name": "one", "uid": uid, "resourceVersion": "8" },
        });
        let serve = async {
            let first = answer(&mut server, 409, conflict.clone()).await;
            assert_eq!(first, (Method::PATCH, Some("7".to_owned())));
            assert_eq!(answer(&mut server, 200, object.clone()).await.0, Method::GET);
            if ours {
                let second = answer(&mut server, 200, object.clone()).await;
                assert_eq!(second, (Method::PATCH, Some("8".to_owned())));
            }
        };
        let ((), finished) = tokio::join!(serve, writer.finished());
        let (_, outcome) = writer.settle(finished, NOW);
        assert_eq!(matches!(outcome, Outcome::Written { .. }), ours, "{outcome:?}");
        assert_eq!(matches!(outcome, Outcome::Gone), !ours, "{outcome:?}");
    }
}

/// Lets the writer send what is due, and answers it.
async fn write_one(
    writer: &mut StatusWriter,
    server: &mut Server,
    name: &JobName,
    scenario: Scenario,
    now: Timestamp,
) -> (Value, Outcome) {
    writer.start_due(now);
    let (written, finished) = tokio::join!(serve(server, &name.name, scenario), writer.finished());
    let (of, outcome) = writer.settle(finished, now);
    assert_eq!(of, *name);
    (written, outcome)
}

const NOW: Timestamp = Timestamp(1_000_000);

#[tokio::test]
async fn a_wanted_status_is_written_once() {
    let (mut writer, mut server) = mk_writer();
    let name = mk_name("one");
    know(&mut writer, &name, ProofJobStatus::default());
    writer.want(&name, mk_status(Phase::Running, 1), NOW);
    let (written, outcome) = write_one(&mut writer, &mut server, &name, Scenario::Accepts, NOW).await;
    assert_eq!(written["phase"], "Running");
    assert!(matches!(outcome, Outcome::Written { ended: false }));
    assert!(writer.is_settled(&name));
    writer.want(&name, mk_status(Phase::Running, 1), NOW);
    assert_eq!(writer.wake_at(), None);
}

#[tokio::test]
async fn only_the_latest_of_several_statuses_is_written() {
    let (mut writer, mut server) = mk_writer();
    let name = mk_name("one");
    know(&mut writer, &name, ProofJobStatus::default());
    writer.want(&name, mk_status(Phase::Pending, 1), NOW);
    writer.start_due(NOW);
    // The first one is on its way while three more are wanted.
    for phase in [Phase::Running, Phase::Suspended, Phase::Succeeded] {
        writer.want(&name, mk_status(phase, 1), NOW);
    }
    let (first, finished) = tokio::join!(serve(&mut server, "one", Scenario::Accepts), writer.finished());
    writer.settle(finished, NOW);
    let (second, outcome) = write_one(&mut writer, &mut server, &name, Scenario::Accepts, NOW).await;
    assert_eq!(
        (first["phase"].as_str(), second["phase"].as_str()),
        (Some("Pending"), Some("Succeeded"))
    );
    assert!(matches!(outcome, Outcome::Written { ended: true }));
    assert_eq!(writer.unsettled(), 0);
}

#[tokio::test]
async fn a_job_that_runs_soon_is_told_in_one_write() {
    let (mut writer, mut server) = mk_writer();
    let name = mk_name("one");
    know(&mut writer, &name, ProofJobStatus::default());
    writer.want(&name, mk_status(Phase::Queued, 1), NOW);
    writer.start_due(NOW);
    assert_eq!(writer.wake_at(), Some(NOW + FIRST_WAIT_HOLD));
    let soon = NOW + Milliseconds(60);
    writer.want(&name, mk_status(Phase::Running, 1), soon);
    let (written, _) = write_one(&mut writer, &mut server, &name, Scenario::Accepts, soon).await;
    assert_eq!(written["phase"], "Running");
    assert_eq!(writer.unsettled(), 0);
}

#[tokio::test]
async fn a_status_that_is_held_back_is_still_written_at_the_end() {
    let (mut writer, mut server) = mk_writer();
    let name = mk_name("one");
    know(&mut writer, &name, ProofJobStatus::default());
    writer.want(&name, mk_status(Phase::Queued, 1), NOW);
    writer.start_all(NOW);
    let (written, finished) = tokio::join!(serve(&mut server, "one", Scenario::Accepts), writer.finished());
    writer.settle(finished, NOW);
    assert_eq!(written["phase"], "Queued");
    assert_eq!(writer.unsettled(), 0);
}

#[tokio::test]
async fn a_gone_object_is_forgotten() {
    for scenario in [Scenario::ObjectGone] {
        let (mut writer, mut server) = mk_writer();
        let name = mk_name("one");
        know(&mut writer, &name, ProofJobStatus::default());
        writer.want(&name, mk_status(Phase::Running, 1), NOW);
        let (_, outcome) = write_one(&mut writer, &mut server, &name, scenario, NOW).await;
        assert!(matches!(outcome, Outcome::Gone), "{scenario:?}");
        writer.want(&name, mk_status(Phase::Failed, 1), NOW);
        assert_eq!(writer.wake_at(), None, "{scenario:?}");
    }
}

#[tokio::test]
async fn a_failed_write_is_tried_again_later_with_the_latest_status() {
    for scenario in [Scenario::Unavailable] {
        let (mut writer, mut server) = mk_writer();
        let name = mk_name("one");
        know(&mut writer, &name, ProofJobStatus::default());
        writer.want(&name, mk_status(Phase::Running, 1), NOW);
        let mut now = NOW;
        for failures in 1..=3 {
            let (_, outcome) = write_one(&mut writer, &mut server, &name, scenario, now).await;
            assert!(matches!(outcome, Outcome::Failed), "{scenario:?}");
            let next = writer.wake_at().expect("another try");
            assert_eq!(next, now + retry_wait(failures), "{scenario:?}");
            now = next;
        }
        writer.want(&name, mk_status(Phase::Succeeded, 2), now);
        let (written, outcome) = write_one(&mut writer, &mut server, &name, Scenario::Accepts, now).await;
        assert_eq!(written["phase"], "Succeeded", "{scenario:?}");
        assert!(
            matches!(outcome, Outcome::Written { ended: true }),
            "{scenario:?}"
        );
    }
}

#[tokio::test]
async fn ends_go_first_and_progress_is_bounded() {
    let (mut writer, mut server) = mk_writer();
    let count = crate::write_plan::PROGRESS_WRITES_PER_SECOND + 5;
    for index in 0..count {
        let name = mk_name(&format!("job-{index}"));
        know(&mut writer, &name, mk_status(Phase::Running, 1));
        let mut wanted = mk_status(Phase::Running, 1);
        wanted.effective_hz = Some(1);
        writer.want(&name, wanted, NOW);
    }
    let ended = mk_name("ended");
    know(&mut writer, &ended, mk_status(Phase::Running, 1));
    writer.want(&ended, mk_status(Phase::Succeeded, 1), NOW);
    let (_, outcome) = {
        writer.start_due(NOW);
        assert_eq!(
            writer.in_flight.len(),
            1 + crate::write_plan::PROGRESS_WRITES_PER_SECOND
        );
        tokio::join!(serve(&mut server, "ended", Scenario::Accepts), writer.finished())
    };
    assert_eq!(outcome.job, ended);
    let next = writer.wake_at().expect("the others have their turn");
    assert_eq!(next, Timestamp(NOW.0 + 1_000));
}
