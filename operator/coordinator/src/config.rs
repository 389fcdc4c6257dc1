//! What a coordinator is started with, and how workers prove who they are.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prover_core::Limits;
use prover_runtime::{Clock, SystemClock, prometheus::Registry};
use subtle::ConstantTimeEq;

/// Longest time between opening a stream and its hello.
pub(crate) const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Events that wait for the actor before their senders wait too.
pub(crate) const COMMAND_QUEUE: usize = 4096;
/// Shortest time between two views of a job that did not change its phase.
pub(crate) const VIEW_INTERVAL: Duration = Duration::from_millis(200);
/// Longest time that a shutdown waits for open connections.
pub(crate) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// What a coordinator is started with.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// Where workers connect; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// How workers prove who they are.
    pub worker_authentication: WorkerAuthentication,
    /// Limits of the scheduling core.
    pub limits: Limits,
    /// How often workers report what they hold.
    pub heartbeat_interval: Duration,
    /// First part of all artifact keys, without slashes at its ends; may be empty.
    pub artifact_prefix: String,
    /// Messages that wait for one worker; a worker whose queue is full is disconnected.
    pub outbound_messages: usize,
    /// Largest program in bytes.
    pub program_bytes: u64,
    /// Largest input, and largest assumption, in bytes.
    pub input_bytes: u64,
    /// Artifacts that are deleted at once.
    pub parallel_deletes: usize,
    /// Where this coordinator's metrics are registered.
    pub registry: Registry,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

impl CoordinatorConfig {
    /// A configuration with the defaults of everything that has one.
    #[must_use]
    pub fn new(listen: SocketAddr, worker_authentication: WorkerAuthentication) -> Self {
        CoordinatorConfig {
            listen,
            worker_authentication,
            limits: Limits::default(),
            heartbeat_interval: Duration::from_secs(2),
            artifact_prefix: String::new(),
            outbound_messages: 4096,
            program_bytes: 512 << 20,
            input_bytes: 4 << 30,
            parallel_deletes: 8,
            registry: Registry::new(),
            clock: Arc::new(SystemClock::new()),
        }
    }
}

/// A secret that never shows itself in logs.
#[derive(Clone)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// Wraps the bytes of a secret.
    pub fn new(bytes: impl AsRef<[u8]>) -> Self {
        Secret(Arc::from(bytes.as_ref()))
    }

    /// Compares without telling by its duration where the difference is.
    fn matches(&self, offered: &[u8]) -> bool {
        self.0.ct_eq(offered).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

/// Judges the bearer token of a worker.
#[async_trait::async_trait]
pub trait WorkerAuthenticator: Send + Sync + fmt::Debug {
    /// Accepts the token or says why not; the answer is told to the worker.
    ///
    /// # Errors
    /// The token is not that of a worker of this cluster.
    async fn authenticate(&self, token: &str) -> Result<(), AuthenticationError>;
}

/// How workers prove who they are.
#[derive(Clone, Debug)]
pub enum WorkerAuthentication {
    /// All workers hold one secret (local mode).
    Token(Secret),
    /// Anything else, such as projected ServiceAccount tokens.
    Custom(Arc<dyn WorkerAuthenticator>),
}

impl WorkerAuthentication {
    /// Accepts the token or says why not.
    ///
    /// # Errors
    /// The token is not that of a worker of this cluster.
    pub async fn authenticate(&self, token: &str) -> Result<(), AuthenticationError> {
        match self {
            WorkerAuthentication::Token(secret) if secret.matches(token.as_bytes()) => Ok(()),
            WorkerAuthentication::Token(_) => Err(AuthenticationError::WrongToken),
            WorkerAuthentication::Custom(authenticator) => authenticator.authenticate(token).await,
        }
    }
}

/// Why a worker is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthenticationError {
    /// There is no bearer token in the call's metadata.
    #[error("the call carries no bearer token: send `authorization: Bearer <token>`")]
    NoToken,
    /// The token is another one.
    #[error("the bearer token is not this coordinator's: check the worker's --token-file")]
    WrongToken,
    /// The token is refused by its issuer's rules.
    #[error("the bearer token is refused: {reason}")]
    Refused {
        /// What is wrong with it.
        reason: String,
    },
}

impl AuthenticationError {
    /// Short name for metrics and events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            AuthenticationError::NoToken => "no_token",
            AuthenticationError::WrongToken => "wrong_token",
            AuthenticationError::Refused { .. } => "refused_token",
        }
    }
}
