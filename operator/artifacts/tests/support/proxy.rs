//! An HTTP proxy in front of MinIO that does to requests and answers what networks and other S3 services do.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

/// What is done to a request or its answer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// An error answer of S3; MinIO never sees the request.
    Answer {
        status: u16,
        code: &'static str,
        retry_after: Option<u32>,
    },
    /// The connection closes without an answer; MinIO never sees the request.
    Close,
    /// MinIO does what it is asked to, but its answer gets lost.
    LoseAnswer,
    /// No answer ever comes.
    Hang,
    /// One byte in the middle of the request's body changes.
    DamageRequest,
    /// One byte in the middle of the answer's body changes.
    DamageAnswer,
    /// The connection breaks in the middle of the answer's body.
    CutAnswer,
    /// The answer's body ends early but properly: only the hash can tell.
    ShortenAnswer,
    /// A header of the answer is left out, as by services that don't know it.
    DropAnswerHeader(&'static str),
    /// A header of the request is left out. The bucket must be open to everybody, since signatures go too.
    DropRequestHeader(&'static str),
}

/// Which requests meet the fault, and how many of them.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) method: Method,
    /// Text that the path and query must contain.
    pub(crate) containing: &'static str,
    pub(crate) fault: Fault,
    /// How many requests meet it still.
    pub(crate) times: usize,
}

pub(crate) const ALWAYS: usize = usize::MAX;

#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    rules: Arc<Mutex<Vec<Rule>>>,
}

type Body = BoxBody<Bytes, io::Error>;
type Forwarder = Client<HttpConnector, Full<Bytes>>;

impl Proxy {
    pub(crate) async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let rules = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&rules);
        let client: Forwarder = Client::builder(TokioExecutor::new()).build_http();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (rules, client) = (Arc::clone(&shared), client.clone());
                let service = service_fn(move |request| {
                    let (rules, client) = (Arc::clone(&rules), client.clone());
                    async move { handle(request, upstream, &rules, &client).await }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, rules }
    }

    pub(crate) fn fault(&self, method: Method, containing: &'static str, fault: Fault, times: usize) {
        self.rules.lock().unwrap().push(Rule {
            method,
            containing,
            fault,
            times,
        });
    }
}

fn take_fault(rules: &Mutex<Vec<Rule>>, method: &Method, uri: &Uri) -> Option<Fault> {
    let mut rules = rules.lock().unwrap();
    let rule = rules
        .iter_mut()
        .find(|rule| rule.times > 0 && rule.method == *method && uri.to_string().contains(rule.containing))?;
    rule.times -= 1;
    Some(rule.fault.clone())
}

async fn handle(
    request: Request<Incoming>,
    upstream: SocketAddr,
    rules: &Mutex<Vec<Rule>>,
    client: &Forwarder,
) -> Result<Response<Body>, io::Error> {
    let fault = take_fault(rules, request.method(), request.uri());
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let body = match &fault {
        Some(Fault::Close) => return Err(io::Error::other("closed")),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Answer {
            status,
            code,
            retry_after,
        }) => return Ok(error_answer(*status, code, *retry_after)),
        Some(Fault::DamageRequest) => damaged(&body),
        _ => body,
    };
    if let Some(Fault::DropRequestHeader(name)) = &fault {
        parts.headers.remove(*name);
        parts.headers.remove("authorization");
    }
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = format!("http://{upstream}{path}").parse().unwrap();
    let answer = client
        .request(Request::from_parts(parts, Full::new(body)))
        .await
        .map_err(io::Error::other)?;
    let (mut parts, body) = answer.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    match fault {
        Some(Fault::LoseAnswer) => Err(io::Error::other("lost")),
        Some(Fault::DamageAnswer) => Ok(Response::from_parts(parts, full(damaged(&body)))),
        Some(Fault::CutAnswer) => {
            let half = body.slice(..body.len() / 2);
            let frames = [Ok(Frame::data(half)), Err(io::Error::other("cut"))];
            Ok(Response::from_parts(
                parts,
                StreamBody::new(tokio_stream::iter(frames)).boxed(),
            ))
        }
        Some(Fault::ShortenAnswer) => {
            let half = body.slice(..body.len() / 2);
            parts
                .headers
                .insert("content-length", HeaderValue::from(half.len()));
            Ok(Response::from_parts(parts, full(half)))
        }
        Some(Fault::DropAnswerHeader(name)) => {
            parts.headers.remove(HeaderName::from_static(name));
            Ok(Response::from_parts(parts, full(body)))
        }
        _ => Ok(Response::from_parts(parts, full(body))),
    }
}

fn full(body: Bytes) -> Body {
    Full::new(body)
        .map_err(|never: Infallible| match never {})
        .boxed()
}

fn damaged(body: &Bytes) -> Bytes {
    let mut body = body.to_vec();
    let middle = body.len() / 2;
    if let Some(byte) = body.get_mut(middle) {
        *byte ^= 1;
    }
    body.into()
}

fn error_answer(status: u16, code: &str, retry_after: Option<u32>) -> Response<Body> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>injected</Message></Error>"
    );
    let mut answer = Response::new(full(body.into()));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    if let Some(seconds) = retry_after {
        answer
            .headers_mut()
            .insert("retry-after", HeaderValue::from(seconds));
    }
    answer
}
