//! Who may sign in to a coordinator: the agents of worker pods that exist, and the operator, each with a projected
//! ServiceAccount token of an audience of its own.
//!
//! Owns the judgement. Tokens are verified here against the API server's public keys, so that thousands of
//! reconnecting workers cost the API server nothing; it is asked about a token only where it gives out no keys.

mod keys;
mod review;
mod token;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kube::Client;
use prometheus::{IntCounterVec, Opts, Registry};
use prover_coordinator::{AuthenticationError, Identity, WorkerAuthenticator};
use prover_crds::names;
use prover_runtime::Clock;

use crate::pods::{PodDirectory, PodProblem};
use keys::{Keys, KeysError};
use review::{ReviewError, Reviewer};
use token::{Claims, Header};
pub use token::{Expectations, KeySet, Subject, TokenError};

/// How long a pod that signs in may be ahead of the watch.
const POD_PATIENCE: Duration = Duration::from_secs(2);

/// For whom a coordinator is.
#[derive(Clone, Debug)]
pub struct IdentityConfig {
    /// Namespace of the ProverCluster.
    pub namespace: String,
    /// Name of the ProverCluster.
    pub cluster: String,
    /// Namespace of the operator's ServiceAccount.
    pub operator_namespace: String,
    /// Name of the operator's ServiceAccount.
    pub operator_account: String,
    /// Whether a worker must call from an address of its pod. Switched off where the network between them
    /// changes addresses.
    pub check_address: bool,
}

impl IdentityConfig {
    fn expectations(&self) -> Expectations {
        Expectations {
            namespace: self.namespace.clone(),
            worker_account: names::worker_account(&self.cluster),
            worker_audience: names::worker_audience(&self.namespace, &self.cluster),
            operator_subject: format!(
                "system:serviceaccount:{}:{}",
                self.operator_namespace, self.operator_account
            ),
            operator_audience: names::operator_audience(&self.namespace, &self.cluster),
        }
    }
}

/// Judges ServiceAccount tokens.
pub struct Authenticator {
    expectations: Expectations,
    check_address: bool,
    keys: Arc<Keys>,
    reviewer: Reviewer,
    directory: PodDirectory,
    clock: Arc<dyn Clock>,
    fetches: IntCounterVec,
}

impl std::fmt::Debug for Authenticator {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Authenticator")
            .field("expectations", &self.expectations)
            .finish_non_exhaustive()
    }
}

impl Authenticator {
    /// Asks nothing yet: keys are fetched when the first token comes, or by [`Authenticator::warm_up`].
    ///
    /// # Errors
    /// The registry has metrics of these names.
    pub fn new(
        client: Client,
        config: &IdentityConfig,
        directory: PodDirectory,
        clock: Arc<dyn Clock>,
        registry: &Registry,
    ) -> Result<Authenticator, prometheus::Error> {
        let fetches = IntCounterVec::new(
            Opts::new(
                "token_key_fetches_total",
                "Times that the API server's public keys were asked for, by outcome.",
            )
            .namespace("prover_coordinator"),
            &["outcome"],
        )?;
        registry.register(Box::new(fetches.clone()))?;
        Ok(Authenticator {
            expectations: config.expectations(),
            check_address: config.check_address,
            reviewer: Reviewer::new(client.clone(), registry)?,
            keys: Arc::new(Keys::new(client)),
            directory,
            clock,
            fetches,
        })
    }

    /// Fetches the keys, so that the first worker does not wait for them. A failure is told and of no consequence.
    pub async fn warm_up(&self) {
        if let Err(error) = self.refresh(None).await {
            tracing::warn!(%error, "the keys of ServiceAccount tokens can't be fetched yet");
        }
    }

    async fn refresh(&self, seen: Option<&Arc<KeySet>>) -> Result<Arc<KeySet>, KeysError> {
        let refreshed = self.keys.refresh(seen).await;
        let outcome = match &refreshed {
            Ok(_) => "fetched",
            Err(error) => error.category(),
        };
        self.fetches.with_label_values(&[outcome]).inc();
        refreshed
    }

    fn now_seconds(&self) -> u64 {
        self.clock.now_milliseconds() / 1_000
    }

    /// Whom the token was issued to, if it is worth anything.
    async fn subject(&self, token: &str) -> Result<Subject, AuthenticationError> {
        // What no key could make good costs nobody anything.
        let header = Header::of(token).map_err(|error| refused(&error))?;
        let keys = match self.keys.known() {
            Some((keys, old)) => {
                if old {
                    self.refresh_behind(Arc::clone(&keys));
                }
                keys
            }
            None => match self.refresh(None).await {
                Ok(keys) => keys,
                Err(error) => return self.reviewed(token, &error).await,
            },
        };
        let unknown = header.kid.as_deref().is_none_or(|id| !keys.knows(id));
        let keys = if unknown {
            // The API server may sign with a new key. Where it was asked a moment ago, it does not.
            self.refresh(Some(&keys)).await.unwrap_or(keys)
        } else {
            keys
        };
        keys.verify(token, &self.expectations, self.now_seconds())
            .map_err(|error| refused(&error))
    }

    fn refresh_behind(&self, seen: Arc<KeySet>) {
        let (keys, fetches) = (Arc::clone(&self.keys), self.fetches.clone());
        tokio::spawn(async move {
            let outcome = match keys.refresh(Some(&seen)).await {
                Ok(_) => "fetched",
                Err(KeysError::TooSoon) => return,
                Err(error) => error.category(),
            };
            fetches.with_label_values(&[outcome]).inc();
        });
    }

    /// Asks the API server about the token, since it gives out no keys.
    async fn reviewed(&self, token: &str, error: &KeysError) -> Result<Subject, AuthenticationError> {
        // Only what would be taken if it were genuine is worth a call.
        let claims = Claims::unverified(token).map_err(|error| refused(&error))?;
        let now = self.now_seconds();
        let subject = claims
            .subject(&self.expectations, now)
            .map_err(|error| refused(&error))?;
        let audience = match &subject {
            Subject::Worker { .. } => &self.expectations.worker_audience,
            Subject::Operator => &self.expectations.operator_audience,
        };
        match self.reviewer.review(token, audience, claims.exp, now).await {
            Ok(true) => Ok(subject),
            Ok(false) => Err(refused(&TokenError::Signature)),
            Err(ReviewError { problem }) => Err(AuthenticationError::Unavailable {
                reason: format!("{error}; and {problem}"),
            }),
        }
    }
}

fn refused(error: &TokenError) -> AuthenticationError {
    AuthenticationError::Refused {
        category: error.category(),
        reason: error.to_string(),
    }
}

#[async_trait]
impl WorkerAuthenticator for Authenticator {
    async fn authenticate(
        &self,
        token: &str,
        peer: Option<SocketAddr>,
    ) -> Result<Identity, AuthenticationError> {
        let (pod_name, pod_uid) = match self.subject(token).await? {
            Subject::Operator => return Ok(Identity::Operator),
            Subject::Worker { pod_name, pod_uid } => (pod_name, pod_uid),
        };
        let refuse = |category, reason: String| AuthenticationError::Refused { category, reason };
        let address = match (self.check_address, peer) {
            (false, _) => None,
            (true, Some(peer)) => Some(peer.ip()),
            (true, None) => {
                let reason = "where the call comes from is not known".to_owned();
                return Err(refuse("unknown_address", reason));
            }
        };
        let admitted = self
            .directory
            .admit(&pod_name, &pod_uid, address, POD_PATIENCE)
            .await;
        match admitted {
            Ok(()) => Ok(Identity::Worker {
                pod_name: pod_name.into(),
                pod_uid: pod_uid.into(),
            }),
            Err(PodProblem::NotSynced) => Err(AuthenticationError::Unavailable {
                reason: "the pods of this cluster are not known yet".to_owned(),
            }),
            Err(PodProblem::Unknown) => Err(refuse(
                "pod_unknown",
                format!("pod {pod_name} with UID {pod_uid} is no running worker of this cluster"),
            )),
            Err(PodProblem::OtherAddress) => Err(refuse(
                "foreign_address",
                format!(
                    "the call does not come from pod {pod_name}; where the network changes addresses, start the \
                     coordinator without the check of addresses"
                ),
            )),
        }
    }
}
