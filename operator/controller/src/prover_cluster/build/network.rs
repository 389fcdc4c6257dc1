//! Who may connect to whom.
//!
//! A coordinator takes workers of its own cluster and the operator; metrics are open. Workers take nothing but
//! requests for metrics. What they connect to is left open, since neither the addresses of the store nor those of
//! job sources are known here, but for the address at which clouds hand out the identity of a node: it is closed
//! where the store's credentials come from a Secret, so that no identity is needed. The policy holds for a whole pod,
//! a prover of the user's own in it too.

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use prover_crds::names;

use super::metadata::{Labels, coordinator_selector, labels, matching, owned, worker_selector};
use super::{Kind, Manifest, Surroundings};
use crate::prover_cluster::validate::ValidatedCluster;

/// Label that every namespace carries by itself.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
const DNS_PORT: u16 = 53;
/// All addresses but the one at which clouds hand out the identity of a node.
const ADDRESSES: [(&str, &str); 2] = [("0.0.0.0/0", "169.254.169.254/32"), ("::/0", "fd00:ec2::254/128")];

/// One policy for the coordinator, one for all workers.
pub(super) fn policies(cluster: &ValidatedCluster, surroundings: &Surroundings) -> Vec<Manifest> {
    let identity = &cluster.identity;
    let peers = vec![
        NetworkPolicyPeer {
            pod_selector: Some(matching(worker_selector(identity))),
            ..NetworkPolicyPeer::default()
        },
        NetworkPolicyPeer {
            namespace_selector: Some(matching(labels([(
                NAMESPACE_NAME,
                surroundings.operator_namespace.as_str(),
            )]))),
            ..NetworkPolicyPeer::default()
        },
    ];
    let sessions = NetworkPolicyIngressRule {
        from: Some(peers),
        ports: Some(vec![tcp(names::COORDINATOR_PORT)]),
    };
    vec![
        policy(
            cluster,
            names::coordinator_name(&identity.name),
            coordinator_selector(identity),
            vec![sessions, metrics()],
        ),
        policy(
            cluster,
            names::worker_account(&identity.name),
            worker_selector(identity),
            vec![metrics()],
        ),
    ]
}

fn policy(
    cluster: &ValidatedCluster,
    name: String,
    pods: Labels,
    ingress: Vec<NetworkPolicyIngressRule>,
) -> Manifest {
    let closed = cluster.store.credentials.is_some();
    let mut types = vec!["Ingress".to_owned()];
    if closed {
        types.push("Egress".to_owned());
    }
    let policy = NetworkPolicy {
        metadata: owned(&cluster.identity, name, Labels::new()),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(matching(pods)),
            policy_types: Some(types),
            ingress: Some(ingress),
            egress: closed.then(all_but_the_nodes_identity),
        }),
    };
    Manifest::new(Kind::NetworkPolicy, &policy)
}

fn metrics() -> NetworkPolicyIngressRule {
    NetworkPolicyIngressRule {
        from: None,
        ports: Some(vec![tcp(names::METRICS_PORT)]),
    }
}

fn all_but_the_nodes_identity() -> Vec<NetworkPolicyEgressRule> {
    // Some clouds answer DNS at the very address that is closed otherwise.
    let dns = NetworkPolicyEgressRule {
        to: None,
        ports: Some(vec![port("UDP", DNS_PORT), tcp(DNS_PORT)]),
    };
    let mut peers = vec![NetworkPolicyPeer {
        // Some network plugins count no pod among addresses.
        namespace_selector: Some(LabelSelector::default()),
        ..NetworkPolicyPeer::default()
    }];
    peers.extend(ADDRESSES.map(|(all, but)| NetworkPolicyPeer {
        ip_block: Some(IPBlock {
            cidr: all.to_owned(),
            except: Some(vec![but.to_owned()]),
        }),
        ..NetworkPolicyPeer::default()
    }));
    vec![
        dns,
        NetworkPolicyEgressRule {
            to: Some(peers),
            ports: None,
        },
    ]
}

fn tcp(number: u16) -> NetworkPolicyPort {
    port("TCP", number)
}

fn port(protocol: &str, number: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(number))),
        protocol: Some(protocol.to_owned()),
        end_port: None,
    }
}
