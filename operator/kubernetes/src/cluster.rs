//! The ProverCluster that a coordinator serves, and the namespaces whose jobs it takes, as they change.
//!
//! Owns what the coordinator needs of both, in a form that is quick to ask. Does not own the decision about a job
//! ([`crate::jobs`]).

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Client, Resource};
use prover_coordinator::GroupOffer;
use prover_crds::{
    Backend, ClusterLimits, JobDefaults, NamespaceLimits, ProofSpec, ProofSystem, ProverCluster,
    ProverClusterSpec, WorkerGroup, command_offer, names,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::status::{GroupPrices, prices};

/// What a coordinator knows of its cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Rules {
    /// None: the ProverCluster is not there.
    pub(crate) cluster: Option<ClusterRules>,
    /// Namespaces whose jobs are taken.
    pub(crate) namespaces: BTreeSet<String>,
}

/// What the ProverCluster says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ClusterRules {
    /// The words under which its backends offer proofs.
    pub(crate) offers: BTreeSet<String>,
    pub(crate) limits: ClusterLimits,
    pub(crate) defaults: JobDefaults,
    pub(crate) prices: GroupPrices,
    /// What the workers of each group will offer.
    pub(crate) groups: Vec<GroupOffer>,
    /// It is being deleted.
    pub(crate) terminating: bool,
}

/// The word under which a backend offers its proofs.
fn offered_as(backend: &Backend) -> String {
    match backend.system {
        ProofSystem::Command => command_offer(&backend.name),
        system => system.as_str().to_owned(),
    }
}

/// What the workers of each group will offer, before the first of them comes.
fn groups(spec: &ProverClusterSpec) -> Vec<GroupOffer> {
    let offer = |group: &WorkerGroup| {
        let backend = spec
            .backends
            .iter()
            .find(|backend| backend.name == group.backend)?;
        Some(GroupOffer {
            group: group.name.as_str().into(),
            offered_as: offered_as(backend).into(),
        })
    };
    spec.worker_groups.iter().filter_map(offer).collect()
}

impl ClusterRules {
    /// What a ProverCluster says.
    pub(crate) fn of(cluster: &ProverCluster) -> Self {
        let spec = &cluster.spec;
        let offers = spec.backends.iter().map(offered_as);
        ClusterRules {
            offers: offers.collect(),
            limits: spec.limits.clone().unwrap_or_default(),
            defaults: spec.defaults.clone().unwrap_or_default(),
            prices: prices(spec),
            groups: groups(spec),
            terminating: cluster.metadata.deletion_timestamp.is_some(),
        }
    }

    /// Whether a backend makes proofs of the system.
    pub(crate) fn offers(&self, proof: &ProofSpec) -> bool {
        self.offers.contains(&*proof.offered_as())
    }

    /// The bounds of a namespace: its own, else those of `*`.
    pub(crate) fn namespace(&self, namespace: &str) -> Option<&NamespaceLimits> {
        let named = |name: &str| {
            self.limits
                .namespaces
                .iter()
                .find(|limits| limits.namespace == name)
        };
        named(namespace).or_else(|| named("*"))
    }
}

/// The latest rules, and whether both watches have answered once.
#[derive(Clone, Debug)]
pub(crate) struct RulesWatch {
    rules: watch::Receiver<Arc<Known>>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    rules: Arc<Rules>,
    cluster_synced: bool,
    namespaces_synced: bool,
}

impl RulesWatch {
    /// Begins both watches.
    pub(crate) fn start(
        client: &Client,
        namespace: &str,
        cluster: &str,
        metrics: &Metrics,
        stop: &CancellationToken,
    ) -> Self {
        let (sender, rules) = watch::channel(Arc::new(Known::default()));
        let sender = Arc::new(sender);
        let own = namespace.to_owned();
        tokio::spawn(follow::<ProverCluster>(
            Api::namespaced(client.clone(), namespace),
            cluster.to_owned(),
            "proverclusters",
            metrics.clone(),
            stop.clone(),
            {
                let sender = Arc::clone(&sender);
                move |found: Option<&ProverCluster>| {
                    let told = found.map(ClusterRules::of);
                    change(&sender, |known, rules| {
                        rules.cluster = told;
                        known.cluster_synced = true;
                    });
                }
            },
        ));
        tokio::spawn(follow::<ConfigMap>(
            Api::namespaced(client.clone(), namespace),
            names::namespaces_config(cluster),
            "configmaps",
            metrics.clone(),
            stop.clone(),
            move |found: Option<&ConfigMap>| {
                let told = found.map_or_else(|| BTreeSet::from([own.clone()]), namespaces);
                change(&sender, |known, rules| {
                    rules.namespaces = told;
                    known.namespaces_synced = true;
                });
            },
        ));
        RulesWatch { rules }
    }

    /// The latest rules; none until both watches have answered.
    pub(crate) fn latest(&mut self) -> Option<Arc<Rules>> {
        let known = self.rules.borrow_and_update();
        (known.cluster_synced && known.namespaces_synced).then(|| Arc::clone(&known.rules))
    }

    /// Waits for other rules; for ever once the watches have ended.
    pub(crate) async fn changed(&mut self) {
        if self.rules.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn change(sender: &watch::Sender<Arc<Known>>, change: impl FnOnce(&mut Known, &mut Rules)) {
    sender.send_if_modified(|known| {
        let mut next = (**known).clone();
        let mut rules = (*next.rules).clone();
        change(&mut next, &mut rules);
        let same = rules == *known.rules
            && next.cluster_synced == known.cluster_synced
            && next.namespaces_synced == known.namespaces_synced;
        next.rules = Arc::new(rules);
        *known = Arc::new(next);
        !same
    });
}

/// The namespaces that the operator lists, one per line.
fn namespaces(config: &ConfigMap) -> BTreeSet<String> {
    let text = config
        .data
        .as_ref()
        .and_then(|data| data.get(names::NAMESPACES_KEY));
    text.map(String::as_str)
        .unwrap_or_default()
        .lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

/// Tells what becomes of one object until it is stopped. An object that can't be read changes nothing.
async fn follow<K>(
    api: Api<K>,
    name: String,
    resource: &'static str,
    metrics: Metrics,
    stop: CancellationToken,
    tell: impl Fn(Option<&K>),
) where
    K: Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
    K: Resource<Scope = kube::core::NamespaceResourceScope>,
{
    let guarded: Api<DeserializeGuard<K>> = guarded(&api);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = watcher(guarded, config).default_backoff().boxed();
    let mut seen = false;
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            None => return,
            Some(Ok(watcher::Event::Init)) => seen = false,
            Some(Ok(
                watcher::Event::InitApply(DeserializeGuard(object))
                | watcher::Event::Apply(DeserializeGuard(object)),
            )) => {
                seen = true;
                match object {
                    Ok(object) => tell(Some(&object)),
                    Err(error) => {
                        metrics.undecodable.inc();
                        tracing::error!(resource, name, %error, "an object can't be read: what was known of it stays");
                    }
                }
            }
            Some(Ok(watcher::Event::InitDone)) => {
                if !seen {
                    tell(None);
                }
            }
            Some(Ok(watcher::Event::Delete(_))) => tell(None),
            Some(Err(error)) => {
                metrics.watch_errors.with_label_values(&[resource]).inc();
                tracing::warn!(resource, name, %error, "a watch broke and begins again");
            }
        }
    }
}

fn guarded<K>(api: &Api<K>) -> Api<DeserializeGuard<K>>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
    K::DynamicType: Default,
{
    let namespace = api.namespace().unwrap_or_default().to_owned();
    Api::namespaced(api.clone().into_client(), &namespace)
}
