//! The operator's stream to a coordinator: what it tells, and who shall leave.
//!
//! Owns signing in and connecting again. Does not own what is concluded.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::PostParams;
use prover_crds::names;
use prover_wire::operator_plane::operator_plane_client::OperatorPlaneClient;
use prover_wire::operator_plane::{ClusterState, SetLeavingRequest, WatchRequest};
use prover_wire::{AUTHORIZATION, BEARER};
use rand::Rng;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::api::{ApiError, call};
use crate::caches::Queues;
use crate::retry;
use crate::{ClusterKey, Context};

/// How long what a coordinator told may be acted upon.
pub const STATE_LIFE_MS: u64 = 30_000;
/// How long a token is asked for.
const TOKEN_SECONDS: i64 = 3_600;
/// Share of its life after which a token is renewed, in percent.
const TOKEN_USE_PERCENT: u64 = 80;
/// Longest wait for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Longest silence of a connection; a coordinator tells something every 10 s.
const SILENCE_LIMIT: Duration = Duration::from_secs(25);
/// Between two signs of life that are asked of the other end.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Longest wait for an answer about who leaves.
const LEAVING_LIMIT: Duration = Duration::from_secs(5);
/// Most often that a change of state has a ProverCluster's status looked at.
const STATUS_PERIOD_MS: u64 = 3_000;
/// Most that is asked of a coordinator per second.
const INTERVAL_MS: u32 = 1_000;
/// Largest message of a coordinator.
const MESSAGE_LIMIT: usize = 16 << 20;

/// Why a coordinator is not listened to.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// The API server gave no token.
    #[error(transparent)]
    Token(#[from] ApiError),
    /// The API server answered without a token.
    #[error("the API server answered without a token")]
    NoToken,
    /// The token can't be sent.
    #[error("the API server's token can't be sent: {source}")]
    MalformedToken {
        /// Why.
        #[from]
        source: tonic::metadata::errors::InvalidMetadataValue,
    },
    /// The cluster has no certificates yet.
    #[error("the cluster has no certificates yet")]
    NoCertificates,
    /// No connection.
    #[error("no connection to the coordinator: {source}")]
    Connect {
        /// Why.
        #[from]
        source: tonic::transport::Error,
    },
    /// The coordinator refused, or the connection broke.
    #[error("the coordinator answers {:?}: {}", source.code(), source.message())]
    Refused {
        /// What it said.
        source: Box<tonic::Status>,
    },
    /// The stream ended, or nothing came for too long.
    #[error("the coordinator ended the stream or said nothing for {} s", SILENCE_LIMIT.as_secs())]
    Silent,
}

impl From<tonic::Status> for PlaneError {
    fn from(source: tonic::Status) -> Self {
        PlaneError::Refused {
            source: Box::new(source),
        }
    }
}

impl PlaneError {
    /// The coordinator does not take the token.
    fn is_unauthenticated(&self) -> bool {
        match self {
            PlaneError::Refused { source } => source.code() == tonic::Code::Unauthenticated,
            _ => false,
        }
    }

    /// Short name for metrics.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            PlaneError::Token(error) => error.category(),
            PlaneError::NoToken => "plane_no_token",
            PlaneError::MalformedToken { .. } => "plane_malformed_token",
            PlaneError::NoCertificates => "plane_no_certificates",
            PlaneError::Connect { .. } => "plane_connect",
            PlaneError::Refused { .. } => "plane_refused",
            PlaneError::Silent => "plane_silent",
        }
    }
}

/// Opens channels to coordinators. Replaced in tests.
#[async_trait]
pub trait Dial: Send + Sync {
    /// A connected channel to the coordinator of this cluster.
    ///
    /// # Errors
    /// There is no way to it.
    async fn dial(&self, context: &Context, key: &ClusterKey) -> Result<Channel, PlaneError>;
}

/// Dials the Service of a cluster's leader over TLS and trusts the cluster's own authorities only.
#[derive(Clone, Copy, Debug, Default)]
pub struct DialService;

#[async_trait]
impl Dial for DialService {
    async fn dial(&self, context: &Context, key: &ClusterKey) -> Result<Channel, PlaneError> {
        let certificates = context
            .certificates
            .applied(key)
            .ok_or(PlaneError::NoCertificates)?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(certificates.bundle_pem))
            .domain_name(names::COORDINATOR_SERVER_NAME);
        let host = names::leader_service(&key.name);
        let url = format!("https://{host}.{}.svc:{}", key.namespace, names::COORDINATOR_PORT);
        let endpoint = Endpoint::from_shared(url)?
            .tls_config(tls)?
            .connect_timeout(CONNECT_LIMIT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        Ok(endpoint.connect().await?)
    }
}

/// What was heard of a coordinator.
#[derive(Clone, Debug, Default)]
struct Heard {
    state: Option<Arc<ClusterState>>,
    at_ms: u64,
    status_told_ms: u64,
    leaving_told_ms: u64,
    client: Option<OperatorPlaneClient<Channel>>,
}

#[derive(Debug)]
struct Token {
    value: MetadataValue<Ascii>,
    renew_at_ms: u64,
}

/// The stream to one coordinator.
pub struct Plane {
    key: ClusterKey,
    context: Arc<Context>,
    dial: Arc<dyn Dial>,
    queues: Queues,
    heard: Mutex<Heard>,
    token: tokio::sync::Mutex<Option<Token>>,
}

impl Plane {
    /// A stream that [`Plane::listen`] opens.
    #[must_use]
    pub fn new(key: ClusterKey, context: Arc<Context>, dial: Arc<dyn Dial>, queues: Queues) -> Self {
        Plane {
            key,
            context,
            dial,
            queues,
            heard: Mutex::default(),
            token: tokio::sync::Mutex::default(),
        }
    }

    /// What the coordinator told, unless that is too long ago to be acted upon.
    #[must_use]
    pub fn state(&self) -> Option<Arc<ClusterState>> {
        let now_ms = self.context.clock.now_milliseconds();
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = now_ms.saturating_sub(heard.at_ms) <= STATE_LIFE_MS;
        heard.state.clone().filter(|_| fresh)
    }

    /// Listens until `stop`, and connects again whenever the stream breaks.
    pub async fn listen(&self, stop: CancellationToken) {
        let listening = async {
            let mut failures = 0;
            loop {
                let heard_before = self.heard_at();
                let error = match self.follow().await {
                    Ok(()) => PlaneError::Silent,
                    Err(error) => error,
                };
                failures = if self.heard_at() == heard_before {
                    failures + 1
                } else {
                    1
                };
                let wait = retry::delay(failures, rand::rng().random());
                let (namespace, name) = (&self.key.namespace, &self.key.name);
                tracing::debug!(namespace, name, %error, ?wait, "a coordinator is not listened to");
                if error.is_unauthenticated() {
                    *self.token.lock().await = None;
                }
                self.set_client(None);
                if self.state().is_none() {
                    self.context.states.set(&self.key, None);
                }
                tokio::time::sleep(wait).await;
            }
        };
        tokio::select! {
            () = listening => {}
            () = stop.cancelled() => {}
        }
        self.context.states.set(&self.key, None);
    }

    fn heard_at(&self) -> u64 {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).at_ms
    }

    fn set_client(&self, client: Option<OperatorPlaneClient<Channel>>) {
        let opened = client.is_some();
        let before = {
            let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut heard.client, client)
        };
        if before.is_some() != opened {
            self.context.metrics.stream_opened(opened);
        }
    }

    async fn follow(&self) -> Result<(), PlaneError> {
        let connecting = self.dial.dial(&self.context, &self.key);
        let channel = tokio::time::timeout(CONNECT_LIMIT, connecting)
            .await
            .map_err(|_| PlaneError::Silent)??;
        let mut client = OperatorPlaneClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT);
        let request = self
            .signed(WatchRequest {
                interval_ms: INTERVAL_MS,
            })
            .await?;
        let opening = tokio::time::timeout(CONNECT_LIMIT, client.watch(request));
        let mut stream = opening.await.map_err(|_| PlaneError::Silent)??.into_inner();
        self.set_client(Some(client));
        loop {
            let next = tokio::time::timeout(SILENCE_LIMIT, stream.message()).await;
            match next.map_err(|_| PlaneError::Silent)?? {
                Some(state) => self.hear(state),
                None => return Ok(()),
            }
        }
    }

    fn hear(&self, state: ClusterState) {
        let state = Arc::new(state);
        let now_ms = self.context.clock.now_milliseconds();
        let tell_status = {
            let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.state = Some(Arc::clone(&state));
            heard.at_ms = now_ms;
            let due = now_ms.saturating_sub(heard.status_told_ms) >= STATUS_PERIOD_MS;
            if due {
                heard.status_told_ms = now_ms;
            }
            due
        };
        self.context.states.set(&self.key, Some(state));
        self.queues.scaling.wake(self.key.clone());
        if tell_status {
            self.queues.clusters.wake(self.key.clone());
        }
    }

    /// Replaces the set of workers that shall leave.
    ///
    /// # Errors
    /// The coordinator can't be reached or refused.
    pub async fn set_leaving(&self, pods: Vec<String>) -> Result<(), PlaneError> {
        let client = self
            .heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .client
            .clone();
        let mut client = client.ok_or(PlaneError::Silent)?;
        let request = self.signed(SetLeavingRequest { pods }).await?;
        let answer = tokio::time::timeout(LEAVING_LIMIT, client.set_leaving(request)).await;
        answer.map_err(|_| PlaneError::Silent)??;
        let now_ms = self.context.clock.now_milliseconds();
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .leaving_told_ms = now_ms;
        Ok(())
    }

    /// How long ago the coordinator was told who shall leave, in milliseconds; very long where it never was.
    #[must_use]
    pub fn leaving_told_ago_ms(&self) -> u64 {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ms = self.context.clock.now_milliseconds();
        now_ms.saturating_sub(heard.leaving_told_ms)
    }

    async fn signed<T>(&self, message: T) -> Result<tonic::Request<T>, PlaneError> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert(AUTHORIZATION, self.token().await?);
        Ok(request)
    }

    /// A token that is good for this cluster's coordinator only.
    async fn token(&self) -> Result<MetadataValue<Ascii>, PlaneError> {
        let now_ms = self.context.clock.now_milliseconds();
        let mut token = self.token.lock().await;
        if let Some(token) = token.as_ref().filter(|token| now_ms < token.renew_at_ms) {
            return Ok(token.value.clone());
        }
        let settings = &self.context.settings;
        let api: Api<ServiceAccount> = Api::namespaced(self.context.client.clone(), &settings.namespace);
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec![names::operator_audience(&self.key.namespace, &self.key.name)],
                expiration_seconds: Some(TOKEN_SECONDS),
                bound_object_ref: None,
            },
            ..TokenRequest::default()
        };
        let parameters = PostParams::default();
        let answer = call(
            "request a token for a coordinator",
            api.create_token_request(&settings.service_account, &parameters, &request),
        );
        let status = answer.await?.status.ok_or(PlaneError::NoToken)?;
        let Time(end) = status.expiration_timestamp;
        let end_ms = u64::try_from(end.as_millisecond()).unwrap_or(0);
        let life_ms = end_ms.saturating_sub(now_ms);
        let value: MetadataValue<Ascii> = format!("{BEARER}{}", status.token).parse()?;
        let renew_at_ms = now_ms.saturating_add(life_ms / 100 * TOKEN_USE_PERCENT);
        *token = Some(Token {
            value: value.clone(),
            renew_at_ms,
        });
        Ok(value)
    }
}

#[cfg(test)]
mod tests;
