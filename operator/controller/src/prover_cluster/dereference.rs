//! First step: what a ProverCluster refers to, and what is there of it already. All of it comes from caches.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::runtime::reflector::store::Store;
use kube::{Resource, ResourceExt};
use prover_crds::{NamespacesFrom, ProverCluster, names};
use prover_wire::operator_plane::ClusterState;

use super::apply::{ObjectId, Present};
use super::build::Kind;
use crate::watches::key_of;
use crate::{ClusterKey, Context};

/// Most namespaces that a ProverCluster serves; each costs its coordinator a watch.
pub const MOST_NAMESPACES: usize = 1_000;

/// Which namespaces are allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Namespaces {
    /// Sorted, at most [`MOST_NAMESPACES`].
    pub(super) allowed: Vec<String>,
    /// How many more there would be.
    pub(super) left_out: usize,
    /// The operator may not read labels of namespaces, so that a selector finds none.
    pub(super) unreadable: bool,
}

/// What a ProverCluster refers to, and what is there.
pub(super) struct Dereferenced {
    /// Which cluster it is.
    pub(super) key: ClusterKey,
    /// Which namespaces are allowed.
    pub(super) namespaces: Namespaces,
    /// Its Deployments.
    pub(super) deployments: Vec<Arc<Deployment>>,
    /// Its pods.
    pub(super) pods: Vec<Arc<Pod>>,
    /// Everything that `build` once made for it.
    pub(super) present: BTreeMap<ObjectId, Present>,
    /// What its coordinator told last.
    pub(super) state: Option<Arc<ClusterState>>,
    /// Whether its namespace is being deleted.
    pub(super) namespace_goes: bool,
}

impl Dereferenced {
    /// The Deployments of a group, the newest first.
    pub(super) fn worker_deployments(&self, group: &str) -> Vec<&Arc<Deployment>> {
        let of_group = |deployment: &&Arc<Deployment>| {
            deployment
                .labels()
                .get(names::GROUP_LABEL)
                .is_some_and(|label| label == group)
        };
        let mut deployments: Vec<_> = self.deployments.iter().filter(of_group).collect();
        deployments.sort_by_key(|deployment| std::cmp::Reverse(deployment.creation_timestamp()));
        deployments
    }

    /// The pod of the coordinator that leads, as it says itself.
    pub(super) fn leader(&self) -> Option<&Arc<Pod>> {
        self.coordinators().find(|pod| {
            pod.labels()
                .get(names::ROLE_LABEL)
                .is_some_and(|role| role == names::LEADER)
        })
    }

    /// Why the artifact store can't be used, in the words of a coordinator that can't begin for that reason.
    pub(super) fn store_trouble(&self) -> Option<(&str, &str)> {
        let told = |pod: &'_ Arc<Pod>| pod.annotations().contains_key(names::STORE_TROUBLE_ANNOTATION);
        let pod = self.coordinators().find(|pod| told(pod))?;
        pod.annotations()
            .get(names::STORE_TROUBLE_ANNOTATION)?
            .split_once(": ")
    }

    fn coordinators(&self) -> impl Iterator<Item = &Arc<Pod>> {
        let is_coordinator = |pod: &&Arc<Pod>| {
            let component = pod.labels().get(names::COMPONENT_LABEL);
            component.is_some_and(|component| component == names::COORDINATOR)
                && pod.metadata.deletion_timestamp.is_none()
        };
        self.pods.iter().filter(is_coordinator)
    }

    /// The Deployment of the coordinator.
    pub(super) fn coordinator_deployment(&self) -> Option<&Arc<Deployment>> {
        let name = names::coordinator_name(&self.key.name);
        self.deployments
            .iter()
            .find(|deployment| deployment.name_any() == name)
    }
}

/// Reads the caches.
pub(super) fn dereference(cluster: &ProverCluster, context: &Context) -> Dereferenced {
    let caches = &context.caches;
    let key = key_of(cluster);
    let mut present = BTreeMap::new();
    collect(&caches.service_accounts, Kind::ServiceAccount, &key, &mut present);
    collect(&caches.roles, Kind::Role, &key, &mut present);
    collect(&caches.role_bindings, Kind::RoleBinding, &key, &mut present);
    collect(&caches.config_maps, Kind::ConfigMap, &key, &mut present);
    collect(&caches.services, Kind::Service, &key, &mut present);
    collect(&caches.network_policies, Kind::NetworkPolicy, &key, &mut present);
    collect(
        &caches.disruption_budgets,
        Kind::PodDisruptionBudget,
        &key,
        &mut present,
    );
    collect(&caches.deployments, Kind::Deployment, &key, &mut present);
    collect(&caches.daemon_sets, Kind::DaemonSet, &key, &mut present);
    Dereferenced {
        namespaces: namespaces(
            cluster,
            caches.namespaces.as_ref(),
            &context.settings.watch_namespaces,
        ),
        deployments: caches
            .deployments
            .state_filter(|deployment| owner_of(deployment).as_ref() == Some(&key)),
        pods: caches
            .pods
            .state_filter(|pod| owner_of(pod).as_ref() == Some(&key)),
        present,
        state: context.states.get(&key),
        namespace_goes: caches.namespaces.as_ref().is_some_and(|store| {
            store
                .find(|namespace| namespace.name_any() == key.namespace)
                .is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some())
        }),
        key,
    }
}

/// The ProverCluster that an object was made for, by its labels.
pub(super) fn owner_of<K: Resource>(object: &K) -> Option<ClusterKey> {
    let labels = object.labels();
    Some(ClusterKey {
        name: labels.get(names::CLUSTER_LABEL)?.clone(),
        namespace: labels
            .get(names::CLUSTER_NAMESPACE_LABEL)
            .cloned()
            .or_else(|| object.namespace())?,
    })
}

fn collect<K>(store: &Store<K>, kind: Kind, key: &ClusterKey, present: &mut BTreeMap<ObjectId, Present>)
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    for object in store.state_filter(|object| owner_of(object).as_ref() == Some(key)) {
        let id = ObjectId {
            kind,
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
        };
        present.insert(id, Present::of(object.meta()));
    }
}

/// Which namespaces are allowed. Pure, but for the cache that it reads.
fn namespaces(cluster: &ProverCluster, known: Option<&Store<Namespace>>, watched: &[String]) -> Namespaces {
    let own = cluster.namespace().unwrap_or_default();
    let from = cluster
        .spec
        .allowed_namespaces
        .as_ref()
        .map_or(NamespacesFrom::Same, |allowed| allowed.from);
    let selector = cluster
        .spec
        .allowed_namespaces
        .as_ref()
        .and_then(|allowed| allowed.selector.as_ref())
        .map(|selector| selector.match_labels.clone())
        .unwrap_or_default();
    match (from, known) {
        (NamespacesFrom::Same, _) => Namespaces {
            allowed: vec![own],
            ..Namespaces::default()
        },
        (NamespacesFrom::All, None) => bounded(watched.to_vec()),
        (NamespacesFrom::Selector, None) => Namespaces {
            unreadable: true,
            ..Namespaces::default()
        },
        (NamespacesFrom::All, Some(store)) => bounded(living(store, |_| true)),
        (NamespacesFrom::Selector, Some(store)) => bounded(living(store, |namespace| {
            let labels = namespace.labels();
            selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        })),
    }
}

/// Nothing can be made in a namespace that is going.
fn living(store: &Store<Namespace>, wanted: impl Fn(&Namespace) -> bool) -> Vec<String> {
    let alive = |namespace: &Namespace| namespace.metadata.deletion_timestamp.is_none();
    let namespaces = store.state_filter(|namespace| alive(namespace) && wanted(namespace));
    namespaces.iter().map(|namespace| namespace.name_any()).collect()
}

fn bounded(mut allowed: Vec<String>) -> Namespaces {
    allowed.sort();
    allowed.dedup();
    let left_out = allowed.len().saturating_sub(MOST_NAMESPACES);
    allowed.truncate(MOST_NAMESPACES);
    Namespaces {
        allowed,
        left_out,
        unreadable: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_namespaces_than_a_cluster_may_serve_are_left_out_and_counted() {
        let names: Vec<String> = (0..MOST_NAMESPACES + 3)
            .rev()
            .map(|index| format!("team-{index:05}"))
            .collect();
        let namespaces = bounded(names);
        assert_eq!(
            (namespaces.allowed.len(), namespaces.left_out),
            (MOST_NAMESPACES, 3)
        );
        assert!(namespaces.allowed.is_sorted());
    }
}
