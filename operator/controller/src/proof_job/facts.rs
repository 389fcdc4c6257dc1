//! What ProverClusters and Namespaces mean for jobs, and which jobs a change of them concerns.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::core::DeserializeGuard;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::reflector::store::Store;
use prover_crds::{AllowedNamespaces, NamespacesFrom, ProverCluster, names};

use super::object::JobObject;
use super::plan::ClusterFacts;
use crate::caches::Queues;
use crate::watches::{key_of, reference};
use crate::{Caches, ClusterKey, Context};

/// The ProverCluster that a job names.
pub(super) fn cluster_of(job: &JobObject) -> ClusterKey {
    let own = job.metadata.namespace.as_deref().unwrap_or_default();
    ClusterKey {
        namespace: job
            .spec
            .cluster_ref
            .namespace
            .as_deref()
            .unwrap_or(own)
            .to_owned(),
        name: job.spec.cluster_ref.name.clone(),
    }
}

/// What is known of a ProverCluster that matters to jobs.
#[derive(Clone, Debug, PartialEq)]
enum Known {
    Absent,
    Unreadable,
    Present {
        terminating_since: Option<Timestamp>,
        forced: bool,
        default_ttl: Option<i64>,
        allowed: AllowedNamespaces,
    },
}

fn known(clusters: &Store<DeserializeGuard<ProverCluster>>, key: &ClusterKey) -> Known {
    let Some(guarded) = clusters.get(&reference(key)) else {
        return Known::Absent;
    };
    let Ok(cluster) = &guarded.0 else {
        return Known::Unreadable;
    };
    Known::Present {
        terminating_since: cluster
            .metadata
            .deletion_timestamp
            .as_ref()
            .map(|Time(time)| *time),
        forced: cluster
            .annotations()
            .get(names::FORCE_DELETE_ANNOTATION)
            .is_some_and(|value| value == "true"),
        default_ttl: cluster
            .spec
            .defaults
            .as_ref()
            .and_then(|defaults| defaults.ttl_seconds_after_finished),
        allowed: cluster.spec.allowed_namespaces.clone().unwrap_or_default(),
    }
}

/// What the ProverCluster of a job means for it.
pub(super) fn cluster_facts(job: &JobObject, caches: &Caches) -> ClusterFacts {
    let key = cluster_of(job);
    let own = job.metadata.namespace.as_deref().unwrap_or_default();
    match known(&caches.clusters, &key) {
        Known::Absent => ClusterFacts::NotFound,
        Known::Unreadable => ClusterFacts::Unknown,
        Known::Present {
            terminating_since,
            forced,
            default_ttl,
            allowed,
        } => {
            let namespaces = caches.namespaces.as_ref();
            match is_allowed(&allowed, &key.namespace, own, namespaces) {
                None => ClusterFacts::Unknown,
                Some(false) => ClusterFacts::NotAllowed,
                Some(true) => match terminating_since {
                    Some(since) => ClusterFacts::Terminating {
                        since,
                        forced,
                        default_ttl_seconds: default_ttl,
                    },
                    None => ClusterFacts::Takes {
                        default_ttl_seconds: default_ttl,
                    },
                },
            }
        }
    }
}

/// Whether a cluster takes jobs of a namespace; none where its labels can't be looked at.
fn is_allowed(
    allowed: &AllowedNamespaces,
    cluster_namespace: &str,
    namespace: &str,
    namespaces: Option<&Store<Namespace>>,
) -> Option<bool> {
    match allowed.from {
        NamespacesFrom::Same => Some(namespace == cluster_namespace),
        NamespacesFrom::All => Some(true),
        NamespacesFrom::Selector => {
            let found = namespaces?.get(&ObjectRef::new(namespace))?;
            let wanted = allowed
                .selector
                .iter()
                .flat_map(|selector| &selector.match_labels);
            Some(
                wanted
                    .into_iter()
                    .all(|(name, value)| found.labels().get(name) == Some(value)),
            )
        }
    }
}

/// Whether a namespace is being deleted, as far as it can be looked at.
pub(super) fn is_terminating(namespace: &str, namespaces: Option<&Store<Namespace>>) -> bool {
    let found = namespaces.and_then(|namespaces| namespaces.get(&ObjectRef::new(namespace)));
    found.is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some())
}

/// Wakes the jobs that a change of a ProverCluster or a Namespace concerns, and the ProverClusters that a change of a
/// Namespace concerns, for as long as it is polled.
pub(super) async fn wake_concerned(context: Arc<Context>, queues: Queues) {
    let clusters = async {
        let mut before: BTreeMap<ClusterKey, Known> = BTreeMap::new();
        loop {
            let key = queues.facts.next().await;
            let now = known(&context.caches.clusters, &key);
            let changed = before.get(&key).is_none_or(|before| *before != now);
            if now == Known::Absent {
                before.remove(&key);
            } else {
                before.insert(key.clone(), now);
            }
            if changed {
                wake_jobs(&context.caches, &queues, |job| cluster_of(job) == key);
            }
        }
    };
    let namespaces = async {
        let mut before: BTreeMap<String, (bool, BTreeMap<String, String>)> = BTreeMap::new();
        loop {
            let name = queues.namespaces.next().await.name;
            let found = context
                .caches
                .namespaces
                .as_ref()
                .and_then(|store| store.get(&ObjectRef::new(&name)));
            let now = found.map(|found| {
                (
                    found.metadata.deletion_timestamp.is_some(),
                    found.labels().clone(),
                )
            });
            if before.get(&name) == now.as_ref() {
                continue;
            }
            match now {
                Some(now) => before.insert(name.clone(), now),
                None => before.remove(&name),
            };
            wake_jobs(&context.caches, &queues, |job| {
                job.metadata.namespace.as_deref() == Some(name.as_str())
            });
            let choosing = context.caches.clusters.state_filter(|cluster| {
                let allowed = cluster
                    .0
                    .as_ref()
                    .ok()
                    .and_then(|cluster| cluster.spec.allowed_namespaces.as_ref());
                allowed.is_some_and(|allowed| allowed.from != NamespacesFrom::Same)
            });
            queues
                .clusters
                .wake_all(choosing.iter().map(|cluster| key_of(cluster.as_ref())));
        }
    };
    tokio::join!(clusters, namespaces);
}

fn wake_jobs(caches: &Caches, queues: &Queues, concerned: impl Fn(&JobObject) -> bool) {
    let jobs = caches
        .jobs
        .state_filter(|job| job.0.as_ref().is_ok_and(&concerned));
    queues.jobs.wake_all(jobs.iter().map(|job| key_of(job.as_ref())));
}
