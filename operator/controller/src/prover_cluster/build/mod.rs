//! Third step: everything that a ProverCluster is made of, as it shall be.
//!
//! Owns what is made, with which names, labels and owners. Has no client and can't fail: whatever could go wrong is
//! refused by `validate`.

mod access;
mod agent;
mod command;
mod container;
mod coordinator;
mod disruption;
mod manifest;
mod metadata;
mod network;
mod placement;
mod pod;
mod pre_pull;
mod prover;
mod revision;
mod volumes;

use std::collections::BTreeMap;

use super::validate::{Image, ValidatedCluster};
pub use manifest::{Creation, Kind, Manifest};
pub use metadata::APPLIED_HASH_ANNOTATION;
pub use revision::{
    BACKEND_VERSION_ANNOTATION, IMAGE_ANNOTATION, SPECIFICATION_ANNOTATION, pin_coordinator, pin_worker,
};

/// What is known beside the ProverCluster: who builds, with which images, for which namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// Namespace of the operator, from which it connects to coordinators.
    pub operator_namespace: String,
    /// The operator's ServiceAccount.
    pub operator_account: String,
    /// Pull policy of coordinators and agents; that of Kubernetes where absent.
    pub pull_policy: Option<String>,
    /// Secrets with which both are fetched.
    pub pull_secrets: Vec<String>,
    /// Allowed namespaces, sorted.
    pub namespaces: Vec<String>,
}

/// Images that the ProverCluster may leave open, as they were decided for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    /// Of the coordinator.
    pub coordinator: Image,
    /// Of the agents, by group.
    pub workers: BTreeMap<String, Image>,
}

/// Everything that a ProverCluster is made of, in the order in which it is applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Resources {
    /// The objects.
    pub manifests: Vec<Manifest>,
    /// Name of the Deployment of each group's current revision.
    pub current: BTreeMap<String, String>,
}

/// Builds everything.
///
/// The order is that in which the parts need each other: a pod is refused while its ServiceAccount is missing, a
/// coordinator can do nothing without its Roles, policies must hold before the first pod runs, and workers have
/// nothing to connect to before the coordinator.
#[must_use]
pub fn build(cluster: &ValidatedCluster, surroundings: &Surroundings, pins: &Pins) -> Resources {
    let mut manifests = access::accounts(cluster);
    manifests.extend(access::roles(cluster, surroundings));
    manifests.push(coordinator::namespaces(cluster, surroundings));
    manifests.extend(coordinator::services(cluster));
    manifests.extend(network::policies(cluster, surroundings));
    manifests.extend(disruption::budgets(cluster));
    manifests.push(coordinator::deployment(cluster, surroundings, pins));
    let mut current = BTreeMap::new();
    for group in &cluster.groups {
        let image = pins.workers.get(&group.name).unwrap_or(&pins.coordinator);
        let worker = revision::deployment(cluster, group, surroundings, image);
        current.insert(group.name.clone(), worker.name.clone());
        manifests.push(worker);
    }
    for group in cluster.groups.iter().filter(|group| group.pre_pull) {
        let image = pins.workers.get(&group.name).unwrap_or(&pins.coordinator);
        manifests.push(pre_pull::daemon_set(cluster, group, surroundings, image));
    }
    Resources {
        manifests: manifests.into_iter().map(Manifest::sealed).collect(),
        current,
    }
}

impl Resources {
    /// Remembers at each worker Deployment the backend version that its workers told, by name of the Deployment. It
    /// stays there when the revision has become old and no worker is left to ask.
    #[must_use]
    pub fn remembering(mut self, versions: &BTreeMap<String, String>) -> Resources {
        for manifest in &mut self.manifests {
            let version = versions
                .get(&manifest.name)
                .filter(|_| manifest.creation == Creation::WithoutReplicas);
            if let Some(version) = version {
                manifest.annotate(BACKEND_VERSION_ANNOTATION, version);
            }
        }
        self
    }
}

#[cfg(test)]
mod tests;
