//! Two replicas and one Lease, on an API server that the test plays, in a time that the test makes.

use std::sync::Mutex;

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use prover_runtime::ManualClock;
use prover_runtime::prometheus::Registry;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_test::mock;

use super::lease::{LEASE_MS, LOOK_PERIOD_MS};
use super::*;

const BEGIN_MS: u64 = 1_000_000;

/// The Lease as the API server has it; none while the server is away.
#[derive(Clone, Debug, Default)]
struct Server {
    lease: Arc<Mutex<Option<Value>>>,
    away: Arc<Mutex<bool>>,
}

impl Server {
    fn client(&self) -> Client {
        let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
        let server = self.clone();
        tokio::spawn(async move {
            while let Some((request, answer)) = handle.next_request().await {
                let method = request.method().clone();
                assert!(
                    request
                        .uri()
                        .path()
                        .starts_with("/apis/coordination.k8s.io/v1/namespaces/proving/leases")
                );
                let bytes = request.into_body().collect().await.unwrap().to_bytes();
                let (code, body) = server.answer(&method, serde_json::from_slice(&bytes).ok());
                let response = Response::builder()
                    .status(StatusCode::from_u16(code).unwrap())
                    .body(Body::from(body.to_string().into_bytes()))
                    .unwrap();
                answer.send_response(response);
            }
        });
        Client::new(service, "proving")
    }

    fn answer(&self, method: &Method, sent: Option<Value>) -> (u16, Value) {
        let failure = |code: u16| {
            let body = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code });
            (code, body)
        };
        if *self.away.lock().unwrap() {
            return failure(503);
        }
        let mut lease = self.lease.lock().unwrap();
        let version = |lease: &Value| lease["metadata"]["resourceVersion"].clone();
        match (method, sent, lease.as_ref()) {
            (&Method::GET, _, None) => failure(404),
            (&Method::GET, _, Some(lease)) => (200, lease.clone()),
            (&Method::POST, Some(_), Some(_)) => failure(409),
            (&Method::PUT, Some(sent), Some(present)) if version(&sent) != version(present) => failure(409),
            (&Method::POST | &Method::PUT, Some(mut sent), present) => {
                let before = present.map_or(0, |lease| {
                    version(lease).as_str().unwrap().parse::<u64>().unwrap()
                });
                sent["metadata"]["resourceVersion"] = json!((before + 1).to_string());
                *lease = Some(sent.clone());
                (200, sent)
            }
            (method, ..) => panic!("{method} was not expected"),
        }
    }

    fn holder(&self) -> String {
        let lease = self.lease.lock().unwrap();
        lease.as_ref().unwrap()["spec"]["holderIdentity"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

fn replica(server: &Server, name: &str, clock: &Arc<ManualClock>) -> LeaseClient {
    let candidate = Candidate {
        pod: name.to_owned(),
        address: format!("{name}:7000"),
        probes: format!("{name}:9090"),
        namespace: "proving".to_owned(),
        cluster: "main".to_owned(),
        cluster_uid: "uid-of-main".to_owned(),
    };
    let metrics = Metrics::register(&Registry::new()).unwrap();
    let clock: Arc<dyn Clock> = clock.clone();
    LeaseClient::new(server.client(), candidate, clock, metrics)
}

/// Looks for as long as it takes, as a follower does, and says what it concludes last.
async fn look_for(replica: &mut LeaseClient, clock: &ManualClock, milliseconds: u64) -> Decision {
    let mut decision = replica.look().await.unwrap();
    for _ in 0..milliseconds / LOOK_PERIOD_MS {
        clock.advance(LOOK_PERIOD_MS);
        decision = replica.look().await.unwrap();
    }
    decision
}

#[tokio::test]
async fn the_second_replica_takes_a_lease_that_is_not_renewed_and_the_first_one_notices() {
    let (server, clock) = (Server::default(), Arc::new(ManualClock::at(BEGIN_MS)));
    let (mut a, mut b) = (replica(&server, "a", &clock), replica(&server, "b", &clock));
    let (of_a, of_b) = (Confirmed::default(), Confirmed::default());
    assert_eq!(a.look().await.unwrap(), Decision::Create);
    assert!(a.write(&of_a).await.unwrap());
    assert!(of_a.holds(BEGIN_MS + LEASE_MS - 1) && !of_a.holds(BEGIN_MS + LEASE_MS));
    let owner = server.lease.lock().unwrap().as_ref().unwrap()["metadata"]["ownerReferences"][0].clone();
    assert_eq!(
        (&owner["kind"], &owner["uid"]),
        (&json!("ProverCluster"), &json!("uid-of-main"))
    );

    // It is renewed for a while: nobody takes it.
    for _ in 0..4 {
        let decision = look_for(&mut b, &clock, 1_000).await;
        assert!(matches!(decision, Decision::Wait { .. }), "{decision:?}");
        assert!(a.write(&of_a).await.unwrap());
    }
    assert_eq!(b.leader().unwrap().address.as_deref(), Some("a:7000"));

    let decision = look_for(&mut b, &clock, LEASE_MS + LOOK_PERIOD_MS).await;
    assert_eq!(decision, Decision::Take(TakeReason::Expired));
    assert!(
        !of_a.holds(clock.now_milliseconds()),
        "a stopped leader writes nothing when it wakes up"
    );
    assert!(b.write(&of_b).await.unwrap());
    assert_eq!(
        (server.holder(), b.predecessor()),
        ("b".to_owned(), Some("a".to_owned()))
    );
    assert!(!a.write(&of_a).await.unwrap(), "another one has it");
    assert!(matches!(a.look().await.unwrap(), Decision::Wait { .. }));
    assert_eq!(a.leader().unwrap().address.as_deref(), Some("b:7000"));
}

#[tokio::test]
async fn a_lease_that_is_given_back_is_taken_at_once() {
    let (server, clock) = (Server::default(), Arc::new(ManualClock::at(BEGIN_MS)));
    let (mut a, mut b) = (replica(&server, "a", &clock), replica(&server, "b", &clock));
    let (of_a, of_b) = (Confirmed::default(), Confirmed::default());
    a.look().await.unwrap();
    a.write(&of_a).await.unwrap();
    assert!(matches!(b.look().await.unwrap(), Decision::Wait { .. }));
    b.release(&of_b).await;
    assert_eq!(server.holder(), "a", "only its holder gives it back");
    a.release(&of_a).await;
    assert!(!of_a.holds(clock.now_milliseconds()));
    assert_eq!(b.look().await.unwrap(), Decision::Take(TakeReason::Released));
    assert!(b.write(&of_b).await.unwrap());
    assert_eq!(b.predecessor(), None);
}

#[tokio::test]
async fn of_two_that_take_a_lease_at_once_one_gets_it() {
    let (server, clock) = (Server::default(), Arc::new(ManualClock::at(BEGIN_MS)));
    let (mut a, mut b) = (replica(&server, "a", &clock), replica(&server, "b", &clock));
    let confirmed = Confirmed::default();
    assert_eq!(a.look().await.unwrap(), Decision::Create);
    assert_eq!(b.look().await.unwrap(), Decision::Create);
    assert!(a.write(&confirmed).await.unwrap());
    assert!(!b.write(&confirmed).await.unwrap());
    assert_eq!(server.holder(), "a");
}

#[tokio::test]
async fn an_api_server_that_was_away_gives_the_leader_its_whole_time_again() {
    let (server, clock) = (Server::default(), Arc::new(ManualClock::at(BEGIN_MS)));
    let (mut a, mut b) = (replica(&server, "a", &clock), replica(&server, "b", &clock));
    let confirmed = Confirmed::default();
    a.look().await.unwrap();
    a.write(&confirmed).await.unwrap();
    b.look().await.unwrap();
    *server.away.lock().unwrap() = true;
    clock.advance(60_000);
    assert!(b.look().await.is_err() && a.write(&confirmed).await.is_err());
    *server.away.lock().unwrap() = false;
    assert_eq!(b.look().await.unwrap(), Decision::Wait { for_ms: LEASE_MS });
    assert!(a.write(&confirmed).await.unwrap(), "it leads on");
}

#[tokio::test]
async fn only_a_leader_answers_that_it_leads() {
    let observation = Observation::new(Registry::new());
    let serving = observation.serve("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = serving.address().to_string();
    observation.set_role(FOLLOWS);
    assert!(!says_that_it_leads(&address).await);
    observation.set_role("leads 3");
    assert!(says_that_it_leads(&address).await);
    serving.stop().await;
    assert!(!says_that_it_leads(&address).await);
    // A stopped process: its kernel takes the connection, and nobody answers.
    let stopped = TcpListener::bind("127.0.0.1:0").await.unwrap();
    assert!(!says_that_it_leads(&stopped.local_addr().unwrap().to_string()).await);
}
