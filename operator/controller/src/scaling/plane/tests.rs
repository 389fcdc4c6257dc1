//! The stream to a coordinator that a test plays, with tokens of an API server that the test plays too.

use http::{Method, Request as HttpRequest, Response as HttpResponse};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use prover_runtime::SystemClock;
use prover_wire::operator_plane::SetLeavingResponse;
use prover_wire::operator_plane::operator_plane_server::{OperatorPlane, OperatorPlaneServer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status};
use tower_test::mock;

use super::*;
use crate::metrics::Metrics;
use crate::{Caches, Settings};

/// How long anything may take that should come soon: the longest first wait between two streams is half a second.
const SOON: Duration = Duration::from_secs(10);

type News = mpsc::Sender<Result<ClusterState, Status>>;

/// What the coordinator was asked, with the token of the call.
enum Asked {
    Watch {
        token: String,
        answer: oneshot::Sender<Result<mpsc::Receiver<Result<ClusterState, Status>>, Status>>,
    },
    SetLeaving {
        token: String,
        pods: Vec<String>,
    },
}

use tokio::sync::oneshot;

struct Coordinator(mpsc::Sender<Asked>);

fn token_of<T>(request: &Request<T>) -> String {
    let value = request
        .metadata()
        .get(AUTHORIZATION)
        .expect("every call carries a token");
    value.to_str().unwrap().to_owned()
}

#[async_trait]
impl OperatorPlane for Coordinator {
    type WatchStream = ReceiverStream<Result<ClusterState, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (answer, answered) = oneshot::channel();
        let token = token_of(&request);
        self.0.send(Asked::Watch { token, answer }).await.ok();
        let states = answered
            .await
            .map_err(|_| Status::unavailable("the test is over"))??;
        Ok(Response::new(ReceiverStream::new(states)))
    }

    async fn set_leaving(
        &self,
        request: Request<SetLeavingRequest>,
    ) -> Result<Response<SetLeavingResponse>, Status> {
        let token = token_of(&request);
        let pods = request.into_inner().pods;
        self.0.send(Asked::SetLeaving { token, pods }).await.ok();
        Ok(Response::new(SetLeavingResponse::default()))
    }
}

/// Dials what the test listens on.
struct DialTest(String);

#[async_trait]
impl Dial for DialTest {
    async fn dial(&self, _: &Context, _: &ClusterKey) -> Result<Channel, PlaneError> {
        Ok(Endpoint::from_shared(self.0.clone())?.connect().await?)
    }
}

/// Answers each request for a token with the next number, and tells what was asked.
fn tokens() -> (Client, mpsc::Receiver<Value>) {
    let (service, mut server) = mock::pair::<HttpRequest<Body>, HttpResponse<Body>>();
    let (told, asked) = mpsc::channel(8);
    tokio::spawn(async move {
        let mut number = 0;
        while let Some((request, answer)) = server.next_request().await {
            assert_eq!(request.method(), Method::POST);
            assert_eq!(
                request.uri().path(),
                "/api/v1/namespaces/operators/serviceaccounts/prover/token"
            );
            let bytes = request.into_body().collect().await.unwrap().to_bytes();
            told.send(serde_json::from_slice(&bytes).unwrap()).await.ok();
            number += 1;
            let body = json!({
                "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
                "spec": { "audiences": [] },
                "status": { "token": format!("token-{number}"), "expirationTimestamp": "2099-01-01T00:00:00Z" },
            });
            answer.send_response(HttpResponse::new(Body::from(body.to_string().into_bytes())));
        }
    });
    (Client::new(service, "default"), asked)
}

struct Fixture {
    plane: Arc<Plane>,
    context: Arc<Context>,
    queues: Queues,
    asked: mpsc::Receiver<Asked>,
    token_requests: mpsc::Receiver<Value>,
    stop: CancellationToken,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn key() -> ClusterKey {
    ClusterKey {
        namespace: "proving".to_owned(),
        name: "main".to_owned(),
    }
}

async fn start() -> Fixture {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (told, asked) = mpsc::channel(8);
    let serving = tonic::transport::Server::builder()
        .add_service(OperatorPlaneServer::new(Coordinator(told)))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serving);
    let (client, token_requests) = tokens();
    let settings = Settings {
        namespace: "operators".to_owned(),
        service_account: "prover".to_owned(),
        pod: "operator-a".to_owned(),
        coordinator_image: String::new(),
        worker_image: String::new(),
        image_pull_policy: None,
        image_pull_secrets: Vec::new(),
        watch_namespaces: Vec::new(),
    };
    let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
    let context = Context::new(
        client,
        settings,
        Caches::empty(),
        metrics,
        Arc::new(SystemClock::new()),
    );
    let (context, queues) = (Arc::new(context), Queues::default());
    let dial = Arc::new(DialTest(url));
    let plane = Arc::new(Plane::new(key(), Arc::clone(&context), dial, queues.clone()));
    let stop = CancellationToken::new();
    let (listening, stopped) = (Arc::clone(&plane), stop.clone());
    tokio::spawn(async move { listening.listen(stopped).await });
    Fixture {
        plane,
        context,
        queues,
        asked,
        token_requests,
        stop,
    }
}

impl Fixture {
    async fn asked(&mut self) -> Asked {
        let asked = tokio::time::timeout(SOON, self.asked.recv()).await;
        asked.expect("a call soon").expect("a call")
    }

    /// Answers the next watch with a stream, and gives its token and what feeds it.
    async fn open_stream(&mut self) -> (String, News) {
        let Asked::Watch { token, answer } = self.asked().await else {
            panic!("a watch was expected")
        };
        let (news, states) = mpsc::channel(4);
        answer.send(Ok(states)).unwrap();
        (token, news)
    }

    /// Tells a state, and waits until scaling is woken by it.
    async fn tell(&mut self, news: &News, epoch: u64) {
        let state = ClusterState {
            epoch,
            ..ClusterState::default()
        };
        news.send(Ok(state)).await.unwrap();
        let woken = tokio::time::timeout(SOON, self.queues.scaling.next()).await;
        assert_eq!(woken.expect("scaling is woken"), key());
        assert_eq!(self.plane.state().unwrap().epoch, epoch);
        assert_eq!(self.context.states.get(&key()).unwrap().epoch, epoch);
    }
}

#[tokio::test]
async fn a_broken_stream_is_opened_again_and_heard_again_with_the_same_token() {
    let mut fixture = start().await;
    let (token, news) = fixture.open_stream().await;
    assert_eq!(token, "Bearer token-1");
    fixture.tell(&news, 1).await;
    drop(news);
    let (token, news) = fixture.open_stream().await;
    assert_eq!(token, "Bearer token-1");
    assert_eq!(
        fixture.plane.state().unwrap().epoch,
        1,
        "it is not too old to act upon"
    );
    fixture.tell(&news, 2).await;
    news.send(Err(Status::unavailable("another coordinator leads")))
        .await
        .unwrap();
    let (_, news) = fixture.open_stream().await;
    fixture.tell(&news, 3).await;

    let request = fixture.token_requests.recv().await.unwrap();
    assert_eq!(
        request["spec"]["audiences"],
        json!(["proving.rs/operator/proving/main"])
    );
    assert!(fixture.token_requests.try_recv().is_err(), "one token is enough");
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced() {
    let mut fixture = start().await;
    let Asked::Watch { token, answer } = fixture.asked().await else {
        panic!("a watch was expected")
    };
    assert_eq!(token, "Bearer token-1");
    answer
        .send(Err(Status::unauthenticated("signed by another key")))
        .unwrap();
    let (token, news) = fixture.open_stream().await;
    assert_eq!(token, "Bearer token-2");
    fixture.tell(&news, 1).await;
}

#[tokio::test]
async fn who_shall_leave_is_told_while_there_is_a_stream() {
    let mut fixture = start().await;
    let pods = vec!["pod-a".to_owned()];
    let early = fixture.plane.set_leaving(pods.clone()).await;
    assert!(matches!(early, Err(PlaneError::Silent)), "{early:?}");
    assert!(fixture.plane.leaving_told_ago_ms() > prover_wire::LEAVING_LIFE_MS);
    let (_, news) = fixture.open_stream().await;
    fixture.tell(&news, 1).await;
    fixture.plane.set_leaving(pods.clone()).await.unwrap();
    let Asked::SetLeaving { token, pods: told } = fixture.asked().await else {
        panic!("the pods were expected")
    };
    assert_eq!((token.as_str(), told), ("Bearer token-1", pods));
    assert!(fixture.plane.leaving_told_ago_ms() < prover_wire::LEAVING_LIFE_MS);
}
