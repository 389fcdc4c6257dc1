//! Which worker Deployments are current, which are old, and when an old one may go. Pure: scaling and apply both ask.
//!
//! An old revision keeps its workers while a job needs their backend version and nobody else has it, and while any of
//! them is at work. Nothing is known of that while the coordinator can't be reached, so then everything stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use prover_crds::names;
use prover_wire::operator_plane::{ClusterState, WorkerState};

use super::build::BACKEND_VERSION_ANNOTATION;

/// What becomes of an old revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retirement {
    /// It stays as it is: nobody can tell whether it is needed.
    Unknown,
    /// It stays: unfinished jobs are pinned to this backend version, which no current revision has. Where it has no
    /// replicas it needs one, else those jobs would wait for ever.
    Pinned {
        /// The version.
        version: String,
    },
    /// Its workers shall leave: the scaler lowers its replicas as they become idle.
    Leave,
    /// It has neither replicas nor pods, and goes.
    Delete,
}

/// A worker Deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerRevision {
    /// Name of the Deployment.
    pub deployment: String,
    /// Name of the worker group; it may be gone.
    pub group: String,
    /// Its revision.
    pub revision: String,
    /// What becomes of it; none for the current revision of a group.
    pub retirement: Option<Retirement>,
}

impl WorkerRevision {
    /// Whether it is the current revision of its group.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.retirement.is_none()
    }
}

/// Every worker Deployment of a cluster. `current` has the name of the current one of each group: the status of the
/// ProverCluster tells it as `groups[].deployment`.
#[must_use]
pub fn revisions(
    deployments: &[Arc<Deployment>],
    pods: &[Arc<Pod>],
    state: Option<&ClusterState>,
    current: &BTreeMap<String, String>,
) -> Vec<WorkerRevision> {
    let current: BTreeSet<&str> = current.values().map(String::as_str).collect();
    let of_workers = |deployment: &&Arc<Deployment>| is_worker(deployment);
    let (present, old): (Vec<_>, Vec<_>) = deployments
        .iter()
        .filter(of_workers)
        .partition(|deployment| current.contains(deployment.name_any().as_str()));
    let offered: BTreeSet<&str> = state
        .into_iter()
        .flat_map(|state| {
            present
                .iter()
                .flat_map(|deployment| versions(deployment, pods, state))
        })
        .collect();
    let describe = |deployment: &Arc<Deployment>, retirement| WorkerRevision {
        deployment: deployment.name_any(),
        group: deployment
            .labels()
            .get(names::GROUP_LABEL)
            .cloned()
            .unwrap_or_default(),
        revision: deployment
            .labels()
            .get(names::REVISION_LABEL)
            .cloned()
            .unwrap_or_default(),
        retirement,
    };
    let current = present.iter().map(|deployment| describe(deployment, None));
    let old = old
        .iter()
        .map(|deployment| describe(deployment, Some(retirement(deployment, pods, state, &offered))));
    current.chain(old).collect()
}

fn retirement(
    deployment: &Deployment,
    pods: &[Arc<Pod>],
    state: Option<&ClusterState>,
    offered: &BTreeSet<&str>,
) -> Retirement {
    let wanted = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    let is_empty = wanted == 0 && pods_of(deployment, pods).next().is_none();
    let Some(state) = state else {
        // No job can be pinned to what never had a worker.
        let never_ran = is_empty && remembered(deployment).is_none();
        return if never_ran {
            Retirement::Delete
        } else {
            Retirement::Unknown
        };
    };
    let needed = versions(deployment, pods, state).into_iter().find(|version| {
        !offered.contains(version)
            && state
                .pinned_backend_versions
                .iter()
                .any(|pinned| pinned == version)
    });
    match needed {
        Some(version) => Retirement::Pinned {
            version: version.to_owned(),
        },
        None if is_empty => Retirement::Delete,
        None => Retirement::Leave,
    }
}

/// Backend versions of a Deployment: what its workers tell, and what they told before they went.
fn versions<'a>(deployment: &'a Deployment, pods: &[Arc<Pod>], state: &'a ClusterState) -> BTreeSet<&'a str> {
    let names: BTreeSet<String> = pods_of(deployment, pods).map(|pod| pod.name_any()).collect();
    let of_it = |worker: &&WorkerState| names.contains(&worker.pod) && !worker.backend_version.is_empty();
    let told = state
        .workers
        .iter()
        .filter(of_it)
        .map(|worker| worker.backend_version.as_str());
    told.chain(remembered(deployment)).collect()
}

fn remembered(deployment: &Deployment) -> Option<&str> {
    deployment
        .annotations()
        .get(BACKEND_VERSION_ANNOTATION)
        .map(String::as_str)
}

/// The backend version of each worker Deployment, by its name: what its workers tell, else what they told before.
#[must_use]
pub fn told_versions(
    deployments: &[Arc<Deployment>],
    pods: &[Arc<Pod>],
    state: Option<&ClusterState>,
) -> BTreeMap<String, String> {
    let mut told = BTreeMap::new();
    for deployment in deployments.iter().filter(|deployment| is_worker(deployment)) {
        let names: BTreeSet<String> = pods_of(deployment, pods).map(|pod| pod.name_any()).collect();
        let workers = state.into_iter().flat_map(|state| &state.workers);
        let version = workers
            .filter(|worker| names.contains(&worker.pod) && !worker.backend_version.is_empty())
            .map(|worker| worker.backend_version.as_str())
            .max()
            .or_else(|| remembered(deployment));
        if let Some(version) = version {
            told.insert(deployment.name_any(), version.to_owned());
        }
    }
    told
}

/// The pods of a worker Deployment.
pub(super) fn pods_of<'a>(
    deployment: &Deployment,
    pods: &'a [Arc<Pod>],
) -> impl Iterator<Item = &'a Arc<Pod>> {
    let revision = deployment.labels().get(names::REVISION_LABEL).cloned();
    let group = deployment.labels().get(names::GROUP_LABEL).cloned();
    pods.iter().filter(move |pod| {
        revision.is_some()
            && pod.labels().get(names::REVISION_LABEL) == revision.as_ref()
            && pod.labels().get(names::GROUP_LABEL) == group.as_ref()
    })
}

fn is_worker(deployment: &Deployment) -> bool {
    deployment
        .labels()
        .get(names::COMPONENT_LABEL)
        .is_some_and(|component| component == names::WORKER)
        && deployment.labels().contains_key(names::REVISION_LABEL)
}

#[cfg(test)]
mod tests;
