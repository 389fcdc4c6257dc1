//! Fills [`Caches`] and says who is woken by what.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::reflector::store::{Store, Writer, store};
use kube::runtime::watcher::Event;
use kube::{Api, Client, Resource, ResourceExt};
use prover_crds::{ProverCluster, names};
use serde::de::DeserializeOwned;

use crate::metrics::Metrics;
use crate::proof_job::{self, JobObject};
use crate::watches::{Queue, Selection, key_of, watch_all, watch_objects};
use crate::{Caches, ClusterKey, Settings};

/// Whom changes wake.
#[derive(Clone, Debug, Default)]
pub struct Queues {
    /// ProverClusters to be reconciled.
    pub clusters: Arc<Queue>,
    /// ProofJobs to be looked at.
    pub jobs: Arc<Queue>,
    /// ProverClusters whose replicas are to be decided again.
    pub scaling: Arc<Queue>,
    /// ProverClusters whose jobs are to be looked at, since something changed that decides whether jobs are taken.
    pub facts: Arc<Queue>,
    /// Namespaces that changed, by name.
    pub namespaces: Arc<Queue>,
}

/// The work of keeping a cache, to be polled for as long as the cache is read.
pub type Filling = BoxFuture<'static, ()>;

/// Caches over the namespaces that the operator may look at, and the work that keeps them.
#[must_use]
pub fn caches(
    client: &Client,
    settings: &Settings,
    queues: &Queues,
    metrics: &Metrics,
) -> (Caches, Vec<Filling>) {
    let namespaces = settings.watch_namespaces.as_slice();
    let builder = Builder {
        client,
        settings,
        queues,
        metrics: Arc::new(metrics.clone()),
    };
    let mut filling = Vec::new();
    let caches = Caches {
        clusters: builder.clusters(&mut filling),
        jobs: builder.jobs(&mut filling),
        namespaces: namespaces.is_empty().then(|| builder.namespaces(&mut filling)),
        deployments: builder.deployments(&mut filling),
        pods: builder.pods(&mut filling),
        services: builder.metadata(&mut filling),
        config_maps: builder.metadata(&mut filling),
        secrets: builder.secrets(&mut filling),
        service_accounts: builder.metadata(&mut filling),
        roles: builder.metadata(&mut filling),
        role_bindings: builder.metadata(&mut filling),
        disruption_budgets: builder.metadata(&mut filling),
        daemon_sets: builder.metadata(&mut filling),
        network_policies: builder.metadata(&mut filling),
    };
    (caches, filling)
}

impl Caches {
    /// Caches of an API server without any objects, for tests.
    #[must_use]
    pub fn empty() -> Caches {
        Caches {
            clusters: no_objects(),
            jobs: no_objects(),
            namespaces: Some(no_objects()),
            deployments: no_objects(),
            pods: no_objects(),
            services: no_objects(),
            config_maps: no_objects(),
            secrets: no_objects(),
            service_accounts: no_objects(),
            roles: no_objects(),
            role_bindings: no_objects(),
            disruption_budgets: no_objects(),
            daemon_sets: no_objects(),
            network_policies: no_objects(),
        }
    }

    /// What is not filled yet, for people; none when all is.
    #[must_use]
    pub fn missing(&self) -> Option<&'static str> {
        let namespaces = self.namespaces.as_ref();
        let filled = [
            ("ProverClusters", is_filled(&self.clusters)),
            ("ProofJobs", is_filled(&self.jobs)),
            ("Namespaces", namespaces.is_none_or(is_filled)),
            ("Deployments", is_filled(&self.deployments)),
            ("Pods", is_filled(&self.pods)),
            ("Services", is_filled(&self.services)),
            ("ConfigMaps", is_filled(&self.config_maps)),
            ("Secrets", is_filled(&self.secrets)),
            ("ServiceAccounts", is_filled(&self.service_accounts)),
            ("Roles", is_filled(&self.roles)),
            ("RoleBindings", is_filled(&self.role_bindings)),
            ("PodDisruptionBudgets", is_filled(&self.disruption_budgets)),
            ("DaemonSets", is_filled(&self.daemon_sets)),
            ("NetworkPolicies", is_filled(&self.network_policies)),
        ];
        filled
            .into_iter()
            .find(|(_, filled)| !filled)
            .map(|(kind, _)| kind)
    }
}

fn no_objects<K: Resource<DynamicType = ()> + Clone + 'static>() -> Store<K> {
    let (reader, mut writer) = store();
    writer.apply_watcher_event(&Event::Init);
    writer.apply_watcher_event(&Event::InitDone);
    reader
}

fn is_filled<K: Resource<DynamicType = ()> + Clone + 'static>(store: &Store<K>) -> bool {
    store.wait_until_ready().now_or_never().is_some()
}

struct Builder<'a> {
    client: &'a Client,
    settings: &'a Settings,
    queues: &'a Queues,
    metrics: Arc<Metrics>,
}

impl Builder<'_> {
    fn selection(&self, labels: &str) -> Selection {
        Selection {
            labels: labels.to_owned(),
            namespaces: self.settings.watch_namespaces.clone(),
        }
    }

    fn ours(&self) -> Selection {
        self.selection(&format!("{}={}", names::MANAGED_BY_LABEL, names::PROJECT))
    }

    fn clusters(&self, filling: &mut Vec<Filling>) -> Store<DeserializeGuard<ProverCluster>> {
        let (reader, writer) = store();
        let queues = self.queues.clone();
        let touched = move |cluster: &DeserializeGuard<ProverCluster>| {
            let key = key_of(cluster);
            queues.facts.wake(key.clone());
            queues.scaling.wake(key.clone());
            queues.clusters.wake(key);
        };
        filling.push(self.objects(self.selection(""), writer, trim_metadata, touched));
        reader
    }

    fn jobs(&self, filling: &mut Vec<Filling>) -> Store<DeserializeGuard<JobObject>> {
        let (reader, writer) = store();
        let queue = Arc::clone(&self.queues.jobs);
        let touched = move |job: &DeserializeGuard<JobObject>| queue.wake(key_of(job));
        filling.push(self.objects(self.selection(""), writer, proof_job::trim, touched));
        reader
    }

    fn namespaces(&self, filling: &mut Vec<Filling>) -> Store<Namespace> {
        let (reader, writer) = store();
        let queue = Arc::clone(&self.queues.namespaces);
        let touched = move |namespace: &Namespace| {
            queue.wake(ClusterKey {
                namespace: String::new(),
                name: namespace.name_any(),
            });
        };
        let api = Api::all(self.client.clone());
        filling.push(watch_all(api, writer, Arc::clone(&self.metrics), trim_metadata, touched).boxed());
        reader
    }

    fn deployments(&self, filling: &mut Vec<Filling>) -> Store<Deployment> {
        let (reader, writer) = store();
        filling.push(self.objects(self.ours(), writer, trim_deployment, self.wake_owner()));
        reader
    }

    fn pods(&self, filling: &mut Vec<Filling>) -> Store<Pod> {
        let (reader, writer) = store();
        filling.push(self.objects(
            self.selection(names::CLUSTER_LABEL),
            writer,
            trim_pod,
            self.wake_owner(),
        ));
        reader
    }

    /// Those of clusters and, in the operator's own namespace, the keys of their authorities.
    fn secrets(&self, filling: &mut Vec<Filling>) -> Store<PartialObjectMeta<Secret>> {
        let (reader, writer) = store();
        let mut selection = self.ours();
        let own = &self.settings.namespace;
        if !selection.namespaces.is_empty() && !selection.namespaces.contains(own) {
            selection.namespaces.push(own.clone());
        }
        filling.push(self.objects(selection, writer, trim_metadata, self.wake_owner()));
        reader
    }

    fn metadata<K>(&self, filling: &mut Vec<Filling>) -> Store<PartialObjectMeta<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    {
        let (reader, writer) = store();
        filling.push(self.objects(self.ours(), writer, trim_metadata, self.wake_owner()));
        reader
    }

    fn objects<K>(
        &self,
        selection: Selection,
        writer: Writer<K>,
        trim: impl FnMut(&mut K) + Send + 'static,
        touched: impl FnMut(&K) + Send + 'static,
    ) -> Filling
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
        K: Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    {
        watch_objects(
            self.client.clone(),
            selection,
            writer,
            Arc::clone(&self.metrics),
            trim,
            touched,
        )
        .boxed()
    }

    /// Wakes the ProverCluster whose label an object carries: reconcile and, where replicas may be concerned, scaling.
    fn wake_owner<K: Resource<DynamicType = ()>>(&self) -> impl FnMut(&K) + Send + 'static {
        let queues = self.queues.clone();
        move |object: &K| {
            let Some(key) = owner(object) else { return };
            if matches!(K::kind(&()).as_ref(), "Pod" | "Deployment") {
                queues.scaling.wake(key.clone());
            }
            queues.clusters.wake(key);
        }
    }
}

/// The ProverCluster that an object was made for: by its labels, in its own namespace unless another is named.
fn owner<K: Resource>(object: &K) -> Option<ClusterKey> {
    let labels = object.labels();
    let name = labels.get(names::CLUSTER_LABEL)?.clone();
    let namespace = labels
        .get(names::CLUSTER_NAMESPACE_LABEL)
        .cloned()
        .or_else(|| object.namespace())?;
    Some(ClusterKey { namespace, name })
}

/// Takes away what nobody reads of any object.
fn trim_metadata<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
    if let Some(annotations) = &mut object.meta_mut().annotations {
        annotations.remove(LAST_APPLIED);
    }
}

/// Annotation in which `kubectl apply` keeps the whole manifest.
pub(crate) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

fn trim_deployment(deployment: &mut Deployment) {
    trim_metadata(deployment);
    if let Some(spec) = &mut deployment.spec {
        spec.template = Default::default();
    }
}

fn trim_pod(pod: &mut Pod) {
    trim_metadata(pod);
    let Some(spec) = &mut pod.spec else { return };
    let node_name = spec.node_name.take();
    *spec = k8s_openapi::api::core::v1::PodSpec {
        node_name,
        ..Default::default()
    };
}
