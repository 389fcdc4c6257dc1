//! What scaling decides upon and what it can answer.

use std::collections::BTreeSet;

/// Who decides how many workers a group has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The user: so many.
    Fixed(u32),
    /// The work that waits.
    Native(Native),
    /// Somebody else: a HorizontalPodAutoscaler or KEDA.
    Foreign(&'static str),
}

/// Bounds and pace of native scaling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Native {
    /// Fewest workers.
    pub min: u32,
    /// Most workers.
    pub max: u32,
    /// Seconds in which the workers shall work off what waits.
    pub target_seconds: u32,
    /// How long, in milliseconds, fewer workers must have been enough before workers leave.
    pub cooldown_ms: u64,
}

/// Work that a group could take.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Tasks that wait.
    pub waiting_tasks: u64,
    /// Tasks that run.
    pub running_tasks: u64,
    /// Device seconds of both.
    pub device_seconds: f64,
    /// Jobs that wait for a worker of this backend, because none is there.
    pub jobs_without_worker: u64,
}

/// What the coordinator tells of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Worker {
    /// It has a session.
    pub connected: bool,
    /// It takes nothing new.
    pub leaving: bool,
    /// Attempts that it runs or fetches ahead.
    pub attempts: u32,
}

/// A pod of a worker Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// Its node; none while it has none.
    pub node: Option<String>,
    /// It is being deleted.
    pub terminating: bool,
    /// Its containers run and are ready.
    pub ready: bool,
    /// Since when the scheduler has found no node for it, in milliseconds since the epoch.
    pub unschedulable_since_ms: Option<u64>,
    /// What the coordinator tells of it; none if it knows nothing.
    pub worker: Option<Worker>,
    /// Its pod-deletion-cost is that of a victim.
    pub marked: bool,
}

/// A worker Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeploymentFacts {
    /// Its name.
    pub name: String,
    /// Replicas that it shall have.
    pub replicas: u32,
    /// Its pods, terminating ones among them.
    pub pods: Vec<PodFacts>,
}

impl DeploymentFacts {
    pub(super) fn present(&self) -> impl Iterator<Item = &PodFacts> {
        self.pods.iter().filter(|pod| !pod.terminating)
    }

    fn terminating(&self) -> u32 {
        count(self.pods.iter().filter(|pod| pod.terminating))
    }

    /// Workers that are there or come, those that go among them.
    pub(super) fn capacity(&self) -> u32 {
        self.replicas.saturating_add(self.terminating())
    }

    /// Workers that have an attempt.
    pub(super) fn busy(&self) -> u32 {
        count(
            self.present()
                .filter(|pod| pod.worker.is_some_and(|worker| worker.attempts > 0)),
        )
    }

    /// Workers that have a node.
    pub(super) fn assigned(&self) -> u32 {
        count(self.present().filter(|pod| pod.node.is_some()))
    }

    pub(super) fn unschedulable_since_ms(&self) -> Option<u64> {
        self.present().filter_map(|pod| pod.unschedulable_since_ms).min()
    }
}

pub(super) fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

/// A worker group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupFacts {
    /// Its name.
    pub name: String,
    /// Its backend: groups with the same one share its work.
    pub backend: String,
    /// Who decides.
    pub mode: Mode,
    /// Devices of one worker.
    pub devices: u32,
    /// Position among the groups of its backend: the cheapest first, on spot machines before others of equal price.
    pub order: u32,
    /// Deployment of its current revision; none before it was made.
    pub deployment: Option<DeploymentFacts>,
    /// Its work; none while the coordinator can't be reached.
    pub work: Option<Work>,
}

/// A worker Deployment of an old revision, or of a group that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldFacts {
    /// Devices of one worker.
    pub devices: u32,
    /// The Deployment.
    pub deployment: DeploymentFacts,
    /// What becomes of it.
    pub fate: OldFate,
}

/// What becomes of the workers of an old revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OldFate {
    /// They stay as they are: nobody can tell whether they are needed.
    #[default]
    Unknown,
    /// They stay, and there shall be one at least: an unfinished job is pinned to their backend version.
    Needed,
    /// They stay as they are: another old revision has the same version, and workers.
    Spare,
    /// They shall leave.
    Leaves,
}

/// Everything that scaling of one ProverCluster looks at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterFacts {
    /// Its groups.
    pub groups: Vec<GroupFacts>,
    /// What is left of earlier revisions.
    pub old: Vec<OldFacts>,
    /// Devices of all groups together that scaling may reach.
    pub max_devices: Option<u32>,
    /// What the coordinator tells is recent enough to act upon.
    pub fresh: bool,
}

/// Why replicas stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeepReason {
    /// They are as wanted.
    AsWanted,
    /// A HorizontalPodAutoscaler or KEDA decides.
    OwnedByOther,
    /// The coordinator can't be reached, so nobody knows what workers do.
    CoordinatorUnreachable,
    /// Fewer would be enough now, but not yet for long enough.
    Cooldown,
    /// Workers that go will make room, and count until then.
    WorkersTerminating,
    /// Workers finish what they have before they go.
    Draining,
    /// The last change of replicas is not carried out yet.
    Settling,
    /// Unfinished jobs need this revision, or nobody can tell.
    Needed,
    /// `limits.maxDevices` is reached.
    MaxDevices,
}

impl KeepReason {
    /// For metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            KeepReason::AsWanted => "as_wanted",
            KeepReason::OwnedByOther => "owned_by_other",
            KeepReason::CoordinatorUnreachable => "coordinator_unreachable",
            KeepReason::Cooldown => "cooldown",
            KeepReason::WorkersTerminating => "workers_terminating",
            KeepReason::Draining => "draining",
            KeepReason::Settling => "settling",
            KeepReason::Needed => "needed",
            KeepReason::MaxDevices => "max_devices",
        }
    }
}

/// Why there shall be another number of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScaleReason {
    /// `replicas` of the group says so.
    Fixed,
    /// The work that waits and runs.
    Work,
    /// A job waits for a worker of this backend, and there is none.
    JobWithoutWorker,
    /// `minReplicas` or `maxReplicas`.
    Bounds,
    /// No node was found for its pods: the next group gets the work.
    Unschedulable,
    /// No job needs this revision any more.
    OldRevision,
    /// An unfinished job is pinned to the backend version of this revision, and it has no worker.
    PinnedJob,
}

impl ScaleReason {
    /// For metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ScaleReason::Fixed => "fixed",
            ScaleReason::Work => "work",
            ScaleReason::JobWithoutWorker => "job_without_worker",
            ScaleReason::Bounds => "bounds",
            ScaleReason::Unschedulable => "unschedulable",
            ScaleReason::OldRevision => "old_revision",
            ScaleReason::PinnedJob => "pinned_job",
        }
    }
}

/// What becomes of a Deployment's replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScaleDecision {
    /// They stay.
    Keep {
        /// Why.
        reason: KeepReason,
    },
    /// More.
    Up {
        /// How many there shall be.
        to: u32,
        /// Why.
        reason: ScaleReason,
    },
    /// These workers take nothing new from now on.
    MarkLeaving {
        /// Their pods.
        pods: Vec<String>,
        /// Why.
        reason: ScaleReason,
    },
    /// Fewer: these pods, which do nothing, go.
    Down {
        /// How many there shall be.
        to: u32,
        /// The pods that shall go; pods that don't exist yet may go beside them.
        pods: Vec<String>,
        /// Why.
        reason: ScaleReason,
    },
}

impl ScaleDecision {
    /// What and why, for metrics.
    #[must_use]
    pub fn as_strs(&self) -> (&'static str, &'static str) {
        match self {
            ScaleDecision::Keep { reason } => ("keep", reason.as_str()),
            ScaleDecision::Up { reason, .. } => ("up", reason.as_str()),
            ScaleDecision::MarkLeaving { reason, .. } => ("mark_leaving", reason.as_str()),
            ScaleDecision::Down { reason, .. } => ("down", reason.as_str()),
        }
    }
}

/// What becomes of all Deployments of a ProverCluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterDecision {
    /// Per Deployment.
    pub deployments: Vec<(String, ScaleDecision)>,
    /// All workers that shall take nothing new; every other one takes work again.
    pub leaving: BTreeSet<String>,
}
