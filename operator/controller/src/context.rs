//! What all reconcilers share.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::Client;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::store::Store;
use prover_crds::{ProverCluster, names};
use prover_runtime::Clock;
use prover_wire::operator_plane::ClusterState;

use crate::certificates::CertificateMemory;
use crate::metrics::Metrics;
use crate::proof_job::JobObject;
use crate::prover_cluster::{AppliedMemory, StatusMemory};
use crate::watches::reference;

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

/// What is known of the API server's objects, kept up to date by watches. Reading costs no call.
///
/// All but ProverClusters, ProofJobs and Namespaces are those that carry the labels of the operator: pods with
/// `proving.rs/cluster`, the others with `app.kubernetes.io/managed-by: prover-operator`. Managed fields are dropped
/// everywhere; of pods and Deployments only what is read is kept.
#[derive(Clone)]
pub struct Caches {
    /// ProverClusters, whole; an error where one can't be decoded.
    pub clusters: Store<DeserializeGuard<ProverCluster>>,
    /// ProofJobs without their inline data.
    pub jobs: Store<DeserializeGuard<JobObject>>,
    /// Namespaces; none where the operator may look at some namespaces only.
    pub namespaces: Option<Store<Namespace>>,
    /// Deployments of coordinators and workers, without pod templates.
    pub deployments: Store<Deployment>,
    /// Their pods: metadata, node, requested resources, status.
    pub pods: Store<Pod>,
    /// Metadata of Services.
    pub services: Store<PartialObjectMeta<Service>>,
    /// Metadata of ConfigMaps.
    pub config_maps: Store<PartialObjectMeta<ConfigMap>>,
    /// Metadata of Secrets.
    pub secrets: Store<PartialObjectMeta<Secret>>,
    /// Metadata of ServiceAccounts.
    pub service_accounts: Store<PartialObjectMeta<ServiceAccount>>,
    /// Metadata of Roles.
    pub roles: Store<PartialObjectMeta<Role>>,
    /// Metadata of RoleBindings.
    pub role_bindings: Store<PartialObjectMeta<RoleBinding>>,
    /// Metadata of PodDisruptionBudgets.
    pub disruption_budgets: Store<PartialObjectMeta<PodDisruptionBudget>>,
    /// Metadata of DaemonSets.
    pub daemon_sets: Store<PartialObjectMeta<DaemonSet>>,
    /// Metadata of NetworkPolicies.
    pub network_policies: Store<PartialObjectMeta<NetworkPolicy>>,
}

impl Caches {
    /// The ProverCluster with this key, if it exists and can be decoded.
    #[must_use]
    pub fn cluster(&self, key: &ClusterKey) -> Option<Arc<ProverCluster>> {
        let guarded = self.clusters.get(&reference(key))?;
        guarded.0.as_ref().ok().map(|cluster| Arc::new(cluster.clone()))
    }
}

/// What all reconcilers share.
#[derive(Clone)]
pub struct Context {
    /// Speaks to the API server.
    pub client: Client,
    /// Who events come from.
    pub reporter: Reporter,
    /// Publishes events, repeated ones as a series.
    pub recorder: Recorder,
    /// What the operator was started with.
    pub settings: Settings,
    /// What coordinators told last.
    pub states: ClusterStates,
    /// What is known of the API server's objects.
    pub caches: Caches,
    /// What the operator counts of itself.
    pub metrics: Metrics,
    /// What is known of authorities and certificates.
    pub certificates: Arc<CertificateMemory>,
    /// What was applied of ProverClusters since the operator started.
    pub applied: Arc<AppliedMemory>,
    /// When statuses of ProverClusters were written last.
    pub statuses: Arc<StatusMemory>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

impl Context {
    /// A context with nothing known of coordinators yet.
    #[must_use]
    pub fn new(
        client: Client,
        settings: Settings,
        caches: Caches,
        metrics: Metrics,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let reporter = Reporter {
            controller: names::OPERATOR_MANAGER.to_owned(),
            instance: Some(settings.pod.clone()),
        };
        Context {
            recorder: Recorder::new(client.clone(), reporter.clone()),
            client,
            reporter,
            settings,
            states: ClusterStates::default(),
            caches,
            metrics,
            certificates: Arc::default(),
            applied: Arc::default(),
            statuses: Arc::default(),
            clock,
        }
    }
}
