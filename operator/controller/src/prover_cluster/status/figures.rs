//! Counts of workers and of work.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use prover_crds::{
    CoordinatorStatus, ProverCluster, ProverClusterStatus, QueueStatus, WithheldProof, WorkStatus,
    WorkerCounts, WorkerGroupStatus, names,
};
use prover_wire::operator_plane::{ClusterState, GroupProofs, WorkerState};

use super::Findings;
use super::troubles::{Trouble, Troubles};
use crate::prover_cluster::dereference::Dereferenced;

/// Longest message of a group, as the CRD bounds it.
const LONGEST_MESSAGE: usize = 1_000;

/// Most kinds of proof that are told of a group, as the CRD bounds it.
const KINDS: usize = 64;

/// Everything but the conditions.
pub(super) fn compute(
    cluster: &ProverCluster,
    found: &Dereferenced,
    findings: &Findings,
    troubles: &Troubles,
) -> ProverClusterStatus {
    let state = found.state.as_deref();
    let groups: Vec<WorkerGroupStatus> = cluster
        .spec
        .worker_groups
        .iter()
        .map(|group| of_group(cluster, &group.name, found, findings, troubles))
        .collect();
    ProverClusterStatus {
        workers: Some(total(found, state)),
        groups,
        queue: state.map(queue),
        coordinator: Some(coordinator(found, state)),
        ..ProverClusterStatus::default()
    }
}

/// What of the figures is told at once: who runs and why not, but not how much there is to do.
pub(super) fn essence(status: &ProverClusterStatus) -> impl PartialEq + use<> {
    let what = |proof: &WithheldProof| (proof.system.clone(), proof.kind.clone(), proof.reason.clone());
    let of_group = |group: &WorkerGroupStatus| {
        (
            group.name.clone(),
            group.deployment.clone(),
            group.reason.clone(),
            group.workers.desired,
            group.proofs.clone(),
            group.withheld_proofs.iter().map(what).collect::<Vec<_>>(),
        )
    };
    (
        status.groups.iter().map(of_group).collect::<Vec<_>>(),
        status.workers.map(|workers| workers.desired),
    )
}

fn of_group(
    cluster: &ProverCluster,
    name: &str,
    found: &Dereferenced,
    findings: &Findings,
    troubles: &Troubles,
) -> WorkerGroupStatus {
    let deployments = found.worker_deployments(name);
    let of_it = |worker: &&WorkerState| worker.group == name;
    let workers: Vec<&WorkerState> = found
        .state
        .as_deref()
        .map(|state| state.workers.iter().filter(of_it).collect())
        .unwrap_or_default();
    let usable = |worker: &&WorkerState| i64::from(worker.devices) - i64::from(worker.failed_devices);
    let connected: Vec<&WorkerState> = workers
        .iter()
        .copied()
        .filter(|worker| worker.connected)
        .collect();
    let counts = counts(&deployments, &workers);
    let trouble = troubles
        .groups
        .get(name)
        .filter(|_| counts.connected < counts.desired);
    let old = cluster
        .status
        .as_ref()
        .and_then(|status| status.groups.iter().find(|group| group.name == name));
    let mut told = found.state.as_deref().into_iter().flat_map(|state| &state.proofs);
    let proofs = told.find(|told| told.group == name);
    WorkerGroupStatus {
        name: name.to_owned(),
        workers: counts,
        usable_devices: connected.iter().map(usable).map(|devices| devices.max(0)).sum(),
        failed_devices: connected
            .iter()
            .map(|worker| i64::from(worker.failed_devices))
            .sum(),
        // A specification that can't be built leaves everything as it is.
        deployment: match &findings.invalid {
            Some(_) => old.and_then(|group| group.deployment.clone()),
            None => findings
                .current
                .get(name)
                .cloned()
                .or_else(|| old.and_then(|group| group.deployment.clone())),
        },
        proofs: proofs
            .map(|told| told.offered.iter().take(KINDS).cloned().collect())
            .unwrap_or_default(),
        withheld_proofs: proofs.map(withheld).unwrap_or_default(),
        reason: trouble.map(|trouble| trouble.reason.to_owned()),
        message: trouble.map(Trouble::short_message),
    }
}

fn withheld(told: &GroupProofs) -> Vec<WithheldProof> {
    let withheld = told.withheld.iter().take(KINDS);
    let one = |told: &prover_wire::operator_plane::WithheldProof| WithheldProof {
        system: told.system.clone(),
        kind: told.kind.clone(),
        reason: told.reason.clone(),
        message: told.message.clone(),
        workers: i64::from(told.workers),
    };
    withheld.map(one).collect()
}

impl Trouble {
    /// As long as the CRD allows.
    fn short_message(&self) -> String {
        let end = (0..=self.message.len().min(LONGEST_MESSAGE))
            .rev()
            .find(|end| self.message.is_char_boundary(*end))
            .unwrap_or_default();
        self.message[..end].to_owned()
    }
}

/// All workers, those of groups that are gone too.
fn total(found: &Dereferenced, state: Option<&ClusterState>) -> WorkerCounts {
    let of_workers = |deployment: &&Arc<Deployment>| deployment.labels().contains_key(names::REVISION_LABEL);
    let deployments: Vec<&Arc<Deployment>> = found.deployments.iter().filter(of_workers).collect();
    let workers: Vec<&WorkerState> = state.into_iter().flat_map(|state| &state.workers).collect();
    counts(&deployments, &workers)
}

fn counts(deployments: &[&Arc<Deployment>], workers: &[&WorkerState]) -> WorkerCounts {
    let count = |wanted: &dyn Fn(&WorkerState) -> bool| {
        let pods: BTreeSet<&str> = workers
            .iter()
            .filter(|worker| wanted(worker))
            .map(|worker| worker.pod.as_str())
            .collect();
        i64::try_from(pods.len()).unwrap_or(i64::MAX)
    };
    let replicas = |deployment: &&Arc<Deployment>| {
        i64::from(
            deployment
                .spec
                .as_ref()
                .and_then(|spec| spec.replicas)
                .unwrap_or_default(),
        )
    };
    WorkerCounts {
        desired: deployments.iter().map(replicas).sum(),
        connected: count(&|worker| worker.connected),
        busy: count(&|worker| worker.connected && worker.attempts > 0),
        leaving: count(&|worker| worker.leaving),
    }
}

fn queue(state: &ClusterState) -> QueueStatus {
    let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    // Fractions and what is not a number would never stand still.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a float becomes an integer within its bounds"
    )]
    let seconds = |seconds: f64| seconds.max(0.0).ceil() as i64;
    QueueStatus {
        waiting_jobs: count(state.waiting_jobs),
        running_jobs: count(state.running_jobs),
        work: state
            .classes
            .iter()
            .map(|class| WorkStatus {
                device_class: class.device_class.clone(),
                waiting_tasks: count(class.waiting_tasks),
                running_tasks: count(class.running_tasks),
                waiting_device_seconds: seconds(class.waiting_device_seconds),
                running_device_seconds: seconds(class.running_device_seconds),
            })
            .collect(),
    }
}

fn coordinator(found: &Dereferenced, state: Option<&ClusterState>) -> CoordinatorStatus {
    let deployment = found.coordinator_deployment();
    let ready = deployment
        .and_then(|deployment| deployment.status.as_ref()?.ready_replicas)
        .unwrap_or_default();
    CoordinatorStatus {
        leader: found.leader().map(|pod| pod.name_any()),
        epoch: state
            .map(|state| i64::try_from(state.epoch).unwrap_or(i64::MAX))
            .unwrap_or_default(),
        ready_replicas: i64::from(ready),
    }
}
