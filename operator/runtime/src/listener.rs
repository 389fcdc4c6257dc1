//! The HTTP listener for `/metrics`, `/healthz`, `/readyz` and `/role`.
//!
//! Owns what the probes answer. Live means that the process answers at all; ready is what the process says.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The listener could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// The address can't be listened on.
    #[error("can't listen on {address} for metrics and probes: {source}")]
    Bind {
        /// As configured.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

impl ListenerError {
    /// Short name for metrics and events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            ListenerError::Bind { .. } => "bind",
        }
    }
}

/// What a process shows of itself: its metrics and whether it is ready.
#[derive(Clone, Debug)]
pub struct Observation {
    registry: Registry,
    /// What is waited for; none when ready.
    waits_for: Arc<RwLock<Option<String>>>,
    role: Arc<RwLock<String>>,
}

/// What is waited for until the process says more.
const STARTING: &str = "starting";

impl Observation {
    /// Shows the metrics of `registry`; not ready until told so.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Observation {
            registry,
            waits_for: Arc::new(RwLock::new(Some(STARTING.to_owned()))),
            role: Arc::default(),
        }
    }

    /// What `/readyz` answers from now on.
    pub fn set_ready(&self, ready: bool) {
        self.set_waits_for((!ready).then(|| STARTING.to_owned()));
    }

    /// Not ready from now on; `/readyz` tells what is waited for.
    pub fn set_not_ready(&self, waits_for: &str) {
        self.set_waits_for(Some(waits_for.to_owned()));
    }

    /// What `/role` answers from now on: what this process is among its replicas.
    pub fn set_role(&self, role: &str) {
        role.clone_into(&mut self.role.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn set_waits_for(&self, waits_for: Option<String>) {
        *self.waits_for.write().unwrap_or_else(PoisonError::into_inner) = waits_for;
    }

    /// The routes, to be served by [`Observation::serve`] or merged into others.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .route("/role", get(role))
            .with_state(self.clone())
    }

    /// Listens until the handle is stopped.
    ///
    /// # Errors
    /// The address can't be listened on.
    pub async fn serve(&self, address: SocketAddr) -> Result<ObservationHandle, ListenerError> {
        let bind = |source| ListenerError::Bind { address, source };
        let listener = TcpListener::bind(address).await.map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let router = self.router();
        let task = tokio::spawn(async move {
            let serving = axum::serve(listener, router).with_graceful_shutdown(stopped.cancelled_owned());
            if let Err(error) = serving.await {
                tracing::error!(%error, "the listener for metrics and probes ended");
            }
        });
        Ok(ObservationHandle { address, stop, task })
    }
}

/// A running listener.
#[derive(Debug)]
pub struct ObservationHandle {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl ObservationHandle {
    /// Where it listens: the port that the system chose if the configured one was 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops listening and waits until running requests are answered.
    pub async fn stop(self) {
        self.stop.cancel();
        // A listener that panicked has said so in the log; there is nothing left to stop.
        let _ = self.task.await;
    }
}

async fn ready(State(observation): State<Observation>) -> Response {
    match observation
        .waits_for
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .as_deref()
    {
        None => "ready\n".into_response(),
        Some(waits_for) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {waits_for}\n"),
        )
            .into_response(),
    }
}

async fn role(State(observation): State<Observation>) -> String {
    let role = observation.role.read().unwrap_or_else(PoisonError::into_inner);
    format!("{role}\n")
}

async fn metrics(State(observation): State<Observation>) -> Response {
    match TextEncoder::new().encode_to_string(&observation.registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use prometheus::IntCounter;
    use tower::ServiceExt;

    use super::*;

    async fn fetch(router: Router, path: &str) -> (StatusCode, String) {
        let response = router
            .oneshot(Request::get(path).body(Body::empty()).unwrap())
            .await
            .unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_follows_what_the_process_says() {
        let observation = Observation::new(Registry::new());
        assert_eq!(
            fetch(observation.router(), "/readyz").await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(fetch(observation.router(), "/healthz").await.0, StatusCode::OK);
        observation.set_ready(true);
        assert_eq!(fetch(observation.router(), "/readyz").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn the_role_among_replicas_is_told() {
        let observation = Observation::new(Registry::new());
        observation.set_role("leads 7");
        let told = fetch(observation.router(), "/role").await;
        assert_eq!(told, (StatusCode::OK, "leads 7\n".to_owned()));
    }

    #[tokio::test]
    async fn what_is_waited_for_is_told() {
        let observation = Observation::new(Registry::new());
        observation.set_not_ready("the CRDs are not installed");
        let (status, text) = fetch(observation.router(), "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text, "not ready: the CRDs are not installed\n");
    }

    #[tokio::test]
    async fn metrics_are_shown_as_prometheus_text() {
        let registry = Registry::new();
        let counter = IntCounter::new("proofs_total", "Proofs.").unwrap();
        registry.register(Box::new(counter.clone())).unwrap();
        counter.inc_by(3);
        let (status, text) = fetch(Observation::new(registry).router(), "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("proofs_total 3"), "{text}");
    }

    #[tokio::test]
    async fn an_address_in_use_is_told() {
        let observation = Observation::new(Registry::new());
        let handle = observation.serve("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let message = observation.serve(handle.address()).await.unwrap_err().to_string();
        assert!(message.contains(&handle.address().to_string()), "{message}");
        handle.stop().await;
    }
}
