//! Signing in: the bearer token of a call, judged before anything else of it is looked at.

use prover_wire::{AUTHORIZATION, BEARER};
use tonic::{Request, Status};

use crate::config::{AuthenticationError, WorkerAuthentication};
use crate::identity::Identity;
use crate::listener::Peer;
use crate::metrics::Metrics;

/// What both planes sign in with.
#[derive(Clone, Debug)]
pub(crate) struct SignIn {
    pub(crate) authentication: WorkerAuthentication,
    pub(crate) metrics: Metrics,
}

impl SignIn {
    /// The worker that calls.
    pub(crate) async fn worker<T>(&self, request: &Request<T>) -> Result<Identity, Status> {
        self.identity(request, |identity| match identity {
            Identity::LocalWorker | Identity::Worker { .. } => Ok(()),
            Identity::Operator => Err("the worker plane takes workers only"),
        })
        .await
    }

    /// Nobody but the operator.
    pub(crate) async fn operator<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.identity(request, |identity| match identity {
            Identity::Operator => Ok(()),
            Identity::LocalWorker | Identity::Worker { .. } => {
                Err("the operator plane takes the operator only")
            }
        })
        .await
        .map(|_| ())
    }

    async fn identity<T>(
        &self,
        request: &Request<T>,
        allowed: impl FnOnce(&Identity) -> Result<(), &'static str>,
    ) -> Result<Identity, Status> {
        let peer = request.extensions().get::<Peer>();
        let judged = self.authenticate(request, peer).await.and_then(|identity| {
            allowed(&identity).map_err(|reason| AuthenticationError::NotAllowed { reason })?;
            Ok(identity)
        });
        match judged {
            Ok(identity) => {
                if let Some(peer) = peer {
                    peer.signed_in();
                }
                Ok(identity)
            }
            Err(error) => {
                self.metrics.session_refused(error.category());
                let address = peer.map(|peer| peer.address);
                tracing::warn!(?address, category = error.category(), %error, "somebody is not let in");
                Err(error.status())
            }
        }
    }

    async fn authenticate<T>(
        &self,
        request: &Request<T>,
        peer: Option<&Peer>,
    ) -> Result<Identity, AuthenticationError> {
        let token = request
            .metadata()
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix(BEARER))
            .ok_or(AuthenticationError::NoToken)?;
        self.authentication
            .authenticate(token, peer.map(|peer| peer.address))
            .await
    }
}
