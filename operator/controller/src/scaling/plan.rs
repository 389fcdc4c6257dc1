//! How many workers there shall be, and which go: pure decisions.
//!
//! Up at once, down only after fewer have been enough for a whole cooldown, and never with anything that works: a worker
//! is first told to take nothing new, and its pod goes once it is empty.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::model::{
    ClusterDecision, ClusterFacts, DeploymentFacts, GroupFacts, KeepReason, Mode, Native, OldFate, PodFacts,
    ScaleDecision, ScaleReason, Work, count,
};

/// How long pods of a group may wait for a node until the next group gets the work.
pub const UNSCHEDULABLE_LIMIT_MS: u64 = 5 * 60 * 1_000;
/// How long a group whose pods found no node is left alone.
pub const CAP_DURATION_MS: u64 = 15 * 60 * 1_000;
/// Seconds of work that one device of a group counts for whose number of workers is not ours to decide.
const OTHERS_TARGET_SECONDS: u32 = 300;
/// Most numbers that are remembered of a group; older ones are merged by taking the larger.
const LONGEST_HISTORY: usize = 512;

/// What is remembered of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupHistory {
    /// How many workers were wanted when, oldest first.
    wanted: VecDeque<(u64, u32)>,
    /// Until when it is capped, and at how many workers.
    cap: Option<(u64, u32)>,
}

/// What is remembered of the groups of a ProverCluster, by name.
pub type History = BTreeMap<String, GroupHistory>;

impl GroupHistory {
    /// Remembers what is wanted now, and answers how many were wanted at most during the last `cooldown_ms`; none while
    /// it has not been watched for as long.
    fn most_wanted(&mut self, wanted: u32, cooldown_ms: u64, now_ms: u64) -> Option<u32> {
        let begin = now_ms.saturating_sub(cooldown_ms);
        // The last one before the window tells what was wanted at its begin.
        while self.wanted.len() > 1 && self.wanted[1].0 <= begin {
            self.wanted.pop_front();
        }
        if self.wanted.back().is_none_or(|(_, last)| *last != wanted) {
            self.wanted.push_back((now_ms, wanted));
        }
        let oldest = if self.wanted.len() > LONGEST_HISTORY {
            self.wanted.pop_front()
        } else {
            None
        };
        if let (Some((time, oldest)), Some(next)) = (oldest, self.wanted.front_mut()) {
            *next = (time, next.1.max(oldest));
        }
        let covered = self.wanted.front().is_some_and(|(time, _)| *time <= begin);
        covered.then(|| {
            self.wanted
                .iter()
                .map(|(_, wanted)| *wanted)
                .max()
                .unwrap_or(wanted)
        })
    }
}

/// What a group shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    to: u32,
    reason: ScaleReason,
}

/// Decides upon all Deployments of a cluster.
#[must_use]
pub fn plan_cluster(facts: &ClusterFacts, history: &mut History, now_ms: u64) -> ClusterDecision {
    history.retain(|name, _| facts.groups.iter().any(|group| group.name == *name));
    let wanted = wanted_by_work(facts, history, now_ms);
    let mut decision = ClusterDecision::default();
    let mut order: Vec<usize> = (0..facts.groups.len()).collect();
    order.sort_by_key(|index| (facts.groups[*index].order, *index));
    let mut granted: BTreeMap<usize, u32> = BTreeMap::new();
    for index in order {
        let group = &facts.groups[index];
        let Some(deployment) = &group.deployment else {
            continue;
        };
        let room = room(facts, &granted, index);
        let (decided, leaving) = decide_group(facts, group, deployment, wanted[index], history, room, now_ms);
        let reached = match &decided {
            ScaleDecision::Up { to, .. } => *to,
            _ => deployment.replicas,
        };
        granted.insert(index, reached);
        decision.leaving.extend(leaving);
        decision.deployments.push((deployment.name.clone(), decided));
    }
    let mut raised: u32 = 0;
    for old in &facts.old {
        let keep = |reason| (ScaleDecision::Keep { reason }, kept_leaving(&old.deployment));
        let (decided, leaving) = match old.fate {
            OldFate::Leaves => shrink(&old.deployment, 0, ScaleReason::OldRevision, true, facts.fresh),
            OldFate::Needed if old.deployment.replicas == 0 => {
                // One worker finishes what is pinned to it; nothing new ever comes to an old revision.
                let wanted = raised.saturating_add(old.devices);
                if room(facts, &granted, usize::MAX).is_none_or(|room| room >= wanted) {
                    raised = wanted;
                    let up = ScaleDecision::Up {
                        to: 1,
                        reason: ScaleReason::PinnedJob,
                    };
                    (up, kept_leaving(&old.deployment))
                } else {
                    keep(KeepReason::MaxDevices)
                }
            }
            OldFate::Needed | OldFate::Spare | OldFate::Unknown => keep(KeepReason::Needed),
        };
        decision.leaving.extend(leaving);
        decision.deployments.push((old.deployment.name.clone(), decided));
    }
    decision
}

/// Devices that a group may have at most besides those of all others; none where there is no limit. An `own` that is no
/// group asks what is left beside all of them.
fn room(facts: &ClusterFacts, granted: &BTreeMap<usize, u32>, own: usize) -> Option<u32> {
    let limit = facts.max_devices?;
    let groups = facts
        .groups
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != own)
        .map(|(index, group)| {
            let capacity = group.deployment.as_ref().map_or(0, DeploymentFacts::capacity);
            capacity
                .max(granted.get(&index).copied().unwrap_or(0))
                .saturating_mul(group.devices)
        });
    let old = facts
        .old
        .iter()
        .map(|old| old.deployment.capacity().saturating_mul(old.devices));
    Some(limit.saturating_sub(groups.chain(old).fold(0, u32::saturating_add)))
}

fn decide_group(
    facts: &ClusterFacts,
    group: &GroupFacts,
    deployment: &DeploymentFacts,
    wanted: Option<Target>,
    history: &mut History,
    room: Option<u32>,
    now_ms: u64,
) -> (ScaleDecision, BTreeSet<String>) {
    let keep = |reason| (ScaleDecision::Keep { reason }, kept_leaving(deployment));
    match group.mode {
        Mode::Foreign(_) => keep(KeepReason::OwnedByOther),
        Mode::Fixed(to) => {
            if to > deployment.replicas {
                return (
                    ScaleDecision::Up {
                        to,
                        reason: ScaleReason::Fixed,
                    },
                    kept_leaving(deployment),
                );
            }
            shrink(deployment, to, ScaleReason::Fixed, true, facts.fresh)
        }
        Mode::Native(native) => {
            let Some(target) = wanted else {
                return grow_to_minimum(deployment, native, room, group.devices);
            };
            decide_native(facts, group, deployment, (native, target), history, room, now_ms)
        }
    }
}

/// Without news of the coordinator only the minimum is certain.
fn grow_to_minimum(
    deployment: &DeploymentFacts,
    native: Native,
    room: Option<u32>,
    devices: u32,
) -> (ScaleDecision, BTreeSet<String>) {
    let to = native.min.min(workers_in(room, devices));
    let decision = if to > deployment.replicas {
        ScaleDecision::Up {
            to,
            reason: ScaleReason::Bounds,
        }
    } else {
        ScaleDecision::Keep {
            reason: KeepReason::CoordinatorUnreachable,
        }
    };
    (decision, kept_leaving(deployment))
}

fn workers_in(room: Option<u32>, devices: u32) -> u32 {
    room.map_or(u32::MAX, |room| room / devices.max(1))
}

fn decide_native(
    facts: &ClusterFacts,
    group: &GroupFacts,
    deployment: &DeploymentFacts,
    (native, target): (Native, Target),
    history: &mut History,
    room: Option<u32>,
    now_ms: u64,
) -> (ScaleDecision, BTreeSet<String>) {
    let keep = |reason| (ScaleDecision::Keep { reason }, kept_leaving(deployment));
    let most =
        history
            .entry(group.name.clone())
            .or_default()
            .most_wanted(target.to, native.cooldown_ms, now_ms);
    if target.to > deployment.replicas {
        let allowed = target.to.min(workers_in(room, group.devices));
        if allowed <= deployment.replicas {
            return keep(KeepReason::MaxDevices);
        }
        // Workers that go still hold machines; but a job that nobody works on waits for no drain.
        let urgent = deployment.replicas < native.min || deployment.replicas == 0;
        if !urgent && deployment.capacity() >= allowed {
            return keep(KeepReason::WorkersTerminating);
        }
        return (
            ScaleDecision::Up {
                to: allowed,
                reason: target.reason,
            },
            kept_leaving(deployment),
        );
    }
    if target.to == deployment.replicas {
        return keep(KeepReason::AsWanted);
    }
    let to = if target.reason == ScaleReason::Unschedulable {
        Some(target.to)
    } else if deployment.replicas > native.max {
        Some(most.map_or(native.max, |most| most.min(native.max)))
    } else {
        most
    };
    match to {
        Some(to) if to < deployment.replicas => shrink(
            deployment,
            to,
            target.reason,
            deployment.replicas > native.max,
            facts.fresh,
        ),
        _ => keep(KeepReason::Cooldown),
    }
}

/// What each group shall have for its work: the cheapest groups of a backend first, the others what is left. None where
/// the coordinator tells nothing, or somebody else decides.
fn wanted_by_work(facts: &ClusterFacts, history: &mut History, now_ms: u64) -> Vec<Option<Target>> {
    let mut targets = vec![None; facts.groups.len()];
    let backends: BTreeSet<&str> = facts.groups.iter().map(|group| group.backend.as_str()).collect();
    for backend in backends {
        let mut groups: Vec<(usize, &GroupFacts)> = facts
            .groups
            .iter()
            .enumerate()
            .filter(|(_, group)| group.backend == backend)
            .collect();
        groups.sort_by_key(|(index, group)| (group.order, *index));
        let mut served = Served::default();
        for (position, (index, group)) in groups.iter().enumerate() {
            let (Some(work), true) = (group.work, facts.fresh) else {
                continue;
            };
            let deployment = group.deployment.clone().unwrap_or_default();
            let Mode::Native(native) = group.mode else {
                served.add(&work, deployment.replicas, group.devices, OTHERS_TARGET_SECONDS);
                continue;
            };
            let has_next = groups[position + 1..]
                .iter()
                .any(|(_, next)| matches!(next.mode, Mode::Native(_)));
            let cap = cap(
                history.entry(group.name.clone()).or_default(),
                &deployment,
                has_next,
                now_ms,
            );
            let target = target_of(native, &work, &served, &deployment, group.devices, cap);
            // What finds no node serves nothing.
            let serving = if cap.is_some() {
                deployment.assigned().min(target.to)
            } else {
                target.to
            };
            served.add(&work, serving, group.devices, native.target_seconds);
            targets[*index] = Some(target);
        }
    }
    targets
}

/// Work that cheaper groups of the same backend will have done.
#[derive(Clone, Copy, Debug, Default)]
struct Served {
    device_seconds: f64,
    tasks: u64,
    has_worker: bool,
}

impl Served {
    fn add(&mut self, work: &Work, workers: u32, devices: u32, target_seconds: u32) {
        let devices = u64::from(workers) * u64::from(devices);
        #[allow(clippy::cast_precision_loss, reason = "numbers of devices are far below 2^52")]
        let seconds = devices as f64 * f64::from(target_seconds);
        self.device_seconds += seconds.min(work.device_seconds);
        self.tasks = self.tasks.saturating_add(devices);
        self.has_worker |= workers > 0;
    }
}

/// At how many workers a group is held because no node is found for more; only where another group can take the work.
fn cap(history: &mut GroupHistory, deployment: &DeploymentFacts, has_next: bool, now_ms: u64) -> Option<u32> {
    history.cap = history.cap.filter(|(until, _)| *until > now_ms && has_next);
    let waits = deployment.unschedulable_since_ms();
    if has_next && waits.is_some_and(|since| now_ms.saturating_sub(since) >= UNSCHEDULABLE_LIMIT_MS) {
        let until = history
            .cap
            .map_or(now_ms.saturating_add(CAP_DURATION_MS), |(until, _)| until);
        history.cap = Some((until, deployment.assigned()));
    }
    history.cap.map(|(_, workers)| workers)
}

fn target_of(
    native: Native,
    work: &Work,
    served: &Served,
    deployment: &DeploymentFacts,
    devices: u32,
    cap: Option<u32>,
) -> Target {
    let seconds_left = (work.device_seconds - served.device_seconds).max(0.0);
    let tasks = work
        .waiting_tasks
        .saturating_add(work.running_tasks)
        .saturating_sub(served.tasks);
    let by_seconds = workers_for(seconds_left / f64::from(native.target_seconds.max(1)), devices);
    let by_tasks = u32::try_from(tasks.div_ceil(u64::from(devices.max(1)))).unwrap_or(u32::MAX);
    let for_work = by_seconds
        .min(by_tasks)
        .max(u32::from(tasks > 0 && (seconds_left > 0.0 || !served.has_worker)));
    let without_worker = work.jobs_without_worker > 0 && !served.has_worker;
    let needed = for_work.max(u32::from(without_worker));
    let held = needed.max(deployment.busy());
    let within = held.clamp(native.min, native.max.max(native.min));
    let reason = if within != held {
        ScaleReason::Bounds
    } else if without_worker && for_work == 0 {
        ScaleReason::JobWithoutWorker
    } else {
        ScaleReason::Work
    };
    match cap {
        Some(cap) if cap.max(native.min) < within => Target {
            to: cap.max(native.min).max(deployment.busy()),
            reason: ScaleReason::Unschedulable,
        },
        _ => Target { to: within, reason },
    }
}

fn workers_for(devices_wanted: f64, devices: u32) -> u32 {
    let workers = (devices_wanted / f64::from(devices.max(1))).ceil();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to the range before"
    )]
    let workers = workers.clamp(0.0, f64::from(u32::MAX)) as u32;
    workers
}

/// Workers whose pods are going, or are about to since replicas were lowered: they must not take work again.
fn kept_leaving(deployment: &DeploymentFacts) -> BTreeSet<String> {
    let shrinking = count(deployment.present()) > deployment.replicas;
    let going = deployment
        .pods
        .iter()
        .filter(|pod| pod.terminating || (shrinking && pod.marked));
    going.map(|pod| pod.name.clone()).collect()
}

/// Takes workers away until `to` are left. Busy ones are only asked to leave where `drain` says so.
fn shrink(
    deployment: &DeploymentFacts,
    to: u32,
    reason: ScaleReason,
    drain: bool,
    fresh: bool,
) -> (ScaleDecision, BTreeSet<String>) {
    let mut leaving = kept_leaving(deployment);
    let keep = |reason, leaving| (ScaleDecision::Keep { reason }, leaving);
    let excess = deployment.replicas.saturating_sub(to);
    if excess == 0 {
        return keep(KeepReason::AsWanted, leaving);
    }
    let present = count(deployment.present());
    if present > deployment.replicas {
        return keep(KeepReason::Settling, leaving);
    }
    // Replicas without a pod yet cost nothing to take back.
    let missing = (deployment.replicas - present).min(excess);
    let victims = victims(deployment, excess - missing, drain);
    let is_empty = |pod: &&&PodFacts| goes_freely(pod) || (fresh && is_out_of_work(pod));
    let ready: Vec<&&PodFacts> = victims.iter().filter(is_empty).collect();
    let removed = missing.saturating_add(count(ready.iter()));
    leaving.extend(
        victims
            .iter()
            .filter(|pod| pod.worker.is_some())
            .map(|pod| pod.name.clone()),
    );
    if removed > 0 && reaches_only(deployment, &ready) {
        let mut pods: Vec<String> = ready.iter().map(|pod| pod.name.clone()).collect();
        pods.sort();
        return (
            ScaleDecision::Down {
                to: deployment.replicas - removed,
                pods,
                reason,
            },
            leaving,
        );
    }
    if !fresh {
        return keep(KeepReason::CoordinatorUnreachable, kept_leaving(deployment));
    }
    let unmarked = |pod: &&&PodFacts| pod.worker.is_some_and(|worker| !worker.leaving);
    let pods: Vec<String> = victims
        .iter()
        .filter(unmarked)
        .map(|pod| pod.name.clone())
        .collect();
    if pods.is_empty() {
        return keep(KeepReason::Draining, leaving);
    }
    (ScaleDecision::MarkLeaving { pods, reason }, leaving)
}

/// It never began to work: no container of it runs.
fn goes_freely(pod: &PodFacts) -> bool {
    pod.node.is_none() && pod.worker.is_none()
}

/// It was told to take nothing new, and has nothing.
fn is_out_of_work(pod: &PodFacts) -> bool {
    pod.worker
        .is_none_or(|worker| worker.attempts == 0 && (worker.leaving || !worker.connected))
}

/// Where Kubernetes begins when it takes pods away, whatever they cost: pods without a node, then those that are not
/// ready.
fn rank(pod: &PodFacts) -> u8 {
    if pod.node.is_none() {
        0
    } else if !pod.ready {
        1
    } else {
        2
    }
}

/// Whether Kubernetes, asked to take away as many pods, can't take others than these.
fn reaches_only(deployment: &DeploymentFacts, ready: &[&&PodFacts]) -> bool {
    let last = ready.iter().map(|pod| rank(pod)).max();
    let earlier = |pod: &&PodFacts| last.is_some_and(|last| rank(pod) < last);
    deployment
        .present()
        .filter(earlier)
        .all(|pod| ready.iter().any(|victim| victim.name == pod.name))
}

/// The pods that go: those that Kubernetes would take first, then idle ones, so that whole nodes become empty, and only
/// where `drain` says so busy ones.
fn victims(deployment: &DeploymentFacts, number: u32, drain: bool) -> Vec<&PodFacts> {
    let mut per_node: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    for pod in deployment.present() {
        let (busy, all) = per_node
            .entry(pod.node.as_deref().unwrap_or_default())
            .or_default();
        *all += 1;
        *busy += u32::from(is_busy(pod));
    }
    let mut candidates: Vec<&PodFacts> = deployment
        .present()
        .filter(|pod| drain || rank(pod) < 2 || !is_busy(pod))
        .collect();
    candidates.sort_by_key(|pod| {
        let node = pod.node.as_deref().unwrap_or_default();
        let (busy, all) = per_node.get(node).copied().unwrap_or_default();
        // One that leaves already goes on leaving, else the choice would wander.
        let stays = !pod.worker.is_some_and(|worker| worker.leaving);
        (rank(pod), is_busy(pod), stays, busy, all, node, pod.name.as_str())
    });
    candidates.truncate(usize::try_from(number).unwrap_or(usize::MAX));
    candidates
}

fn is_busy(pod: &PodFacts) -> bool {
    pod.worker.is_some_and(|worker| worker.attempts > 0)
}
