//! What jobs may read and what not, with local servers and an API server made up here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use prover_coordinator::{
    ClusterSources, FetchedContent, FetchedSource, RemoteError, RemoteProblem, SourceRequest,
};
use prover_crds::{HttpSource, KeyReference, Place, S3Source, SecretReference};
use prover_runtime::ManualClock;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{KubernetesSources, Resolve};

const LIMIT: u64 = 1_000;

/// An API server with some objects; it answers `get` and nothing else.
fn mk_client(objects: BTreeMap<String, Value>) -> Client {
    let objects = Arc::new(objects);
    let service = tower::service_fn(move |request: Request<Body>| {
        let objects = Arc::clone(&objects);
        async move {
            assert_eq!(request.method(), Method::GET);
            assert_eq!(
                request.uri().query().unwrap_or_default(),
                "",
                "a get, no list and no watch"
            );
            let path = request.uri().path();
            assert_eq!(path.split('/').count(), 7, "{path} names one object");
            let (status, body) = match objects.get(path) {
                Some(object) if object["kind"] == "Status" => (
                    u16::try_from(object["code"].as_u64().unwrap()).unwrap(),
                    object.clone(),
                ),
                Some(object) => (200, object.clone()),
                None => (404, mk_status(404, "NotFound")),
            };
            let body = Body::from(serde_json::to_vec(&body).unwrap());
            let response = Response::builder().status(status).body(body).unwrap();
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    Client::new(service, "default")
}

fn mk_status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
           "message": reason})
}

fn mk_object(kind: &str, labelled: bool, fields: &Value) -> Value {
    let labels = if labelled {
        json!({"proving.rs/readable-by-proofjobs": "true"})
    } else {
        json!({"proving.rs/readable-by-proofjobs": "yes"})
    };
    let mut object =
        json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "some", "labels": labels}});
    object
        .as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    object
}

/// Names that lead to addresses as a test says, each time to the next.
#[derive(Default)]
struct Names {
    known: Mutex<BTreeMap<String, Vec<IpAddr>>>,
    asked: AtomicUsize,
}

#[async_trait]
impl Resolve for Names {
    async fn addresses(&self, host: &str) -> std::io::Result<Vec<IpAddr>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let known = self.known.lock().unwrap();
        known
            .get(host)
            .cloned()
            .ok_or_else(|| std::io::Error::other("unknown name"))
    }
}

struct Fixture {
    sources: KubernetesSources,
    names: Arc<Names>,
}

fn mk_fixture(objects: &[(&str, Value)], allowed: &[&str]) -> Fixture {
    let objects = objects
        .iter()
        .map(|(path, object)| ((*path).to_owned(), object.clone()))
        .collect();
    let allowed: Vec<String> = allowed.iter().map(|host| (*host).to_owned()).collect();
    let names = Arc::new(Names::default());
    let sources = KubernetesSources::with_resolver(
        mk_client(objects),
        Arc::new(move || allowed.clone()),
        Arc::new(ManualClock::at(1_800_000_000_000)),
        names.clone(),
    );
    Fixture { sources, names }
}

impl Fixture {
    fn name(&self, host: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.names
            .known
            .lock()
            .unwrap()
            .insert(host.to_owned(), addresses);
    }

    async fn fetch(&self, place: Place<'_>) -> Result<FetchedSource, RemoteError> {
        let request = SourceRequest {
            namespace: "team",
            place,
            limit_bytes: LIMIT,
        };
        self.sources.fetch(request).await
    }

    async fn get(&self, url: &str) -> Result<Vec<u8>, RemoteError> {
        let source = HttpSource {
            url: url.to_owned(),
            token_ref: None,
        };
        self.fetch(Place::Http(&source)).await.map(|found| bytes(&found))
    }

    async fn problem_of(&self, url: &str) -> (RemoteProblem, String) {
        let error = self.get(url).await.unwrap_err();
        (error.problem, error.message)
    }
}

fn bytes(found: &FetchedSource) -> Vec<u8> {
    match &found.content {
        FetchedContent::Bytes(bytes) => bytes.to_vec(),
        FetchedContent::File(path) => std::fs::read(&**path).unwrap(),
    }
}

fn key(key: &str) -> KeyReference {
    KeyReference {
        name: "some".to_owned(),
        key: key.to_owned(),
    }
}

/// A web server that answers each request with the next of these, the last one for ever.
struct Web {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Web {
    async fn start(answers: Vec<String>) -> Web {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&requests);
        tokio::spawn(async move {
            let mut answers = answers.into_iter().peekable();
            let mut last = String::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => request.push(byte),
                        Err(_) => break,
                    }
                }
                heard.lock().unwrap().push(String::from_utf8(request).unwrap());
                last = answers.next().unwrap_or(last);
                let _ = stream.write_all(last.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        Web { port, requests }
    }

    async fn serving(body: &str) -> Web {
        Web::start(vec![mk_answer("200 OK", "", body)]).await
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn mk_answer(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}")
}

const CONFIG_MAP: &str = "/api/v1/namespaces/team/configmaps/some";
const SECRET: &str = "/api/v1/namespaces/team/secrets/some";

#[tokio::test]
async fn labelled_config_maps_and_secrets_of_the_namespace_are_read() {
    let config_map = json!({"data": {"text": "hello"}, "binaryData": {"binary": "AAEC"}});
    let fixture = mk_fixture(
        &[
            (CONFIG_MAP, mk_object("ConfigMap", true, &config_map)),
            (
                SECRET,
                mk_object("Secret", true, &json!({"data": {"binary": "AwQF"}})),
            ),
        ],
        &[],
    );
    let found = fixture.fetch(Place::ConfigMap(&key("text"))).await.unwrap();
    assert_eq!(
        (bytes(&found).as_slice(), found.origin.as_str()),
        (&b"hello"[..], r#"key "text" of ConfigMap "some""#)
    );
    assert_eq!(
        bytes(&fixture.fetch(Place::ConfigMap(&key("binary"))).await.unwrap()),
        [0, 1, 2]
    );
    assert_eq!(
        bytes(&fixture.fetch(Place::Secret(&key("binary"))).await.unwrap()),
        [3, 4, 5]
    );
    let missing = fixture.fetch(Place::Secret(&key("other"))).await.unwrap_err();
    assert_eq!(missing.problem, RemoteProblem::NotFound);
}

#[tokio::test]
async fn objects_without_the_label_are_not_read() {
    let data = json!({"data": {"a": "aGVsbG8="}});
    let fixture = mk_fixture(
        &[
            (CONFIG_MAP, mk_object("ConfigMap", false, &data)),
            (SECRET, mk_object("Secret", false, &data)),
        ],
        &[],
    );
    for place in [Place::ConfigMap(&key("a")), Place::Secret(&key("a"))] {
        let error = fixture.fetch(place).await.unwrap_err();
        assert_eq!(error.problem, RemoteProblem::NotAllowed);
        assert!(
            error
                .message
                .contains("proving.rs/readable-by-proofjobs: \"true\""),
            "{error}"
        );
    }
}

#[tokio::test]
async fn what_the_api_server_refuses_is_told_and_what_may_pass_is_transient() {
    let large = json!({"data": {"a": "x".repeat(1_001)}});
    for (object, problem) in [
        (mk_object("ConfigMap", true, &large), RemoteProblem::TooLarge),
        (mk_status(403, "Forbidden"), RemoteProblem::Unreadable),
        (mk_status(503, "ServiceUnavailable"), RemoteProblem::Transient),
        (mk_status(429, "TooManyRequests"), RemoteProblem::Transient),
    ] {
        let fixture = mk_fixture(&[(CONFIG_MAP, object)], &[]);
        let error = fixture.fetch(Place::ConfigMap(&key("a"))).await.unwrap_err();
        assert_eq!(error.problem, problem, "{error}");
    }
    let fixture = mk_fixture(&[], &[]);
    let error = fixture.fetch(Place::ConfigMap(&key("a"))).await.unwrap_err();
    assert_eq!(error.problem, RemoteProblem::NotFound);
    assert!(error.message.contains("namespace team"));
}

#[tokio::test]
async fn addresses_of_the_cluster_are_refused_however_they_are_written() {
    let web = Web::serving("secret of the cluster").await;
    let fixture = mk_fixture(&[], &[]);
    fixture.name("inside.example", &["127.0.0.1"]);
    fixture.name("both.example", &["1.1.1.1", "10.0.0.1"]);
    fixture.name("metadata.example", &["169.254.169.254"]);
    let port = web.port;
    for url in [
        format!("http://127.0.0.1:{port}/"),
        format!("http://2130706433:{port}/"),
        format!("http://0x7f.1:{port}/"),
        format!("http://[::1]:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://0.0.0.0:{port}/"),
        format!("http://inside.example:{port}/"),
        "http://both.example/".to_owned(),
        "http://metadata.example/latest/meta-data".to_owned(),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "https://10.96.0.1/api".to_owned(),
        "http://[fd00:ec2::254]/".to_owned(),
        "file:///etc/passwd".to_owned(),
        "http://user:password@1.1.1.1/".to_owned(),
    ] {
        let (problem, message) = fixture.problem_of(&url).await;
        assert_eq!(problem, RemoteProblem::NotAllowed, "{url}: {message}");
        assert!(!message.contains("password@"), "{message}");
    }
    assert_eq!(web.requests(), Vec::<String>::new());
}

#[tokio::test]
async fn a_host_that_the_cluster_allows_is_read_at_the_address_that_was_judged() {
    let web = Web::serving("content").await;
    let host = format!("files.example:{}", web.port);
    let fixture = mk_fixture(&[], &[&host]);
    // No other resolver knows the name, so that the connection can only have gone to the judged address.
    fixture.name("files.example", &["127.0.0.1"]);
    let url = format!("http://{host}/some/file?token=hush");
    assert_eq!(fixture.get(&url).await.unwrap(), b"content");
    assert_eq!(fixture.names.asked.load(Ordering::SeqCst), 1);
    assert!(web.requests()[0].starts_with("GET /some/file?token=hush HTTP/1.1\r\n"));
    let other_port = fixture.problem_of("http://files.example:9/").await;
    assert_eq!(other_port.0, RemoteProblem::NotAllowed);
}

#[tokio::test]
async fn redirects_lead_to_allowed_hosts_only_and_carry_no_token_there() {
    let target = Web::serving("moved").await;
    let location = format!("location: http://other.example:{}/x\r\n", target.port);
    let first = Web::start(vec![mk_answer("302 Found", &location, "")]).await;
    let token = mk_object("Secret", true, &json!({"data": {"token": "aHVzaAo="}}));
    let hosts = [
        format!("first.example:{}", first.port),
        format!("other.example:{}", target.port),
    ];
    let url = format!("http://{}/", hosts[0]);
    let source = HttpSource {
        url: url.clone(),
        token_ref: Some(key("token")),
    };
    let both = mk_fixture(&[(SECRET, token)], &[&hosts[0], &hosts[1]]);
    both.name("first.example", &["127.0.0.1"]);
    both.name("other.example", &["127.0.0.1"]);
    let found = both.fetch(Place::Http(&source)).await.unwrap();
    assert_eq!(bytes(&found), b"moved");
    assert!(
        first.requests()[0].contains("authorization: Bearer hush\r\n"),
        "{:?}",
        first.requests()
    );
    assert!(!target.requests()[0].contains("hush"));

    let one = mk_fixture(&[], &[&hosts[0]]);
    one.name("first.example", &["127.0.0.1"]);
    one.name("other.example", &["1.1.1.1"]);
    let (problem, message) = one.problem_of(&url).await;
    assert_eq!(problem, RemoteProblem::NotAllowed, "{message}");
    assert!(message.contains("allowedHttpHosts"), "{message}");
    assert_eq!(target.requests().len(), 1);
}

#[tokio::test]
async fn a_circle_of_redirects_ends() {
    let web = Web::start(vec![mk_answer("302 Found", "location: /again\r\n", "")]).await;
    let fixture = mk_fixture(&[], &["127.0.0.1"]);
    let (problem, _) = fixture
        .problem_of(&format!("http://127.0.0.1:{}/", web.port))
        .await;
    assert_eq!(problem, RemoteProblem::Unreadable);
    assert_eq!(web.requests().len(), 6);
}

#[tokio::test]
async fn no_more_than_the_limit_is_read_whatever_the_server_says() {
    let body = "x".repeat(1_001);
    let endless = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{body}");
    for answer in [mk_answer("200 OK", "", &body), endless] {
        let web = Web::start(vec![answer]).await;
        let fixture = mk_fixture(&[], &["127.0.0.1"]);
        let (problem, _) = fixture
            .problem_of(&format!("http://127.0.0.1:{}/", web.port))
            .await;
        assert_eq!(problem, RemoteProblem::TooLarge);
        assert_eq!(web.requests().len(), 1, "it is not tried again");
    }
    let web = Web::serving(&"x".repeat(1_000)).await;
    let fixture = mk_fixture(&[], &["127.0.0.1"]);
    let found = fixture
        .get(&format!("http://127.0.0.1:{}/", web.port))
        .await
        .unwrap();
    assert_eq!(found.len(), 1_000);
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_will_not_is_not() {
    let short = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\nconnection: close\r\n\r\nabc".to_owned();
    for first in [
        mk_answer("503 Service Unavailable", "", ""),
        mk_answer("429 Too Many Requests", "", ""),
        short,
    ] {
        let web = Web::start(vec![first, mk_answer("200 OK", "", "at last")]).await;
        let fixture = mk_fixture(&[], &["127.0.0.1"]);
        let found = fixture.get(&format!("http://127.0.0.1:{}/", web.port)).await;
        assert_eq!(found.unwrap(), b"at last");
    }
    for (status, expected) in [
        ("404 Not Found", RemoteProblem::NotFound),
        ("403 Forbidden", RemoteProblem::Unreadable),
        ("418 Teapot", RemoteProblem::Unreadable),
    ] {
        let web = Web::start(vec![mk_answer(status, "", "")]).await;
        let fixture = mk_fixture(&[], &["127.0.0.1"]);
        let (problem, message) = fixture
            .problem_of(&format!("http://127.0.0.1:{}/?key=hush", web.port))
            .await;
        assert_eq!(problem, expected);
        assert!(!message.contains("hush"), "{message}");
        assert_eq!(web.requests().len(), 1);
    }
}

#[tokio::test]
async fn an_object_of_a_foreign_bucket_is_asked_for_with_its_own_credentials_or_none() {
    let web = Web::serving("object").await;
    let secret =
        json!({"data": {"accessKeyId": "QUtJRA==", "secretAccessKey": "aHVzaA==", "sessionToken": "dG9r"}});
    let fixture = mk_fixture(&[(SECRET, mk_object("Secret", true, &secret))], &["127.0.0.1"]);
    let mut source = S3Source {
        bucket: Some("inputs".to_owned()),
        key: "blocks/1 + 2".to_owned(),
        endpoint: Some(format!("http://127.0.0.1:{}", web.port)),
        anonymous: true,
        ..S3Source::default()
    };
    let found = fixture.fetch(Place::S3(&source)).await.unwrap();
    assert_eq!(bytes(&found), b"object");
    assert_eq!(found.origin, r#"object "blocks/1 + 2" of bucket "inputs""#);
    source.anonymous = false;
    source.credentials_ref = Some(SecretReference {
        name: "some".to_owned(),
    });
    fixture.fetch(Place::S3(&source)).await.unwrap();
    let requests = web.requests();
    assert!(
        requests[0].starts_with("GET /inputs/blocks/1%20%2B%202 HTTP/1.1\r\n"),
        "{requests:?}"
    );
    assert!(!requests[0].contains("authorization"));
    let signed = requests[1].to_ascii_lowercase();
    assert!(
        signed.contains("authorization: aws4-hmac-sha256 credential=akid/"),
        "{signed}"
    );
    assert!(signed.contains("/us-east-1/s3/aws4_request"));
    assert!(signed.contains("x-amz-security-token: tok\r\n") && !signed.contains("hush"));
    source.key = "../other".to_owned();
    assert_eq!(
        fixture.fetch(Place::S3(&source)).await.unwrap_err().problem,
        RemoteProblem::Unreadable
    );
}

#[tokio::test]
async fn an_endpoint_of_a_bucket_leads_nowhere_that_a_web_server_may_not_be() {
    let web = Web::serving("secret of the cluster").await;
    let fixture = mk_fixture(&[], &[]);
    let source = S3Source {
        bucket: Some("inputs".to_owned()),
        key: "k".to_owned(),
        endpoint: Some(format!("http://127.0.0.1:{}", web.port)),
        anonymous: true,
        ..S3Source::default()
    };
    let error = fixture.fetch(Place::S3(&source)).await.unwrap_err();
    assert_eq!(error.problem, RemoteProblem::NotAllowed);
    assert_eq!(web.requests(), Vec::<String>::new());
}
