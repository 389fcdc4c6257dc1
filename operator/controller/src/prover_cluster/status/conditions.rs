//! The conditions of a ProverCluster and how they follow from each other.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use prover_crds::conditions::{
    APPLYING, COORDINATOR_READY, Conditions, DRAINING, Holds, NAMESPACES_SERVED, READY, STORE_READY,
    WORKERS_READY,
};
use prover_crds::{ProverCluster, ProverClusterStatus, WorkerGroup, reasons};

use super::Findings;
use super::troubles::{Trouble, Troubles};
use crate::prover_cluster::deletion::{Departure, advice};
use crate::prover_cluster::dereference::{Dereferenced, MOST_NAMESPACES};
use crate::prover_cluster::validate::ApplyStrategy;

/// What conditions follow from.
pub(super) struct Facts<'a> {
    /// What is wanted.
    pub(super) cluster: &'a ProverCluster,
    /// What is there.
    pub(super) found: &'a Dereferenced,
    /// What the steps before found.
    pub(super) findings: &'a Findings,
    /// Why pods are not what they shall be.
    pub(super) troubles: &'a Troubles,
    /// What it waits for, where it is being deleted.
    pub(super) departure: Option<Departure>,
}

/// Whether something holds, why, and the same for people.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    holds: Holds,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn new(holds: Holds, reason: &'static str, message: impl Into<String>) -> Verdict {
        Verdict {
            holds,
            reason,
            message: message.into(),
        }
    }

    fn holds(&self) -> bool {
        self.holds == Holds::True
    }
}

/// Sets every condition. Those that speak of an exception are there only while it lasts.
pub(super) fn set(status: &mut ProverClusterStatus, generation: Option<i64>, now: Time, facts: &Facts<'_>) {
    let coordinator = coordinator(facts);
    let store = store(facts);
    let workers = workers(status, facts);
    let ready = ready(status, facts, [&coordinator, &store], &workers);
    let always = [
        (READY, ready),
        (COORDINATOR_READY, coordinator),
        (STORE_READY, store),
        (WORKERS_READY, workers),
    ];
    let exceptions = [
        (APPLYING, applying(facts)),
        (NAMESPACES_SERVED, namespaces(facts)),
        (DRAINING, draining(facts)),
    ];
    for (type_, _) in exceptions.iter().filter(|(_, verdict)| verdict.is_none()) {
        status.conditions.retain(|condition| condition.type_ != *type_);
    }
    let exceptions = exceptions
        .into_iter()
        .filter_map(|(type_, verdict)| Some((type_, verdict?)));
    let mut conditions = Conditions::new(&mut status.conditions, generation, now);
    for (type_, verdict) in always.into_iter().chain(exceptions) {
        conditions.set(type_, verdict.holds, verdict.reason, &verdict.message);
    }
}

fn coordinator(facts: &Facts<'_>) -> Verdict {
    let deployment = facts.found.coordinator_deployment();
    let available = deployment
        .and_then(|deployment| deployment.status.as_ref()?.available_replicas)
        .unwrap_or_default();
    if let (1.., Some(leader)) = (available, facts.found.leader()) {
        let message = match available - 1 {
            0 => format!("{} leads; no other one could take over now", leader.name_any()),
            others => format!(
                "{} leads; {others} more could take over at once",
                leader.name_any()
            ),
        };
        return Verdict::new(Holds::True, reasons::COORDINATOR_AVAILABLE, message);
    }
    match (&facts.troubles.coordinator, deployment) {
        (Some(trouble), _) => Verdict::new(Holds::False, trouble.reason, &trouble.message),
        (None, Some(_)) if available > 0 => Verdict::new(
            Holds::False,
            reasons::NO_LEADER,
            "a coordinator runs, but none leads: one takes over within seconds",
        ),
        (None, Some(_)) => Verdict::new(
            Holds::False,
            reasons::PROGRESSING,
            "the coordinator's pod is starting",
        ),
        (None, None) => Verdict::new(Holds::False, reasons::NO_LEADER, "there is no coordinator yet"),
    }
}

/// Only a coordinator can tell: the operator has no credentials of the store.
fn store(facts: &Facts<'_>) -> Verdict {
    match facts.found.state.as_deref() {
        Some(state) if state.store_ready == Some(false) => {
            let known = reasons::ALL.iter().find(|known| **known == state.store_reason);
            let reason = known.copied().unwrap_or(reasons::STORE_FAILED);
            Verdict::new(Holds::False, reason, state.store_message.as_str())
        }
        // A coordinator that has not tried the store out leads nobody.
        Some(_) => Verdict::new(
            Holds::True,
            reasons::STORE_REACHABLE,
            "the coordinator could use it when it tried last",
        ),
        None => match facts.found.store_trouble() {
            Some((reason, message)) => {
                let known = reasons::ALL.iter().find(|known| **known == reason);
                Verdict::new(
                    Holds::False,
                    known.copied().unwrap_or(reasons::STORE_FAILED),
                    message,
                )
            }
            None => Verdict::new(
                Holds::Unknown,
                reasons::NO_LEADER,
                "only a coordinator can tell, and the operator is connected to none",
            ),
        },
    }
}

fn workers(status: &ProverClusterStatus, facts: &Facts<'_>) -> Verdict {
    if facts.found.state.is_none() {
        let message = "only a coordinator can tell, and the operator is connected to none";
        return Verdict::new(Holds::Unknown, reasons::NO_LEADER, message);
    }
    let trouble = status.groups.iter().find_map(|group| {
        let trouble = facts.troubles.groups.get(&group.name)?;
        (group.workers.connected < group.workers.desired).then_some((group, trouble))
    });
    if let Some((group, Trouble { reason, message })) = trouble {
        return Verdict::new(
            Holds::False,
            reason,
            format!("worker group {}: {message}", group.name),
        );
    }
    let fewer = facts.cluster.spec.worker_groups.iter().find_map(|group| {
        let counts = status
            .groups
            .iter()
            .find(|known| known.name == group.name)?
            .workers;
        let fewest = fewest(group);
        (counts.desired < fewest).then(|| {
            format!(
                "worker group {}: it shall have at least {fewest} workers, but its replicas are {} yet",
                group.name, counts.desired
            )
        })
    });
    if let Some(message) = fewer {
        return Verdict::new(Holds::False, reasons::WORKERS_MISSING, message);
    }
    let counts = status.workers.unwrap_or_default();
    if counts.connected < counts.desired {
        let message = format!("{} of {} workers are connected", counts.connected, counts.desired);
        return Verdict::new(Holds::False, reasons::WORKERS_MISSING, message);
    }
    let failed: i64 = status.groups.iter().map(|group| group.failed_devices).sum();
    if failed > 0 {
        return Verdict::new(
            Holds::False,
            reasons::DEVICES_FAILED,
            format!("{failed} devices were taken out"),
        );
    }
    Verdict::new(
        Holds::True,
        reasons::READY,
        format!("{} workers are connected", counts.connected),
    )
}

/// Workers that a group shall have whatever there is to do.
fn fewest(group: &WorkerGroup) -> i64 {
    let fewest = match &group.scaling {
        Some(scaling) => scaling.min_replicas.unwrap_or(0),
        None => group.replicas.unwrap_or(1),
    };
    fewest.into()
}

fn ready(
    status: &ProverClusterStatus,
    facts: &Facts<'_>,
    needed: [&Verdict; 2],
    workers: &Verdict,
) -> Verdict {
    if let Some(invalid) = &facts.findings.invalid {
        return Verdict::new(Holds::False, reasons::INVALID_SPEC, invalid.to_string());
    }
    if let Some((_, failure)) = &facts.findings.failure {
        return Verdict::new(Holds::False, reasons::APPLY_FAILED, failure);
    }
    if let Some(missing) = needed.into_iter().find(|verdict| !verdict.holds()) {
        return Verdict::new(Holds::False, missing.reason, missing.message.clone());
    }
    let counts = status.workers.unwrap_or_default();
    let waiting = status
        .queue
        .as_ref()
        .map(|queue| queue.waiting_jobs)
        .unwrap_or_default();
    // Some workers are enough to prove, and none at all while nothing is to be proved.
    if counts.connected == 0 && (!workers.holds() || waiting > 0) {
        let message = if workers.holds() {
            "no worker is connected"
        } else {
            workers.message.as_str()
        };
        let reason = if workers.holds() {
            reasons::WORKERS_MISSING
        } else {
            workers.reason
        };
        return Verdict::new(Holds::False, reason, message);
    }
    Verdict::new(Holds::True, reasons::READY, "proofs can be made")
}

fn applying(facts: &Facts<'_>) -> Option<Verdict> {
    let differences = &facts.findings.differences;
    let told = if differences.is_empty() {
        "nothing would change".to_owned()
    } else {
        format!("it would {}", differences.join("; "))
    };
    match facts.findings.strategy {
        ApplyStrategy::Apply => None,
        ApplyStrategy::Paused => Some(Verdict::new(
            Holds::False,
            reasons::PAUSED,
            format!("proving.rs/apply is paused: {told}"),
        )),
        ApplyStrategy::DryRun => Some(Verdict::new(
            Holds::False,
            reasons::DRY_RUN,
            format!("proving.rs/apply is dry-run: {told}"),
        )),
    }
}

fn namespaces(facts: &Facts<'_>) -> Option<Verdict> {
    let namespaces = &facts.found.namespaces;
    if namespaces.unreadable {
        let message = "the operator looks at some namespaces only and may not read labels of namespaces: use from: Same \
                       or from: All, or install the operator without watchNamespaces";
        return Some(Verdict::new(
            Holds::False,
            reasons::NAMESPACES_UNREADABLE,
            message,
        ));
    }
    (namespaces.left_out > 0).then(|| {
        let message = format!(
            "{} namespaces more than the {MOST_NAMESPACES} that a ProverCluster may serve are allowed: narrow \
             spec.allowedNamespaces, or use several ProverClusters",
            namespaces.left_out
        );
        Verdict::new(Holds::False, reasons::TOO_MANY_NAMESPACES, message)
    })
}

fn draining(facts: &Facts<'_>) -> Option<Verdict> {
    let departure = facts.departure?;
    matches!(departure, Departure::Drain { .. })
        .then(|| Verdict::new(Holds::True, reasons::UNFINISHED_JOBS, advice(departure)))
}
