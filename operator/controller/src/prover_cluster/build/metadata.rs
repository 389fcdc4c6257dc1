//! Names, labels, owners and hashes of what is made.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;
use prover_crds::{ProverCluster, names};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::prover_cluster::validate::Identity;

/// Annotation with the hash of what was applied.
pub const APPLIED_HASH_ANNOTATION: &str = "proving.rs/applied-hash";

/// Labels.
pub(super) type Labels = BTreeMap<String, String>;

/// Hash of JSON whose objects are sorted by key, as hexadecimal digits.
pub(in crate::prover_cluster) fn hash(value: &Value, digits: usize) -> String {
    let mut text = hex::encode(Sha256::digest(value.to_string().as_bytes()));
    text.truncate(digits);
    text
}

/// Labels of whatever is made for a cluster.
pub(super) fn cluster_labels(identity: &Identity) -> Labels {
    labels([
        (names::NAME_LABEL, names::PROJECT),
        (names::MANAGED_BY_LABEL, names::PROJECT),
        (names::CLUSTER_LABEL, &identity.name),
        (names::CLUSTER_NAMESPACE_LABEL, &identity.namespace),
    ])
}

/// Labels by which the pods of a coordinator are found.
pub(super) fn coordinator_selector(identity: &Identity) -> Labels {
    labels([
        (names::CLUSTER_LABEL, identity.name.as_str()),
        (names::COMPONENT_LABEL, names::COORDINATOR),
    ])
}

/// Labels by which the pods of all workers are found.
pub(super) fn worker_selector(identity: &Identity) -> Labels {
    labels([
        (names::CLUSTER_LABEL, identity.name.as_str()),
        (names::COMPONENT_LABEL, names::WORKER),
    ])
}

/// Labels by which the pods of a group are found, whatever their revision.
pub(super) fn group_selector(identity: &Identity, group: &str) -> Labels {
    let mut labels = worker_selector(identity);
    labels.insert(names::GROUP_LABEL.to_owned(), group.to_owned());
    labels
}

/// Metadata of an object in the namespace of its cluster: it goes with the cluster.
pub(super) fn owned(identity: &Identity, name: String, more: Labels) -> ObjectMeta {
    let mut metadata = foreign(identity, identity.namespace.clone(), name);
    metadata.labels.get_or_insert_default().extend(more);
    metadata.owner_references = Some(vec![OwnerReference {
        api_version: ProverCluster::api_version(&()).into_owned(),
        kind: ProverCluster::kind(&()).into_owned(),
        name: identity.name.clone(),
        uid: identity.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }]);
    metadata
}

/// Metadata of an object in another namespace, which the operator deletes when the cluster goes.
pub(super) fn foreign(identity: &Identity, namespace: String, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(namespace),
        labels: Some(cluster_labels(identity)),
        ..ObjectMeta::default()
    }
}

/// A selector of all these labels.
pub(super) fn matching(labels: Labels) -> LabelSelector {
    LabelSelector {
        match_labels: Some(labels),
        match_expressions: None,
    }
}

pub(super) fn labels<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Labels {
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}
