//! From what the API server and a coordinator tell to what scaling decides upon.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use prover_crds::{CapacityType, ProverCluster, ScalingMode, WorkerGroup, names};
use prover_wire::operator_plane::{ClusterState, GroupWork};

use super::model::{
    ClusterFacts, DeploymentFacts, GroupFacts, Mode, Native, OldFacts, OldFate, PodFacts, Work, Worker,
};
use crate::prover_cluster::revisions::{Retirement, WorkerRevision, revisions};
use crate::{Caches, ClusterKey};

/// Annotation by which Kubernetes chooses the pods that go: the lowest first.
pub(super) const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Cost of the pods that shall go; every other pod costs 0.
pub(super) const VICTIM_COST: &str = "-1000";
const DEFAULT_TARGET_SECONDS: u32 = 300;
const DEFAULT_COOLDOWN_SECONDS: u64 = 300;

/// Everything that scaling of this cluster looks at. `state` is what its coordinator told, if that is recent.
pub(super) fn gather(
    cluster: &ProverCluster,
    key: &ClusterKey,
    caches: &Caches,
    state: Option<&ClusterState>,
) -> ClusterFacts {
    let deployments = caches
        .deployments
        .state_filter(|deployment| is_of(deployment, key));
    let pods = caches.pods.state_filter(|pod| is_of(pod, key));
    let current = current_deployments(cluster);
    let workers: BTreeMap<&str, Worker> = state
        .into_iter()
        .flat_map(|state| &state.workers)
        .map(|worker| {
            let known = Worker {
                connected: worker.connected,
                leaving: worker.leaving,
                attempts: worker.attempts,
            };
            (worker.pod.as_str(), known)
        })
        .collect();
    let facts_of = |name: &str| {
        let deployment = deployments
            .iter()
            .find(|deployment| deployment.name_any() == name)?;
        Some(deployment_facts(deployment, &pods, &workers))
    };
    let order = order(&cluster.spec.worker_groups);
    let group_facts = |(index, group): (usize, &WorkerGroup)| GroupFacts {
        name: group.name.clone(),
        backend: group.backend.clone(),
        mode: mode(group),
        devices: devices(group),
        order: order[index],
        deployment: current.get(&group.name).and_then(|name| facts_of(name)),
        work: state.map(|state| work(state.groups.iter().find(|work| work.group == group.name))),
    };
    let all = revisions(&deployments, &pods, state, &current);
    let replicas_of =
        |name: &str| facts_of(name).map_or(0, |deployment: DeploymentFacts| deployment.replicas);
    let fates = fates(&all, replicas_of);
    let old_facts = |revision: &WorkerRevision| {
        let group = cluster
            .spec
            .worker_groups
            .iter()
            .find(|group| group.name == revision.group);
        Some(OldFacts {
            devices: group.map_or(1, devices),
            deployment: facts_of(&revision.deployment)?,
            fate: fates[&revision.deployment],
        })
    };
    let limits = cluster.spec.limits.as_ref();
    ClusterFacts {
        groups: cluster
            .spec
            .worker_groups
            .iter()
            .enumerate()
            .map(group_facts)
            .collect(),
        old: all
            .iter()
            .filter(|revision| !revision.is_current())
            .filter_map(old_facts)
            .collect(),
        max_devices: limits
            .and_then(|limits| limits.max_devices)
            .and_then(|devices| u32::try_from(devices).ok()),
        fresh: state.is_some(),
    }
}

/// What becomes of each old revision, by its Deployment. Of several with a version that is needed only one is given a
/// worker: one that has some, else the first.
fn fates(all: &[WorkerRevision], replicas_of: impl Fn(&str) -> u32) -> BTreeMap<String, OldFate> {
    let old = || {
        all.iter()
            .filter_map(|revision| Some((revision, revision.retirement.as_ref()?)))
    };
    let mut chosen: BTreeMap<&str, &WorkerRevision> = BTreeMap::new();
    for (revision, retirement) in old() {
        let Retirement::Pinned { version } = retirement else {
            continue;
        };
        let present = chosen.entry(version).or_insert(revision);
        if replicas_of(&present.deployment) == 0 && replicas_of(&revision.deployment) > 0 {
            *present = revision;
        }
    }
    let fate = |revision: &WorkerRevision, retirement: &Retirement| match retirement {
        Retirement::Unknown => OldFate::Unknown,
        Retirement::Leave | Retirement::Delete => OldFate::Leaves,
        Retirement::Pinned { version } if chosen[version.as_str()] == revision => OldFate::Needed,
        Retirement::Pinned { .. } => OldFate::Spare,
    };
    old()
        .map(|(revision, retirement)| (revision.deployment.clone(), fate(revision, retirement)))
        .collect()
}

/// The Deployment of the current revision of each group.
fn current_deployments(cluster: &ProverCluster) -> BTreeMap<String, String> {
    let groups = cluster.status.iter().flat_map(|status| &status.groups);
    groups
        .filter_map(|group| Some((group.name.clone(), group.deployment.clone()?)))
        .collect()
}

fn is_of<K: kube::Resource>(object: &K, key: &ClusterKey) -> bool {
    object.namespace().as_deref() == Some(key.namespace.as_str())
        && object.labels().get(names::CLUSTER_LABEL) == Some(&key.name)
        && object
            .labels()
            .get(names::COMPONENT_LABEL)
            .is_some_and(|component| component == names::WORKER)
}

fn unsigned(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

fn mode(group: &WorkerGroup) -> Mode {
    let Some(scaling) = &group.scaling else {
        return Mode::Fixed(group.replicas.map_or(1, unsigned));
    };
    match scaling.mode {
        ScalingMode::Hpa => Mode::Foreign("HPA"),
        ScalingMode::Keda => Mode::Foreign("KEDA"),
        ScalingMode::Native => Mode::Native(Native {
            min: scaling.min_replicas.map_or(0, unsigned),
            max: unsigned(scaling.max_replicas),
            target_seconds: scaling
                .target_seconds
                .map_or(DEFAULT_TARGET_SECONDS, unsigned)
                .max(1),
            cooldown_ms: scaling
                .cooldown_seconds
                .and_then(|seconds| u64::try_from(seconds).ok())
                .unwrap_or(DEFAULT_COOLDOWN_SECONDS)
                .saturating_mul(1_000),
        }),
    }
}

fn devices(group: &WorkerGroup) -> u32 {
    let gpus = group.device.gpu.as_ref().map(|gpu| gpu.count);
    let cores = group.device.cpu.as_ref().map(|cpu| cpu.count);
    gpus.or(cores).flatten().map_or(1, unsigned).max(1)
}

/// Positions of groups: the cheapest first, unknown prices last, spot machines before others of equal price.
fn order(groups: &[WorkerGroup]) -> Vec<u32> {
    let rank = |index: usize| {
        let group = &groups[index];
        let price = group
            .cost
            .as_ref()
            .and_then(|price| millionths(&price.per_hour))
            .unwrap_or(u64::MAX);
        let per_device = price / u64::from(devices(group));
        (per_device, group.capacity_type != CapacityType::Spot, index)
    };
    let mut sorted: Vec<usize> = (0..groups.len()).collect();
    sorted.sort_by_key(|index| rank(*index));
    let position = |index: usize| sorted.iter().position(|other| *other == index).unwrap_or(index);
    (0..groups.len())
        .map(|index| u32::try_from(position(index)).unwrap_or(u32::MAX))
        .collect()
}

/// A decimal number with at most six digits after its point, in millionths.
fn millionths(decimal: &str) -> Option<u64> {
    let (whole, fraction) = decimal.split_once('.').unwrap_or((decimal, ""));
    let fraction: u64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(1_000_000)?
        .checked_add(fraction)
}

fn work(work: Option<&GroupWork>) -> Work {
    let Some(work) = work else { return Work::default() };
    let seconds = work.waiting_device_seconds + work.running_device_seconds;
    Work {
        waiting_tasks: work.waiting_tasks,
        running_tasks: work.running_tasks,
        // What is no number says nothing.
        device_seconds: if seconds.is_finite() {
            seconds.max(0.0)
        } else {
            0.0
        },
        jobs_without_worker: work.jobs_without_worker,
    }
}

fn deployment_facts(
    deployment: &Deployment,
    pods: &[Arc<Pod>],
    workers: &BTreeMap<&str, Worker>,
) -> DeploymentFacts {
    let same = |pod: &&Arc<Pod>| {
        [names::GROUP_LABEL, names::REVISION_LABEL]
            .iter()
            .all(|label| pod.labels().get(*label) == deployment.labels().get(*label))
    };
    let replicas = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    let mut pods: Vec<PodFacts> = pods
        .iter()
        .filter(same)
        .filter(|pod| !has_ended(pod))
        .map(|pod| pod_facts(pod, workers))
        .collect();
    pods.sort_by(|one, other| one.name.cmp(&other.name));
    DeploymentFacts {
        name: deployment.name_any(),
        replicas: unsigned(replicas),
        pods,
    }
}

/// Evicted pods stay as a record; they are no workers any more.
fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

fn pod_facts(pod: &Pod, workers: &BTreeMap<&str, Worker>) -> PodFacts {
    let name = pod.name_any();
    let conditions = pod
        .status
        .iter()
        .filter_map(|status| status.conditions.as_ref())
        .flatten();
    let mut ready = false;
    let mut unschedulable_since_ms = None;
    for condition in conditions {
        match (condition.type_.as_str(), condition.status.as_str()) {
            ("Ready", "True") => ready = true,
            ("PodScheduled", "False") => {
                let since = condition
                    .last_transition_time
                    .as_ref()
                    .map(|Time(time)| time.as_millisecond());
                unschedulable_since_ms = since.and_then(|since| u64::try_from(since).ok());
            }
            _ => {}
        }
    }
    PodFacts {
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        ready,
        unschedulable_since_ms,
        worker: workers.get(name.as_str()).copied(),
        marked: pod
            .annotations()
            .get(DELETION_COST)
            .is_some_and(|cost| cost == VICTIM_COST),
        name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_old(deployment: &str, retirement: Retirement) -> WorkerRevision {
        WorkerRevision {
            deployment: deployment.to_owned(),
            group: "gpu".to_owned(),
            revision: deployment.to_owned(),
            retirement: Some(retirement),
        }
    }

    #[test]
    fn of_several_old_revisions_with_a_version_that_is_needed_one_gets_a_worker() {
        let pinned = || Retirement::Pinned {
            version: "risc0 1".to_owned(),
        };
        let all = [
            mk_old("a", pinned()),
            mk_old("b", pinned()),
            mk_old("c", pinned()),
            mk_old("d", Retirement::Leave),
            mk_old("e", Retirement::Unknown),
        ];
        let none_has_workers = fates(&all, |_| 0);
        assert_eq!(none_has_workers["a"], OldFate::Needed);
        assert_eq!(none_has_workers["b"], OldFate::Spare);
        let b_has_workers = fates(&all, |name| u32::from(name == "b"));
        assert_eq!(
            ["a", "b", "c", "d", "e"].map(|name| b_has_workers[name]),
            [
                OldFate::Spare,
                OldFate::Needed,
                OldFate::Spare,
                OldFate::Leaves,
                OldFate::Unknown
            ]
        );
    }
}
