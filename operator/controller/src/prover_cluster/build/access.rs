//! Who pods are and what they may do on the API server. Workers may do nothing there.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use prover_crds::names;

use super::metadata::{Labels, foreign, owned};
use super::{Kind, Manifest, Surroundings};
use crate::prover_cluster::validate::{Identity, ValidatedCluster};

/// ServiceAccounts of the coordinator and of the workers.
pub(super) fn accounts(cluster: &ValidatedCluster) -> Vec<Manifest> {
    let identity = &cluster.identity;
    let account = |name: String, annotations: Labels| {
        let mut metadata = owned(identity, name, Labels::new());
        metadata.annotations = (!annotations.is_empty()).then_some(annotations);
        let account = ServiceAccount {
            metadata,
            // Only pods that say so get a token for the API server.
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        };
        Manifest::new(Kind::ServiceAccount, &account)
    };
    let coordinator = cluster.coordinator.pod.service_account_annotations.clone();
    let workers = cluster
        .groups
        .iter()
        .flat_map(|group| group.pod.service_account_annotations.clone())
        .collect();
    vec![
        account(names::coordinator_name(&identity.name), coordinator),
        account(names::worker_account(&identity.name), workers),
    ]
}

/// What the coordinator may do: in its own namespace, and in each allowed one.
pub(super) fn roles(cluster: &ValidatedCluster, surroundings: &Surroundings) -> Vec<Manifest> {
    let identity = &cluster.identity;
    let own = |name| owned(identity, name, Labels::new());
    let mut manifests = granted(
        identity,
        &own(names::coordinator_name(&identity.name)),
        own_rules(identity),
    );
    for namespace in &surroundings.namespaces {
        let name = names::tenant_role(&identity.namespace, &identity.name);
        let metadata = if *namespace == identity.namespace {
            own(name)
        } else {
            foreign(identity, namespace.clone(), name)
        };
        manifests.extend(granted(identity, &metadata, tenant_rules()));
    }
    manifests
}

fn granted(identity: &Identity, metadata: &ObjectMeta, rules: Vec<PolicyRule>) -> Vec<Manifest> {
    let role = Role {
        metadata: metadata.clone(),
        rules: Some(rules),
    };
    let binding = RoleBinding {
        metadata: metadata.clone(),
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".to_owned(),
            kind: "Role".to_owned(),
            name: metadata.name.clone().unwrap_or_default(),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: names::coordinator_name(&identity.name),
            namespace: Some(identity.namespace.clone()),
            api_group: None,
        }]),
    };
    vec![
        Manifest::new(Kind::Role, &role),
        Manifest::new(Kind::RoleBinding, &binding),
    ]
}

/// In the namespace of the cluster: its own ProverCluster, its list of namespaces, its pods, at whose own one it says that
/// it leads, and its Lease. No rule can name a pod or a Lease that does not exist yet.
fn own_rules(identity: &Identity) -> Vec<PolicyRule> {
    vec![
        rule(
            "proving.rs",
            &["proverclusters"],
            &["get", "list", "watch"],
            Some(&identity.name),
        ),
        rule(
            "",
            &["configmaps"],
            &["get", "list", "watch"],
            Some(&names::namespaces_config(&identity.name)),
        ),
        rule("", &["pods"], &["get", "list", "watch", "patch"], None),
        rule("coordination.k8s.io", &["leases"], &["create"], None),
        rule(
            "coordination.k8s.io",
            &["leases"],
            &["get", "update"],
            Some(&names::coordinator_name(&identity.name)),
        ),
        rule("events.k8s.io", &["events"], &["create", "patch"], None),
    ]
}

/// In an allowed namespace: jobs, their status, events about them, and single sources, which are never listed.
fn tenant_rules() -> Vec<PolicyRule> {
    vec![
        rule("proving.rs", &["proofjobs"], &["get", "list", "watch"], None),
        rule("proving.rs", &["proofjobs/status"], &["patch"], None),
        rule("events.k8s.io", &["events"], &["create", "patch"], None),
        rule("", &["configmaps", "secrets"], &["get"], None),
    ]
}

fn rule(group: &str, resources: &[&str], verbs: &[&str], name: Option<&str>) -> PolicyRule {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    PolicyRule {
        api_groups: Some(vec![group.to_owned()]),
        resources: Some(owned(resources)),
        verbs: owned(verbs),
        resource_names: name.map(|name| vec![name.to_owned()]),
        non_resource_urls: None,
    }
}
