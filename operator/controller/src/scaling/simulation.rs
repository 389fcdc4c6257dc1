//! Hours of a cluster in seconds: random work, a coordinator and a Kubernetes that behave as the real ones, and rules that
//! must hold at every moment.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::model::{
    ClusterDecision, ClusterFacts, DeploymentFacts, GroupFacts, KeepReason, Mode, Native, OldFacts, OldFate,
    PodFacts, ScaleDecision, ScaleReason, Work, Worker,
};
use super::plan::{CAP_DURATION_MS, History, UNSCHEDULABLE_LIMIT_MS, plan_cluster};

const NATIVE: Native = Native {
    min: 0,
    max: 10,
    target_seconds: 60,
    cooldown_ms: 120_000,
};
const STEP_MS: u64 = 1_000;

fn mk_pod(name: &str, attempts: u32) -> PodFacts {
    PodFacts {
        name: name.to_owned(),
        node: Some("node".to_owned()),
        ready: true,
        worker: Some(Worker {
            connected: true,
            leaving: false,
            attempts,
        }),
        ..PodFacts::default()
    }
}

fn mk_group(mode: Mode, replicas: u32, pods: Vec<PodFacts>) -> GroupFacts {
    GroupFacts {
        name: "gpus".to_owned(),
        backend: "risc0".to_owned(),
        mode,
        devices: 1,
        order: 0,
        deployment: Some(DeploymentFacts {
            name: "gpus-1".to_owned(),
            replicas,
            pods,
        }),
        work: Some(Work::default()),
    }
}

fn mk_cluster(group: GroupFacts) -> ClusterFacts {
    ClusterFacts {
        groups: vec![group],
        fresh: true,
        ..ClusterFacts::default()
    }
}

fn mk_work(tasks: u64, seconds: f64) -> Option<Work> {
    Some(Work {
        waiting_tasks: tasks,
        device_seconds: seconds,
        ..Work::default()
    })
}

fn decide(facts: &ClusterFacts) -> ScaleDecision {
    decide_at(facts, &mut History::new(), 1_000_000)
        .deployments
        .remove(0)
        .1
}

fn decide_at(facts: &ClusterFacts, history: &mut History, now_ms: u64) -> ClusterDecision {
    plan_cluster(facts, history, now_ms)
}

#[test]
fn a_fixed_number_is_reached_at_once_even_without_a_coordinator() {
    let mut facts = mk_cluster(mk_group(Mode::Fixed(3), 0, Vec::new()));
    facts.fresh = false;
    facts.groups[0].work = None;
    assert_eq!(
        decide(&facts),
        ScaleDecision::Up {
            to: 3,
            reason: ScaleReason::Fixed
        }
    );
}

#[test]
fn a_smaller_fixed_number_drains_workers_and_prefers_idle_ones() {
    let pods = vec![mk_pod("a", 1), mk_pod("b", 0), mk_pod("c", 2)];
    let facts = mk_cluster(mk_group(Mode::Fixed(1), 3, pods.clone()));
    let ScaleDecision::MarkLeaving { pods: leaving, .. } = decide(&facts) else {
        panic!("nobody is asked to leave")
    };
    assert_eq!(leaving, ["b", "a"]);
    let mut pods = pods;
    for pod in &mut pods[..2] {
        pod.worker.as_mut().unwrap().leaving = true;
    }
    let facts = mk_cluster(mk_group(Mode::Fixed(1), 3, pods));
    let down = ScaleDecision::Down {
        to: 2,
        pods: vec!["b".to_owned()],
        reason: ScaleReason::Fixed,
    };
    assert_eq!(decide(&facts), down);
}

#[test]
fn nothing_is_taken_away_while_the_coordinator_cannot_be_reached() {
    let mut facts = mk_cluster(mk_group(Mode::Fixed(0), 1, vec![mk_pod("a", 0)]));
    facts.fresh = false;
    assert_eq!(
        decide(&facts),
        ScaleDecision::Keep {
            reason: KeepReason::CoordinatorUnreachable
        }
    );
}

#[test]
fn the_first_job_buys_a_worker_at_once() {
    let mut group = mk_group(Mode::Native(NATIVE), 0, Vec::new());
    group.work = Some(Work {
        jobs_without_worker: 1,
        ..Work::default()
    });
    assert_eq!(
        decide(&mk_cluster(group)),
        ScaleDecision::Up {
            to: 1,
            reason: ScaleReason::JobWithoutWorker
        }
    );
}

#[test]
fn workers_are_as_many_as_the_work_needs_and_no_more_than_there_are_tasks() {
    for (tasks, seconds, wanted) in [(100, 300.0, 5), (3, 6_000.0, 3), (100, 60_000.0, 10), (1, 0.1, 1)] {
        let mut group = mk_group(Mode::Native(NATIVE), 0, Vec::new());
        group.work = mk_work(tasks, seconds);
        let ScaleDecision::Up { to, .. } = decide(&mk_cluster(group)) else {
            panic!("{tasks} tasks buy nothing")
        };
        assert_eq!(to, wanted, "{tasks} tasks of {seconds} s");
    }
}

#[test]
fn all_groups_together_stay_within_the_limit_of_devices() {
    let mut group = mk_group(Mode::Native(NATIVE), 1, vec![mk_pod("a", 1)]);
    group.devices = 2;
    group.work = mk_work(100, 60_000.0);
    let old = DeploymentFacts {
        name: "old".to_owned(),
        replicas: 1,
        pods: vec![mk_pod("o", 1)],
    };
    let mut facts = mk_cluster(group);
    facts.old = vec![OldFacts {
        devices: 1,
        deployment: old,
        fate: OldFate::Unknown,
    }];
    facts.max_devices = Some(6);
    assert_eq!(
        decide(&facts),
        ScaleDecision::Up {
            to: 2,
            reason: ScaleReason::Bounds
        }
    );
    facts.max_devices = Some(3);
    assert_eq!(
        decide(&facts),
        ScaleDecision::Keep {
            reason: KeepReason::MaxDevices
        }
    );
}

#[test]
fn the_cheaper_group_gets_the_work_and_the_next_what_is_left() {
    let mut cheap = mk_group(Mode::Native(Native { max: 2, ..NATIVE }), 0, Vec::new());
    cheap.work = mk_work(100, 300.0);
    let mut dear = cheap.clone();
    dear.name = "dear".to_owned();
    dear.order = 1;
    dear.mode = Mode::Native(NATIVE);
    dear.deployment = Some(DeploymentFacts {
        name: "dear-1".to_owned(),
        ..DeploymentFacts::default()
    });
    let facts = ClusterFacts {
        groups: vec![dear, cheap],
        fresh: true,
        ..ClusterFacts::default()
    };
    let decision = decide_at(&facts, &mut History::new(), 1);
    let to = |name: &str| {
        decision
            .deployments
            .iter()
            .find(|(deployment, _)| deployment == name)
            .map(|(_, it)| it.clone())
    };
    assert_eq!(
        to("gpus-1"),
        Some(ScaleDecision::Up {
            to: 2,
            reason: ScaleReason::Bounds
        })
    );
    assert_eq!(
        to("dear-1"),
        Some(ScaleDecision::Up {
            to: 3,
            reason: ScaleReason::Work
        })
    );
}

#[test]
fn a_group_that_finds_no_node_leaves_the_work_to_the_next_for_a_while() {
    let now_ms = 10_000_000;
    let waiting = PodFacts {
        name: "a".to_owned(),
        unschedulable_since_ms: Some(now_ms - UNSCHEDULABLE_LIMIT_MS),
        ..PodFacts::default()
    };
    let mut spot = mk_group(Mode::Native(NATIVE), 1, vec![waiting]);
    spot.work = mk_work(1, 10.0);
    let mut dear = spot.clone();
    dear.name = "dear".to_owned();
    dear.order = 1;
    dear.deployment = Some(DeploymentFacts {
        name: "dear-1".to_owned(),
        ..DeploymentFacts::default()
    });
    let mut facts = ClusterFacts {
        groups: vec![spot, dear],
        fresh: true,
        ..ClusterFacts::default()
    };
    let mut history = History::new();
    let decision = decide_at(&facts, &mut history, now_ms);
    let down = ScaleDecision::Down {
        to: 0,
        pods: vec!["a".to_owned()],
        reason: ScaleReason::Unschedulable,
    };
    assert_eq!(decision.deployments[0].1, down);
    assert!(matches!(
        decision.deployments[1].1,
        ScaleDecision::Up { to: 1, .. }
    ));
    // The pod is gone, yet the group is not tried again at once.
    facts.groups[0].deployment = Some(DeploymentFacts {
        name: "gpus-1".to_owned(),
        ..DeploymentFacts::default()
    });
    let decision = decide_at(&facts, &mut history, now_ms + CAP_DURATION_MS - 1);
    assert!(
        matches!(decision.deployments[0].1, ScaleDecision::Keep { .. }),
        "{decision:?}"
    );
    let decision = decide_at(&facts, &mut history, now_ms + CAP_DURATION_MS);
    assert!(
        matches!(decision.deployments[0].1, ScaleDecision::Up { to: 1, .. }),
        "{decision:?}"
    );
}

#[test]
fn replicas_of_others_and_of_needed_revisions_are_left_alone() {
    let mut group = mk_group(Mode::Foreign("KEDA"), 3, Vec::new());
    group.work = mk_work(100, 60_000.0);
    assert_eq!(
        decide(&mk_cluster(group)),
        ScaleDecision::Keep {
            reason: KeepReason::OwnedByOther
        }
    );
    let old = DeploymentFacts {
        name: "old".to_owned(),
        replicas: 1,
        pods: vec![mk_pod("o", 0)],
    };
    let facts = ClusterFacts {
        old: vec![OldFacts {
            devices: 1,
            deployment: old.clone(),
            fate: OldFate::Unknown,
        }],
        fresh: true,
        ..ClusterFacts::default()
    };
    assert_eq!(
        decide(&facts),
        ScaleDecision::Keep {
            reason: KeepReason::Needed
        }
    );
    let facts = ClusterFacts {
        old: vec![OldFacts {
            devices: 1,
            deployment: old,
            fate: OldFate::Leaves,
        }],
        ..facts
    };
    let asked = ScaleDecision::MarkLeaving {
        pods: vec!["o".to_owned()],
        reason: ScaleReason::OldRevision,
    };
    assert_eq!(decide(&facts), asked);
}

#[test]
fn a_revision_without_workers_that_a_job_is_pinned_to_gets_one() {
    let old = |name: &str| OldFacts {
        devices: 2,
        deployment: DeploymentFacts {
            name: name.to_owned(),
            ..DeploymentFacts::default()
        },
        fate: OldFate::Needed,
    };
    let mut facts = ClusterFacts {
        old: vec![old("one"), old("other")],
        fresh: true,
        ..ClusterFacts::default()
    };
    let up = ScaleDecision::Up {
        to: 1,
        reason: ScaleReason::PinnedJob,
    };
    let decided = |facts: &ClusterFacts| {
        let all = decide_at(facts, &mut History::new(), 1).deployments;
        all.into_iter().map(|(_, decision)| decision).collect::<Vec<_>>()
    };
    assert_eq!(decided(&facts), [up.clone(), up.clone()]);
    // The limit of devices holds for all of them together.
    facts.max_devices = Some(3);
    let keep = ScaleDecision::Keep {
        reason: KeepReason::MaxDevices,
    };
    assert_eq!(decided(&facts), [up, keep]);
    for old in &mut facts.old {
        old.fate = OldFate::Spare;
    }
    assert!(
        decided(&facts)
            .iter()
            .all(|decision| matches!(decision, ScaleDecision::Keep { .. }))
    );
}

#[test]
fn pods_that_kubernetes_would_take_first_are_waited_for_first() {
    // It is busy and not ready: lowering replicas now would take it and not the idle one.
    let mut sick = mk_pod("sick", 1);
    sick.ready = false;
    let mut idle = mk_pod("idle", 0);
    idle.worker.as_mut().unwrap().leaving = true;
    let facts = mk_cluster(mk_group(Mode::Fixed(1), 2, vec![sick, idle]));
    let asked = ScaleDecision::MarkLeaving {
        pods: vec!["sick".to_owned()],
        reason: ScaleReason::Fixed,
    };
    assert_eq!(decide(&facts), asked);
}

/// A coordinator, a Deployment and its pods.
struct World {
    now_ms: u64,
    replicas: u32,
    pods: Vec<SimulatedPod>,
    /// Remaining milliseconds of each task that waits.
    waiting: Vec<u64>,
    leaving: BTreeSet<String>,
    made: u32,
    history: History,
    changes: Vec<(u64, u32)>,
    native: Native,
    start_ms: u64,
}

struct SimulatedPod {
    facts: PodFacts,
    connects_at_ms: u64,
    gone_at_ms: Option<u64>,
    task_ms: Option<u64>,
}

impl World {
    fn new(native: Native, start_ms: u64) -> World {
        World {
            now_ms: 1_000_000,
            replicas: 0,
            pods: Vec::new(),
            waiting: Vec::new(),
            leaving: BTreeSet::new(),
            made: 0,
            history: History::new(),
            changes: Vec::new(),
            native,
            start_ms,
        }
    }

    /// One second: tasks go on, workers take tasks, pods come and go, then scaling decides.
    fn step(&mut self) -> Result<(), TestCaseError> {
        self.now_ms += STEP_MS;
        for pod in &mut self.pods {
            pod.task_ms = pod
                .task_ms
                .and_then(|left| left.checked_sub(STEP_MS))
                .filter(|left| *left > 0);
        }
        let now_ms = self.now_ms;
        self.pods.retain(|pod| {
            pod.gone_at_ms
                .is_none_or(|gone| gone > now_ms || pod.task_ms.is_some())
        });
        self.create_and_delete_pods()?;
        for pod in &mut self.pods {
            let takes = !self.leaving.contains(&pod.facts.name) && !pod.facts.terminating;
            if takes && pod.connects_at_ms <= now_ms && pod.task_ms.is_none() {
                pod.task_ms = self.waiting.pop();
            }
        }
        self.decide()
    }

    fn create_and_delete_pods(&mut self) -> Result<(), TestCaseError> {
        let present = || self.pods.iter().filter(|pod| !pod.facts.terminating).count() as u32;
        for _ in present()..self.replicas {
            self.made += 1;
            let mut facts = mk_pod(&format!("pod-{}", self.made), 0);
            facts.node = Some(format!("node-{}", self.made / 3));
            facts.worker = None;
            let connects_at_ms = self.now_ms + self.start_ms;
            self.pods.push(SimulatedPod {
                facts,
                connects_at_ms,
                gone_at_ms: None,
                task_ms: None,
            });
        }
        let mut present: Vec<&mut SimulatedPod> = self
            .pods
            .iter_mut()
            .filter(|pod| !pod.facts.terminating)
            .collect();
        present.sort_by_key(|pod| !pod.facts.marked);
        let excess = present.len().saturating_sub(self.replicas as usize);
        for pod in &mut present[..excess] {
            prop_assert!(
                pod.task_ms.is_none(),
                "the busy worker {} is killed",
                pod.facts.name
            );
            pod.facts.terminating = true;
            pod.gone_at_ms = Some(self.now_ms + 3 * STEP_MS);
        }
        Ok(())
    }

    fn facts(&self) -> ClusterFacts {
        let facts = |pod: &SimulatedPod| PodFacts {
            worker: (pod.connects_at_ms <= self.now_ms).then(|| Worker {
                connected: true,
                leaving: self.leaving.contains(&pod.facts.name),
                attempts: u32::from(pod.task_ms.is_some()),
            }),
            ..pod.facts.clone()
        };
        let running: Vec<u64> = self.pods.iter().filter_map(|pod| pod.task_ms).collect();
        let milliseconds: u64 = self.waiting.iter().chain(&running).sum();
        let connected = self.pods.iter().any(|pod| pod.connects_at_ms <= self.now_ms);
        let mut group = mk_group(
            Mode::Native(self.native),
            self.replicas,
            self.pods.iter().map(facts).collect(),
        );
        group.work = Some(Work {
            waiting_tasks: self.waiting.len() as u64,
            running_tasks: running.len() as u64,
            device_seconds: milliseconds as f64 / 1_000.0,
            jobs_without_worker: u64::from(!self.waiting.is_empty() && !connected),
        });
        mk_cluster(group)
    }

    fn decide(&mut self) -> Result<(), TestCaseError> {
        let facts = self.facts();
        let decision = plan_cluster(&facts, &mut self.history, self.now_ms);
        self.leaving = decision.leaving;
        let native = self.native;
        match &decision.deployments[0].1 {
            ScaleDecision::Keep { .. } => {}
            ScaleDecision::MarkLeaving { pods, .. } => {
                prop_assert!(pods.iter().all(|pod| self.leaving.contains(pod)));
            }
            ScaleDecision::Up { to, .. } => {
                prop_assert!(
                    *to > self.replicas && *to <= native.max,
                    "up from {} to {to}",
                    self.replicas
                );
                self.replicas = *to;
                self.changes.push((self.now_ms, *to));
            }
            ScaleDecision::Down { to, pods, .. } => {
                prop_assert!(
                    *to < self.replicas && *to >= native.min,
                    "down from {} to {to}",
                    self.replicas
                );
                for pod in &mut self.pods {
                    pod.facts.marked = pods.contains(&pod.facts.name);
                }
                self.replicas = *to;
                self.changes.push((self.now_ms, *to));
            }
        }
        Ok(())
    }

    /// A worker is bought only for work, and goes only after the cooldown: so replicas never rise again within a cooldown
    /// after they fell, unless work came that needs more than there was before.
    fn turns(&self) -> usize {
        let rises: Vec<bool> = self
            .changes
            .windows(2)
            .map(|pair| pair[1].1 > pair[0].1)
            .collect();
        rises.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_work_is_done_and_no_busy_worker_is_killed(
        arrivals in proptest::collection::vec((0_u64..1_200, 1_usize..40, 1_u64..90), 1..25),
        (min, max) in (0_u32..3, 3_u32..12),
        start_s in 0_u64..90,
        cooldown_s in 0_u64..300,
    ) {
        let native = Native { min, max, target_seconds: 60, cooldown_ms: cooldown_s * 1_000 };
        let mut world = World::new(native, start_s * 1_000);
        for (pause, tasks, seconds) in arrivals {
            for _ in 0..pause {
                world.step()?;
            }
            world.waiting.extend(std::iter::repeat_n(seconds * 1_000, tasks));
        }
        // Afterwards everything is done, and only the minimum stays.
        for _ in 0..(40 * 25 * 90 + 1_000) {
            world.step()?;
            if world.waiting.is_empty() && world.replicas == min && world.pods.len() == min as usize {
                break;
            }
        }
        prop_assert!(world.waiting.is_empty(), "{} tasks still wait", world.waiting.len());
        prop_assert_eq!(world.replicas, min);
        let changes = world.changes.len();
        for _ in 0..600 {
            world.step()?;
        }
        prop_assert_eq!(world.changes.len(), changes, "replicas change although nothing happens");
    }

    #[test]
    fn steady_work_keeps_a_steady_number_of_workers(
        every_s in 2_usize..30,
        seconds in 5_u64..60,
        start_s in 0_u64..60,
    ) {
        let native = Native { min: 0, max: 50, target_seconds: 60, cooldown_ms: 120_000 };
        let mut world = World::new(native, start_s * 1_000);
        for second in 0..7_200 {
            if second % every_s == 0 {
                world.waiting.push(seconds * 1_000);
            }
            world.step()?;
        }
        prop_assert!(world.turns() <= 2 * 60, "{} turns in two hours", world.turns());
        let rises = world.changes.windows(2).filter(|pair| pair[1].1 > pair[0].1).map(|pair| pair[1]);
        for (rose_ms, replicas) in rises {
            let fell = world.changes.iter().find(|(time, to)| *time > rose_ms && *to < replicas);
            prop_assert!(
                fell.is_none_or(|(time, _)| time - rose_ms >= 120_000),
                "bought {replicas} at {rose_ms} and gave some back at {fell:?}"
            );
        }
    }
}
