//! Every way in which a token can be worth nothing, each by one change of a good one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Request, Response};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use k8s_openapi::api::core::v1::{Pod, PodIP, PodStatus};
use kube::Client;
use kube::client::Body;
use prover_coordinator::{AuthenticationError, Identity, WorkerAuthenticator};
use prover_runtime::ManualClock;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};

use super::{Authenticator, IdentityConfig};
use crate::pods::PodDirectory;

const ISSUER: &str = "https://kubernetes.default.svc";
const NOW: u64 = 1_800_000_000;
const POD_ADDRESS: &str = "10.1.2.3";

/// A key of an issuer.
struct Key {
    id: &'static str,
    pair: KeyPair,
}

impl Key {
    fn new(id: &'static str) -> Key {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        Key { id, pair }
    }

    fn encoding(&self) -> EncodingKey {
        EncodingKey::from_ec_pem(self.pair.serialize_pem().as_bytes()).unwrap()
    }

    fn jwk(&self) -> Jwk {
        let mut jwk = Jwk::from_encoding_key(&self.encoding(), Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(self.id.to_owned());
        jwk
    }

    fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.id.to_owned());
        encode(&header, claims, &self.encoding()).unwrap()
    }
}

/// An API server that gives out keys and judges tokens, as a test tells it.
#[derive(Default)]
struct Server {
    keys: Mutex<Option<JwkSet>>,
    /// What a TokenReview answers; none: the server is away.
    review: Mutex<Option<Value>>,
    key_calls: AtomicUsize,
    reviews: AtomicUsize,
}

impl Server {
    fn give_out(&self, keys: &[&Key]) {
        let keys = keys.iter().map(|key| key.jwk()).collect();
        *self.keys.lock().unwrap() = Some(JwkSet { keys });
    }

    fn answer(&self, path: &str) -> Response<Body> {
        let answer = match path {
            "/.well-known/openid-configuration" => {
                self.key_calls.fetch_add(1, Ordering::SeqCst);
                let known = self.keys.lock().unwrap().is_some();
                known.then(|| json!({"issuer": ISSUER}))
            }
            "/openid/v1/jwks" => {
                let keys = self.keys.lock().unwrap();
                keys.as_ref().map(|keys| serde_json::to_value(keys).unwrap())
            }
            "/apis/authentication.k8s.io/v1/tokenreviews" => {
                self.reviews.fetch_add(1, Ordering::SeqCst);
                self.review.lock().unwrap().clone()
            }
            other => panic!("nobody should ask for {other}"),
        };
        let (status, body) = match answer {
            Some(answer) => (200, answer),
            None => (
                503,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 503,
                       "message": "away", "reason": "ServiceUnavailable"}),
            ),
        };
        Response::builder()
            .status(status)
            .body(Body::from(serde_json::to_vec(&body).unwrap()))
            .unwrap()
    }

    fn client(self: &Arc<Self>) -> Client {
        let server = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let answer = server.answer(request.uri().path());
            async move { Ok::<_, std::convert::Infallible>(answer) }
        });
        Client::new(service, "default")
    }
}

struct Fixture {
    server: Arc<Server>,
    key: Key,
    directory: PodDirectory,
    clock: Arc<ManualClock>,
    authenticator: Authenticator,
}

fn mk_pod(name: &str, uid: &str, addresses: &[&str]) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.uid = Some(uid.to_owned());
    pod.status = Some(PodStatus {
        phase: Some("Running".to_owned()),
        pod_ips: Some(
            addresses
                .iter()
                .map(|ip| PodIP { ip: (*ip).to_owned() })
                .collect(),
        ),
        ..PodStatus::default()
    });
    pod
}

fn mk_fixture() -> Fixture {
    mk_fixture_with(true)
}

fn mk_fixture_with(check_address: bool) -> Fixture {
    let server = Arc::new(Server::default());
    let key = Key::new("first");
    server.give_out(&[&key]);
    let directory = PodDirectory::default();
    directory.begin_list();
    directory.apply(&mk_pod("cpu-a", "uid-a", &[POD_ADDRESS, "fd00::3"]));
    directory.apply(&mk_pod("cpu-b", "uid-b", &["10.1.2.4"]));
    directory.end_list();
    let clock = Arc::new(ManualClock::at(NOW * 1_000));
    let config = IdentityConfig {
        namespace: "proving".to_owned(),
        cluster: "main".to_owned(),
        operator_namespace: "prover-system".to_owned(),
        operator_account: "prover-operator".to_owned(),
        check_address,
    };
    let registry = prometheus::Registry::new();
    let authenticator = Authenticator::new(
        server.client(),
        &config,
        directory.clone(),
        clock.clone(),
        &registry,
    )
    .unwrap();
    Fixture {
        server,
        key,
        directory,
        clock,
        authenticator,
    }
}

/// The claims of a good worker's token.
fn mk_claims() -> Value {
    json!({
        "iss": ISSUER,
        "sub": "system:serviceaccount:proving:main-worker",
        "aud": ["proving.rs/workers/proving/main"],
        "exp": NOW + 3_600,
        "iat": NOW - 10,
        "nbf": NOW - 10,
        "jti": "some-id",
        "kubernetes.io": {
            "namespace": "proving",
            "node": {"name": "node-1", "uid": "uid-node"},
            "pod": {"name": "cpu-a", "uid": "uid-a"},
            "serviceaccount": {"name": "main-worker", "uid": "uid-account"}
        }
    })
}

fn mk_operator_claims() -> Value {
    let mut claims = mk_claims();
    claims["sub"] = json!("system:serviceaccount:prover-system:prover-operator");
    claims["aud"] = json!(["proving.rs/operator/proving/main"]);
    claims["kubernetes.io"] = json!({
        "namespace": "prover-system",
        "serviceaccount": {"name": "prover-operator", "uid": "uid-operator"}
    });
    claims
}

fn from(address: &str) -> Option<SocketAddr> {
    Some(SocketAddr::new(address.parse().unwrap(), 40_000))
}

impl Fixture {
    async fn ask(&self, token: &str) -> Result<Identity, AuthenticationError> {
        self.authenticator.authenticate(token, from(POD_ADDRESS)).await
    }

    async fn category(&self, token: &str) -> &'static str {
        match self.ask(token).await {
            Ok(identity) => panic!("it was let in as {identity:?}"),
            Err(error) => error.category(),
        }
    }

    async fn category_of(&self, change: impl FnOnce(&mut Value)) -> &'static str {
        let mut claims = mk_claims();
        change(&mut claims);
        self.category(&self.key.sign(&claims)).await
    }
}

fn mk_identity() -> Identity {
    Identity::Worker {
        pod_name: "cpu-a".into(),
        pod_uid: "uid-a".into(),
    }
}

#[tokio::test]
async fn the_agent_of_a_running_pod_is_let_in_from_each_of_its_addresses() {
    let fixture = mk_fixture();
    let token = fixture.key.sign(&mk_claims());
    for address in [POD_ADDRESS, "fd00::3", "::ffff:10.1.2.3"] {
        let judged = fixture.authenticator.authenticate(&token, from(address)).await;
        assert_eq!(judged, Ok(mk_identity()), "{address}");
    }
    assert_eq!(
        fixture.server.key_calls.load(Ordering::SeqCst),
        1,
        "the API server is asked once for all"
    );
}

#[tokio::test]
async fn the_operator_is_let_in_with_its_own_audience_and_account_only() {
    let fixture = mk_fixture();
    let good = fixture.key.sign(&mk_operator_claims());
    assert_eq!(fixture.ask(&good).await, Ok(Identity::Operator));
    let mut other_account = mk_operator_claims();
    other_account["sub"] = json!("system:serviceaccount:prover-system:default");
    assert_eq!(
        fixture.category(&fixture.key.sign(&other_account)).await,
        "token_account"
    );
    let mut forged_subject = mk_operator_claims();
    forged_subject["kubernetes.io"]["namespace"] = json!("elsewhere");
    assert_eq!(
        fixture.category(&fixture.key.sign(&forged_subject)).await,
        "token_account"
    );
    let mut worker = mk_claims();
    worker["aud"] = json!(["proving.rs/operator/proving/main"]);
    assert_eq!(
        fixture.category(&fixture.key.sign(&worker)).await,
        "token_account"
    );
    let mut other_cluster = mk_operator_claims();
    other_cluster["aud"] = json!(["proving.rs/operator/proving/other"]);
    assert_eq!(
        fixture.category(&fixture.key.sign(&other_cluster)).await,
        "token_audience"
    );
}

/// Makes one claim of a good token that of somebody else.
type Change = Box<dyn FnOnce(&mut Value)>;

#[tokio::test]
async fn claims_of_others_are_refused() {
    let fixture = mk_fixture();
    let refused: [(&str, Change); 12] = [
        (
            "token_audience",
            Box::new(|c| c["aud"] = json!(["https://kubernetes.default.svc"])),
        ),
        (
            "token_audience",
            Box::new(|c| c["aud"] = json!("proving.rs/workers/proving/other")),
        ),
        (
            "token_issuer",
            Box::new(|c| c["iss"] = json!("https://elsewhere")),
        ),
        ("token_expired", Box::new(|c| c["exp"] = json!(NOW - 60))),
        ("token_not_yet_valid", Box::new(|c| c["nbf"] = json!(NOW + 61))),
        (
            "token_account",
            Box::new(|c| {
                c["sub"] = json!("system:serviceaccount:proving:default");
                c["kubernetes.io"]["serviceaccount"]["name"] = json!("default");
            }),
        ),
        (
            "token_account",
            Box::new(|c| c["sub"] = json!("system:serviceaccount:proving:default")),
        ),
        (
            "token_namespace",
            Box::new(|c| {
                c["sub"] = json!("system:serviceaccount:elsewhere:main-worker");
                c["kubernetes.io"]["namespace"] = json!("elsewhere");
            }),
        ),
        (
            "token_without_pod",
            Box::new(|c| c["kubernetes.io"]["pod"] = Value::Null),
        ),
        (
            "token_without_pod",
            Box::new(|c| {
                c.as_object_mut().unwrap().remove("kubernetes.io");
            }),
        ),
        (
            "token_malformed",
            Box::new(|c| {
                c.as_object_mut().unwrap().remove("exp");
            }),
        ),
        (
            "token_malformed",
            Box::new(|c| {
                c.as_object_mut().unwrap().remove("aud");
            }),
        ),
    ];
    for (expected, change) in refused {
        assert_eq!(fixture.category_of(change).await, expected);
    }
    // Clocks differ: a minute of either side is no reason.
    for change in [json!({"exp": NOW - 59}), json!({"nbf": NOW + 60})] {
        let mut claims = mk_claims();
        claims
            .as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        assert_eq!(fixture.ask(&fixture.key.sign(&claims)).await, Ok(mk_identity()));
    }
}

#[tokio::test]
async fn what_is_not_signed_by_the_api_server_is_refused() {
    let fixture = mk_fixture();
    let good = fixture.key.sign(&mk_claims());
    fixture.ask(&good).await.unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    let part = |value: Value| URL_SAFE_NO_PAD.encode(serde_json::to_vec(&value).unwrap());
    let unsigned = format!("{}.{}.", part(json!({"alg": "none", "kid": "first"})), parts[1]);
    assert_eq!(fixture.category(&unsigned).await, "token_algorithm");

    // The public key as the secret of an HMAC: the classic confusion of algorithms.
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("first".to_owned());
    let public = EncodingKey::from_secret(fixture.key.pair.public_key_pem().as_bytes());
    let confused = encode(&header, &mk_claims(), &public).unwrap();
    assert_eq!(fixture.category(&confused).await, "token_algorithm");
    let as_rsa = format!(
        "{}.{}.{}",
        part(json!({"alg": "RS256", "kid": "first"})),
        parts[1],
        parts[2]
    );
    assert_eq!(fixture.category(&as_rsa).await, "token_signature");

    let mut stranger = Key::new("first");
    assert_eq!(
        fixture.category(&stranger.sign(&mk_claims())).await,
        "token_signature"
    );
    stranger.id = "unheard-of";
    assert_eq!(
        fixture.category(&stranger.sign(&mk_claims())).await,
        "token_unknown_key"
    );
    let no_key_id = format!("{}.{}.{}", part(json!({"alg": "ES256"})), parts[1], parts[2]);
    assert_eq!(fixture.category(&no_key_id).await, "token_unknown_key");

    let mut other = mk_claims();
    other["kubernetes.io"]["pod"] = json!({"name": "cpu-b", "uid": "uid-b"});
    let swapped = format!("{}.{}.{}", parts[0], part(other), parts[2]);
    assert_eq!(fixture.category(&swapped).await, "token_signature");
    for cut in 1..12 {
        let category = fixture.category(&good[..good.len() - cut]).await;
        assert!(
            ["token_signature", "token_malformed"].contains(&category),
            "{category}"
        );
    }
    for malformed in [
        "",
        "a",
        "a.b",
        "a.b.c",
        "....",
        "a.b.c.d",
        &format!("{}.{}", parts[0], parts[1]),
    ] {
        assert_eq!(
            fixture.category(malformed).await,
            "token_malformed",
            "{malformed}"
        );
    }
    assert_eq!(fixture.category(&"x".repeat(1 << 20)).await, "token_too_long");
}

#[tokio::test(start_paused = true)]
async fn a_token_is_worth_nothing_outside_its_pod_and_after_it() {
    let fixture = mk_fixture();
    let token = fixture.key.sign(&mk_claims());
    let elsewhere = fixture.authenticator.authenticate(&token, from("10.1.2.4")).await;
    assert_eq!(elsewhere.unwrap_err().category(), "foreign_address");
    let nowhere = fixture.authenticator.authenticate(&token, None).await;
    assert_eq!(nowhere.unwrap_err().category(), "unknown_address");
    let unknown = |c: &mut Value| c["kubernetes.io"]["pod"] = json!({"name": "cpu-z", "uid": "uid-z"});
    assert_eq!(fixture.category_of(unknown).await, "pod_unknown");
    let other_uid = |c: &mut Value| c["kubernetes.io"]["pod"]["uid"] = json!("uid-of-an-earlier-pod");
    assert_eq!(fixture.category_of(other_uid).await, "pod_unknown");

    let mut ended = mk_pod("cpu-a", "uid-a", &[POD_ADDRESS]);
    ended.status.as_mut().unwrap().phase = Some("Failed".to_owned());
    fixture.directory.apply(&ended);
    assert_eq!(fixture.category(&token).await, "pod_unknown");
    fixture.directory.delete(&ended);
    assert_eq!(fixture.category(&token).await, "pod_unknown");
    // A later pod of the same name and address has another UID.
    fixture
        .directory
        .apply(&mk_pod("cpu-a", "uid-later", &[POD_ADDRESS]));
    assert_eq!(fixture.category(&token).await, "pod_unknown");
}

#[tokio::test]
async fn addresses_are_not_looked_at_where_the_network_changes_them() {
    let fixture = mk_fixture_with(false);
    let token = fixture.key.sign(&mk_claims());
    let judged = fixture
        .authenticator
        .authenticate(&token, from("192.0.2.1"))
        .await;
    assert_eq!(judged, Ok(mk_identity()));
}

#[tokio::test]
async fn a_pod_that_is_ahead_of_the_watch_is_waited_for() {
    let fixture = mk_fixture();
    let mut claims = mk_claims();
    claims["kubernetes.io"]["pod"] = json!({"name": "cpu-new", "uid": "uid-new"});
    let token = fixture.key.sign(&claims);
    let (judged, ()) = tokio::join!(fixture.ask(&token), async {
        tokio::task::yield_now().await;
        fixture.directory.apply(&mk_pod("cpu-new", "uid-new", &[]));
        tokio::task::yield_now().await;
        fixture
            .directory
            .apply(&mk_pod("cpu-new", "uid-new", &[POD_ADDRESS]));
    });
    assert!(judged.is_ok(), "{judged:?}");
}

#[tokio::test(start_paused = true)]
async fn before_the_first_list_of_pods_nobody_is_refused_for_good() {
    let mut fixture = mk_fixture();
    fixture.directory = PodDirectory::default();
    fixture.authenticator.directory = fixture.directory.clone();
    let judged = fixture.ask(&fixture.key.sign(&mk_claims())).await;
    assert!(
        matches!(judged, Err(AuthenticationError::Unavailable { .. })),
        "{judged:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_fetched_when_it_is_met_but_never_at_the_rate_of_strangers() {
    let fixture = mk_fixture();
    fixture.ask(&fixture.key.sign(&mk_claims())).await.unwrap();
    let second = Key::new("second");
    fixture.server.give_out(&[&fixture.key, &second]);
    assert_eq!(
        fixture.category(&second.sign(&mk_claims())).await,
        "token_unknown_key",
        "the keys were fetched a moment ago"
    );
    tokio::time::advance(std::time::Duration::from_secs(11)).await;
    fixture.ask(&second.sign(&mk_claims())).await.unwrap();
    let calls = fixture.server.key_calls.load(Ordering::SeqCst);
    let stranger = Key::new("stranger");
    let token = stranger.sign(&mk_claims());
    for _ in 0..100 {
        assert_eq!(fixture.category(&token).await, "token_unknown_key");
    }
    assert_eq!(fixture.server.key_calls.load(Ordering::SeqCst), calls);

    // While the API server is away, what is known goes on to work.
    *fixture.server.keys.lock().unwrap() = None;
    tokio::time::advance(std::time::Duration::from_secs(3_600)).await;
    for _ in 0..3 {
        fixture.ask(&second.sign(&mk_claims())).await.unwrap();
        tokio::time::advance(std::time::Duration::from_secs(20)).await;
    }
}

fn mk_review(authenticated: bool, audiences: &[&str]) -> Value {
    json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "metadata": {},
        "spec": {},
        "status": {"authenticated": authenticated, "audiences": audiences}
    })
}

#[tokio::test(start_paused = true)]
async fn where_no_keys_are_given_out_the_api_server_is_asked_once_per_token() {
    let fixture = mk_fixture();
    *fixture.server.keys.lock().unwrap() = None;
    let audience = "proving.rs/workers/proving/main";
    *fixture.server.review.lock().unwrap() = Some(mk_review(true, &[audience]));
    let token = fixture.key.sign(&mk_claims());
    for _ in 0..5 {
        assert_eq!(fixture.ask(&token).await, Ok(mk_identity()));
    }
    assert_eq!(fixture.server.reviews.load(Ordering::SeqCst), 1);

    // What would not be taken if it were genuine is not worth a question.
    assert_eq!(
        fixture.category_of(|c| c["aud"] = json!(["another"])).await,
        "token_audience"
    );
    assert_eq!(
        fixture.category_of(|c| c["exp"] = json!(NOW - 100)).await,
        "token_expired"
    );
    assert_eq!(fixture.server.reviews.load(Ordering::SeqCst), 1);

    // An answer for no audience of ours is none.
    *fixture.server.review.lock().unwrap() = Some(mk_review(true, &[]));
    assert_eq!(
        fixture.category_of(|c| c["jti"] = json!("2")).await,
        "token_signature"
    );
    *fixture.server.review.lock().unwrap() = Some(mk_review(false, &[]));
    assert_eq!(
        fixture.category_of(|c| c["jti"] = json!("3")).await,
        "token_signature"
    );

    // An answer counts no longer than its token.
    fixture.clock.advance(4_000_000);
    assert_eq!(fixture.category(&token).await, "token_expired");
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_is_left_alone_for_a_while() {
    let fixture = mk_fixture();
    *fixture.server.keys.lock().unwrap() = None;
    let mut categories = BTreeMap::new();
    for index in 0..50 {
        let category = fixture.category_of(|c| c["jti"] = json!(index.to_string())).await;
        *categories.entry(category).or_insert(0) += 1;
    }
    assert_eq!(categories, BTreeMap::from([("verification_unavailable", 50)]));
    assert_eq!(fixture.server.reviews.load(Ordering::SeqCst), 1);
    tokio::time::advance(std::time::Duration::from_secs(11)).await;
    fixture.server.give_out(&[&fixture.key]);
    assert_eq!(
        fixture.ask(&fixture.key.sign(&mk_claims())).await,
        Ok(mk_identity())
    );
}
