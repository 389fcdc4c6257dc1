//! Names that the operator, coordinators and workers share: labels, ports, mounted files, audiences of tokens.
//!
//! Owns the words, so that what one process makes is what the other looks for. Does not own what is made.

use crate::ProverCluster;
use kube::ResourceExt;

/// Field manager of everything that the operator applies.
pub const OPERATOR_MANAGER: &str = "prover-operator";
/// Field manager of the replicas that native scaling writes through `/scale`.
pub const SCALER_MANAGER: &str = "prover-scaler";
/// Field manager of what a coordinator applies: the status of ProofJobs.
pub const COORDINATOR_MANAGER: &str = "prover-coordinator";

/// Finalizer of ProofJobs: artifacts are collected before the object goes.
pub const JOB_FINALIZER: &str = "proving.rs/artifacts";
/// Finalizer of ProverClusters: unfinished jobs are waited for.
pub const CLUSTER_FINALIZER: &str = "proving.rs/jobs";
/// Annotation of a ProverCluster that fails its unfinished jobs instead of waiting for them.
pub const FORCE_DELETE_ANNOTATION: &str = "proving.rs/force-delete";
/// Annotation of a ProverCluster: `paused` changes nothing, `dry-run` asks the API server without changing.
pub const APPLY_ANNOTATION: &str = "proving.rs/apply";
/// Annotation of a ProofJob that lets its time to live delete it although GitOps tracks it.
pub const TTL_DESPITE_GITOPS_ANNOTATION: &str = "proving.rs/ttl-despite-gitops";
/// Label of Secrets and ConfigMaps that sources may be read from.
pub const READABLE_LABEL: &str = "proving.rs/readable-by-proofjobs";

/// Label with the name of the ProverCluster.
pub const CLUSTER_LABEL: &str = "proving.rs/cluster";
/// Label with the namespace of the ProverCluster, on objects that lie in another namespace.
pub const CLUSTER_NAMESPACE_LABEL: &str = "proving.rs/cluster-namespace";
/// Label of workers and their Deployments with the name of the worker group.
pub const GROUP_LABEL: &str = "proving.rs/worker-group";
/// Label of workers and their Deployments with the revision of the pod template.
pub const REVISION_LABEL: &str = "proving.rs/revision";
/// Label that is [`LEADER`] on the coordinator that leads, and [`FOLLOWER`] on the others.
pub const ROLE_LABEL: &str = "proving.rs/role";
/// See [`ROLE_LABEL`].
pub const LEADER: &str = "leader";
/// See [`ROLE_LABEL`].
pub const FOLLOWER: &str = "follower";
/// Annotation of a coordinator's pod that can't use the artifact store and so can't begin: a reason of conditions, a
/// colon, and the words for people.
pub const STORE_TROUBLE_ANNOTATION: &str = "proving.rs/store-trouble";
/// Standard label: what the object is a part of.
pub const NAME_LABEL: &str = "app.kubernetes.io/name";
/// Standard label: which part.
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
/// Standard label: who made it.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Value of [`NAME_LABEL`] and [`MANAGED_BY_LABEL`].
pub const PROJECT: &str = "prover-operator";
/// Value of [`COMPONENT_LABEL`] of coordinators.
pub const COORDINATOR: &str = "coordinator";
/// Value of [`COMPONENT_LABEL`] of workers.
pub const WORKER: &str = "worker";

/// Port on which a coordinator takes workers and the operator (gRPC over TLS).
pub const COORDINATOR_PORT: u16 = 7000;
/// Port of `/metrics`, `/healthz` and `/readyz` of every process.
pub const METRICS_PORT: u16 = 9090;
/// Name that a coordinator's certificate is made out to, whatever its address.
pub const COORDINATOR_SERVER_NAME: &str = "coordinator.proving.rs";

/// Folder of `tls.crt` and `tls.key` in a coordinator's container.
pub const TLS_DIRECTORY: &str = "/etc/prover/tls";
/// Folder of `ca.crt` in an agent's container.
pub const CA_DIRECTORY: &str = "/etc/prover/ca";
/// Folder of the projected token (`token`) in an agent's container.
pub const TOKEN_DIRECTORY: &str = "/var/run/secrets/proving.rs";
/// Folder of the supervisor and the command backend, put there by an init container.
pub const TOOLS_DIRECTORY: &str = "/prover/bin";
/// Folder of the sockets between agent and backends: `<slot>.sock`.
pub const SOCKET_DIRECTORY: &str = "/prover/run";
/// Folder of attempts' files, a tmpfs that agent and backends share at the same path.
pub const WORK_DIRECTORY: &str = "/prover/work";
/// Folder of the cache volume of a worker group.
pub const CACHE_DIRECTORY: &str = "/prover/cache";
/// User and group of every process that needs no other.
pub const USER_ID: i64 = 65_532;
/// Name of the agent's container; those of backends are `backend-<slot>`.
pub const AGENT_CONTAINER: &str = "agent";

/// Audience of the tokens with which the workers of a cluster sign in.
pub fn worker_audience(namespace: &str, cluster: &str) -> String {
    format!("proving.rs/workers/{namespace}/{cluster}")
}

/// Audience of the token with which the operator signs in to the coordinator of a cluster.
pub fn operator_audience(namespace: &str, cluster: &str) -> String {
    format!("proving.rs/operator/{namespace}/{cluster}")
}

/// Name of the Deployment, the Service, the ServiceAccount and the Role of a cluster's coordinator.
pub fn coordinator_name(cluster: &str) -> String {
    format!("{cluster}-coordinator")
}

/// Name of the Service that selects the coordinator that leads.
pub fn leader_service(cluster: &str) -> String {
    format!("{cluster}-coordinator-leader")
}

/// Name of the ServiceAccount of a cluster's workers.
pub fn worker_account(cluster: &str) -> String {
    format!("{cluster}-worker")
}

/// Name of the Secret with the coordinator's certificate (`tls.crt`, `tls.key`).
pub fn tls_secret(cluster: &str) -> String {
    format!("{cluster}-coordinator-tls")
}

/// Name of the ConfigMap with the bundle of authorities (`ca.crt`).
pub fn ca_bundle(cluster: &str) -> String {
    format!("{cluster}-ca")
}

/// Name of the ConfigMap in which the operator lists the allowed namespaces for the coordinator: key
/// [`NAMESPACES_KEY`], one per line.
pub fn namespaces_config(cluster: &str) -> String {
    format!("{cluster}-namespaces")
}

/// See [`namespaces_config`].
pub const NAMESPACES_KEY: &str = "namespaces";

/// Name of the slot of a device; the planner's is [`CONTROL_SLOT`]. Socket and container are named after it.
pub fn device_slot(class: &str, index: usize) -> String {
    format!("{class}-{index}")
}

/// Name of the container of a slot's backend.
pub fn backend_container(slot: &str) -> String {
    format!("backend-{slot}")
}

/// Slot of planners and other parents, which take no device.
pub const CONTROL_SLOT: &str = "control";

/// Longest name of a ProverCluster: names of Services are made from it, which have at most 63 characters.
pub const LONGEST_CLUSTER_NAME: usize = 40;

/// Address of a cluster's coordinator for workers and the operator.
pub fn coordinator_url(cluster: &ProverCluster) -> String {
    let namespace = cluster.namespace().unwrap_or_default();
    format!(
        "https://{}.{namespace}.svc:{COORDINATOR_PORT}",
        coordinator_name(&cluster.name_any())
    )
}

/// Name of the Role and the RoleBinding with which a cluster's coordinator looks after the jobs of an allowed
/// namespace. No two clusters share it, since names of namespaces and clusters have no colon.
pub fn tenant_role(namespace: &str, cluster: &str) -> String {
    format!("proving.rs:{namespace}:{cluster}")
}

/// Name of what a worker group has once, whatever its revision, such as its PodDisruptionBudget. No two groups share
/// it, since neither name has a dot.
pub fn worker_group_name(cluster: &str, group: &str) -> String {
    format!("{cluster}.{group}")
}

/// Name of the Deployment of one revision of a worker group.
pub fn worker_deployment(cluster: &str, group: &str, revision: &str) -> String {
    format!("{cluster}-{group}-{revision}")
}
