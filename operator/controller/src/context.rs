//! What all reconcilers share.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use kube::Client;
use kube::runtime::events::Reporter;
use prover_runtime::Clock;
use prover_wire::operator_plane::ClusterState;

/// What the operator was started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the operator itself, where keys of authorities are kept.
    pub namespace: String,
    /// Name of the operator's ServiceAccount, with which it signs in to coordinators.
    pub service_account: String,
    /// Name of the operator's pod, which events and the Lease name.
    pub pod: String,
    /// Image of coordinators that name none.
    pub coordinator_image: String,
    /// Image of the agent of workers.
    pub worker_image: String,
    /// Pull policy of both images; that of Kubernetes where absent.
    pub image_pull_policy: Option<String>,
    /// Secrets in a cluster's namespace with which both images are fetched.
    pub image_pull_secrets: Vec<String>,
    /// Namespaces that are looked at; all where empty.
    pub watch_namespaces: Vec<String>,
}

/// Namespace and name of a ProverCluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What coordinators told last. Written by the scaler, read by reconcilers.
#[derive(Clone, Debug, Default)]
pub struct ClusterStates(Arc<RwLock<BTreeMap<ClusterKey, Arc<ClusterState>>>>);

impl ClusterStates {
    /// What the coordinator of a cluster told last; none while it can't be reached.
    #[must_use]
    pub fn get(&self, key: &ClusterKey) -> Option<Arc<ClusterState>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned()
    }

    /// Replaces what is known of a cluster; none where its coordinator can't be reached.
    pub fn set(&self, key: &ClusterKey, state: Option<Arc<ClusterState>>) {
        let mut states = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match state {
            Some(state) => states.insert(key.clone(), state),
            None => states.remove(key),
        };
    }
}

/// What all reconcilers share.
#[derive(Clone)]
pub struct Context {
    /// Speaks to the API server.
    pub client: Client,
    /// Who events come from.
    pub reporter: Reporter,
    /// What the operator was started with.
    pub settings: Settings,
    /// What coordinators told last.
    pub states: ClusterStates,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}
