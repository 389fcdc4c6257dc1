//! What a coordinator is started with, and how workers prove who they are.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prover_artifacts::{ArtifactStore, Prefix};
use prover_core::Limits;
use prover_runtime::{Clock, SystemClock, prometheus::Registry};
use rustls::ServerConfig;
use subtle::ConstantTimeEq;
use tonic::Status;

use crate::error::Retry;
use crate::identity::Identity;

/// Longest time between opening a stream and its hello.
pub(crate) const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Events that wait for the actor before their senders wait too.
pub(crate) const COMMAND_QUEUE: usize = 4096;
/// Changes of the role that wait for the actor.
pub(crate) const CONTROL_QUEUE: usize = 4;
/// Shortest time between two views of a job that did not change its phase.
pub(crate) const VIEW_INTERVAL: Duration = Duration::from_millis(200);
/// Longest time that a shutdown waits for open connections.
pub(crate) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for the attempts of a released job to leave their devices, and for the log to have its end.
pub(crate) const RELEASE_WITHIN: Duration = Duration::from_secs(10);

/// What of a coordinator outlives it.
#[derive(Clone, Debug, Default)]
pub enum Durability {
    /// Nothing: it leads from the beginning (local mode).
    #[default]
    None,
    /// Everything that it has acknowledged: it follows the log until it is told to take over.
    Log(Box<LogConfig>),
}

/// Where the log is and how it is written.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The same place as the artifact store, opened with [`prover_log::store_options`].
    pub store: Arc<dyn ArtifactStore>,
    /// Of the ProverCluster; nobody else writes below it.
    pub prefix: Prefix,
    /// Intervals and bounds.
    pub limits: prover_log::Limits,
    /// Time between two looks at the log while this coordinator follows: each is a paid request.
    pub follow_interval: Duration,
}

impl LogConfig {
    /// The defaults of everything that has one.
    #[must_use]
    pub fn new(store: Arc<dyn ArtifactStore>, prefix: Prefix) -> Self {
        LogConfig {
            store,
            prefix,
            limits: prover_log::Limits::default(),
            follow_interval: Duration::from_secs(1),
        }
    }
}

/// What a coordinator is started with.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// Where workers connect; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// What outlives the coordinator.
    pub durability: Durability,
    /// Higher than that of every earlier coordinator of the same cluster: workers refuse lower ones, and attempts of
    /// different epochs have different ids. 1 where none went before. With a log it counts the epochs, and this is not
    /// looked at.
    pub epoch: u64,
    /// How workers prove who they are.
    pub worker_authentication: WorkerAuthentication,
    /// What connections are encrypted with; none: nothing is (local mode). The configuration offers HTTP/2 only, and
    /// may change its certificate by itself.
    pub tls: Option<Arc<ServerConfig>>,
    /// Longest time from a connection to the first call on it that signs in; more than the longest judgement of a
    /// token takes.
    pub sign_in_timeout: Duration,
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
    /// Shortest time between two tries of the store, which is tried while jobs are unfinished or the last try failed.
    pub store_probe_interval: Duration,
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
            durability: Durability::None,
            epoch: 1,
            worker_authentication,
            tls: None,
            sign_in_timeout: Duration::from_secs(15),
            limits: Limits::default(),
            heartbeat_interval: Duration::from_secs(2),
            artifact_prefix: String::new(),
            outbound_messages: 4096,
            program_bytes: 512 << 20,
            input_bytes: 4 << 30,
            parallel_deletes: 8,
            store_probe_interval: Duration::from_secs(30),
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

/// Judges bearer tokens.
#[async_trait::async_trait]
pub trait WorkerAuthenticator: Send + Sync + fmt::Debug {
    /// Whose token it is, or why it is worth nothing; the answer is told to the caller. `peer` is where the call
    /// comes from, as far as that is known.
    ///
    /// # Errors
    /// The token is neither that of a worker of this cluster nor that of the operator, or can't be judged now.
    async fn authenticate(
        &self,
        token: &str,
        peer: Option<SocketAddr>,
    ) -> Result<Identity, AuthenticationError>;
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
    /// Whose token it is, or why it is worth nothing.
    ///
    /// # Errors
    /// The token is neither that of a worker of this cluster nor that of the operator, or can't be judged now.
    pub async fn authenticate(
        &self,
        token: &str,
        peer: Option<SocketAddr>,
    ) -> Result<Identity, AuthenticationError> {
        match self {
            WorkerAuthentication::Token(secret) if secret.matches(token.as_bytes()) => {
                Ok(Identity::LocalWorker)
            }
            WorkerAuthentication::Token(_) => Err(AuthenticationError::WrongToken),
            WorkerAuthentication::Custom(authenticator) => authenticator.authenticate(token, peer).await,
        }
    }
}

/// Why somebody is not let in.
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
        /// Short name for metrics.
        category: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The token is good, but not for this.
    #[error("this identity may not do that: {reason}")]
    NotAllowed {
        /// Whose it must be.
        reason: &'static str,
    },
    /// What tokens are verified with can't be had now.
    #[error("tokens can't be verified now: {reason}; try again")]
    Unavailable {
        /// What is missing.
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
            AuthenticationError::Refused { category, .. } => category,
            AuthenticationError::NotAllowed { .. } => "not_allowed",
            AuthenticationError::Unavailable { .. } => "verification_unavailable",
        }
    }

    /// What is worth trying again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            AuthenticationError::Unavailable { .. } => Retry::Backoff,
            _ => Retry::Never,
        }
    }

    /// As the caller is told.
    pub(crate) fn status(&self) -> Status {
        match self {
            AuthenticationError::Unavailable { .. } => Status::unavailable(self.to_string()),
            AuthenticationError::NotAllowed { .. } => Status::permission_denied(self.to_string()),
            _ => Status::unauthenticated(self.to_string()),
        }
    }
}
