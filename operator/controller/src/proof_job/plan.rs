//! What is done about one ProofJob: a pure decision with its reason.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::core::ObjectMeta;
use prover_crds::{conditions, names, reasons};

use super::gitops::{Tracker, tracker};
use super::object::JobObject;

/// Longest wait for a coordinator to collect the artifacts of a deleted job; the bucket's sweep gets what is left.
pub const COLLECTION_LIMIT: Duration = Duration::from_secs(60);
/// How long a new job is left to its coordinator's first status: a finalizer in between would make that write begin
/// again just when somebody waits for it. Until then a deleted job has nothing that a coordinator could miss, which sees
/// deletions without a finalizer too.
pub const FINALIZER_DELAY: Duration = Duration::from_secs(2);

/// What the ProverCluster of a job means for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterFacts {
    /// It takes jobs of this namespace.
    Takes {
        /// Seconds after their end until jobs are deleted that don't say themselves.
        default_ttl_seconds: Option<i64>,
    },
    /// It is being deleted.
    Terminating {
        /// Since when.
        since: Timestamp,
        /// Its unfinished jobs are failed instead of waited for.
        forced: bool,
        /// As in [`ClusterFacts::Takes`].
        default_ttl_seconds: Option<i64>,
    },
    /// It does not take jobs of this namespace.
    NotAllowed,
    /// It does not exist.
    NotFound,
    /// It can't be read, or its namespaces can't be looked at: nothing is concluded.
    Unknown,
}

/// Why a finalizer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseReason {
    /// The coordinator has collected the artifacts.
    ArtifactsCollected,
    /// The namespace is being deleted and must not be held up.
    NamespaceTerminating,
    /// There is no ProverCluster that could collect anything.
    ClusterGone,
    /// The ProverCluster is being deleted by force.
    ClusterForced,
    /// The coordinator had [`COLLECTION_LIMIT`].
    WaitedLongEnough,
}

/// Why nothing is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdleReason {
    /// Another controller looks after the object.
    ManagedByOther,
    /// All is as it should be.
    InOrder,
    /// The artifacts of a deleted job are being collected.
    Collecting,
    /// The job has ended and stays for a while.
    TimeToLive,
    /// The coordinator's first status comes before the finalizer.
    CoordinatorFirst,
}

/// What is done about a job. After each write the job is looked at again.
#[derive(Clone, Debug, PartialEq)]
pub enum JobPlan {
    /// Nothing.
    Idle {
        /// Why.
        reason: IdleReason,
        /// When to look again although nothing changed.
        until: Option<Timestamp>,
    },
    /// Add the finalizer.
    AddFinalizer,
    /// Remove the finalizer.
    RemoveFinalizer(ReleaseReason),
    /// Say that no ProverCluster takes the job.
    Refuse(Condition),
    /// Leave the condition `Accepted` to the coordinator, since a ProverCluster takes the job now.
    LeaveToCoordinator,
    /// Delete the job: its time is over.
    Delete,
    /// Its time is over, but Git would create it again.
    HeldByGitOps(Tracker),
}

fn idle(reason: IdleReason) -> JobPlan {
    JobPlan::Idle { reason, until: None }
}

/// What is done about this job now.
#[must_use]
pub fn plan(job: &JobObject, cluster: &ClusterFacts, namespace_terminating: bool, now: Timestamp) -> JobPlan {
    if !job.is_managed_by_us() {
        return idle(IdleReason::ManagedByOther);
    }
    if let Some(Time(deleted_at)) = job.metadata.deletion_timestamp {
        return plan_deleted(job, cluster, namespace_terminating, deleted_at, now);
    }
    if conditions::is_true(&job.status.conditions, conditions::FINISHED) {
        return plan_finished(job, cluster, now);
    }
    if let Some(condition) = refusal(job, cluster, now) {
        return condition.map_or(idle(IdleReason::InOrder), JobPlan::Refuse);
    }
    if matches!(cluster, ClusterFacts::Takes { .. }) {
        if !has_finalizer(&job.metadata) {
            return first_status_until(job, now).map_or(JobPlan::AddFinalizer, |until| JobPlan::Idle {
                reason: IdleReason::CoordinatorFirst,
                until: Some(until),
            });
        }
        if job.we_wrote_status {
            return JobPlan::LeaveToCoordinator;
        }
    }
    idle(IdleReason::InOrder)
}

/// Until when the coordinator's first status is waited for; none where that is there or overdue.
fn first_status_until(job: &JobObject, now: Timestamp) -> Option<Timestamp> {
    let Time(created) = job.metadata.creation_timestamp.as_ref()?;
    let until = later(*created, FINALIZER_DELAY.as_secs());
    // A job from the future is one of another clock, by which nothing can be waited for.
    let waits = job.status.conditions.is_empty() && *created <= now && now < until;
    waits.then_some(until)
}

fn has_finalizer(metadata: &ObjectMeta) -> bool {
    metadata
        .finalizers
        .iter()
        .flatten()
        .any(|finalizer| finalizer == names::JOB_FINALIZER)
}

fn plan_deleted(
    job: &JobObject,
    cluster: &ClusterFacts,
    namespace_terminating: bool,
    deleted_at: Timestamp,
    now: Timestamp,
) -> JobPlan {
    if !has_finalizer(&job.metadata) {
        return idle(IdleReason::InOrder);
    }
    let until = later(deleted_at, COLLECTION_LIMIT.as_secs());
    let reason = if conditions::is_true(&job.status.conditions, conditions::ARTIFACTS_COLLECTED) {
        ReleaseReason::ArtifactsCollected
    } else if namespace_terminating {
        ReleaseReason::NamespaceTerminating
    } else if matches!(cluster, ClusterFacts::NotFound | ClusterFacts::NotAllowed) {
        ReleaseReason::ClusterGone
    } else if matches!(cluster, ClusterFacts::Terminating { forced: true, .. }) {
        ReleaseReason::ClusterForced
    } else if now >= until {
        ReleaseReason::WaitedLongEnough
    } else {
        return JobPlan::Idle {
            reason: IdleReason::Collecting,
            until: Some(until),
        };
    };
    JobPlan::RemoveFinalizer(reason)
}

fn plan_finished(job: &JobObject, cluster: &ClusterFacts, now: Timestamp) -> JobPlan {
    let default = match cluster {
        ClusterFacts::Takes { default_ttl_seconds }
        | ClusterFacts::Terminating {
            default_ttl_seconds, ..
        } => *default_ttl_seconds,
        ClusterFacts::NotAllowed | ClusterFacts::NotFound | ClusterFacts::Unknown => None,
    };
    let ttl = job
        .spec
        .ttl_seconds_after_finished
        .or(default)
        .and_then(|seconds| u64::try_from(seconds).ok());
    let (Some(ttl), Some(finished_at)) = (ttl, finished_at(job)) else {
        return idle(IdleReason::InOrder);
    };
    let until = later(finished_at, ttl);
    if now < until {
        return JobPlan::Idle {
            reason: IdleReason::TimeToLive,
            until: Some(until),
        };
    }
    let despite = job
        .metadata
        .annotations
        .iter()
        .flatten()
        .any(|(name, value)| name == names::TTL_DESPITE_GITOPS_ANNOTATION && value == "true");
    match tracker(&job.metadata) {
        Some(tracker) if !despite => JobPlan::HeldByGitOps(tracker),
        _ => JobPlan::Delete,
    }
}

fn finished_at(job: &JobObject) -> Option<Timestamp> {
    let told = job.status.completion_time.as_ref().map(|Time(time)| *time);
    told.or_else(|| {
        let finished = conditions::find(&job.status.conditions, conditions::FINISHED)?;
        Some(finished.last_transition_time.0)
    })
}

fn later(time: Timestamp, seconds: u64) -> Timestamp {
    time.checked_add(Duration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX)
}

/// The condition that says why no ProverCluster takes the job. None where one may; `Some(None)` where it is there already.
fn refusal(job: &JobObject, cluster: &ClusterFacts, now: Timestamp) -> Option<Option<Condition>> {
    let present = conditions::find(&job.status.conditions, conditions::ACCEPTED);
    let name = &job.spec.cluster_ref.name;
    let own = job.metadata.namespace.clone().unwrap_or_default();
    let namespace = job.spec.cluster_ref.namespace.as_ref().unwrap_or(&own);
    let (reason, message) = match cluster {
        ClusterFacts::Takes { .. } | ClusterFacts::Unknown => return None,
        ClusterFacts::NotFound => (
            reasons::CLUSTER_NOT_FOUND,
            format!(
                "there is no ProverCluster {name} in namespace {namespace}: create it, or name another in a new job"
            ),
        ),
        ClusterFacts::NotAllowed => (
            reasons::NAMESPACE_NOT_ALLOWED,
            format!(
                "the ProverCluster {namespace}/{name} takes no jobs of namespace {own}: see its allowedNamespaces"
            ),
        ),
        ClusterFacts::Terminating { since, .. } => {
            // What was there before, its coordinator still finishes.
            let created = job.metadata.creation_timestamp.as_ref().map(|Time(time)| *time);
            let accepted = present.is_some_and(|condition| condition.status == "True");
            if accepted || created.is_none_or(|created| created <= *since) {
                return None;
            }
            (
                reasons::CLUSTER_TERMINATING,
                format!("the ProverCluster {namespace}/{name} is being deleted"),
            )
        }
    };
    if present.is_some_and(|condition| condition.status == "False" && condition.reason == reason) {
        return Some(None);
    }
    let unchanged = present.filter(|condition| condition.status == "False");
    Some(Some(Condition {
        type_: conditions::ACCEPTED.to_owned(),
        status: "False".to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: job.metadata.generation,
        last_transition_time: unchanged.map_or(Time(now), |condition| condition.last_transition_time.clone()),
    }))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn mk_job() -> JobObject {
        let mut job = JobObject::default();
        job.metadata.namespace = Some("team".to_owned());
        job.metadata.name = Some("fibonacci".to_owned());
        job.metadata.creation_timestamp = Some(Time(at(0)));
        job.metadata.finalizers = Some(vec![names::JOB_FINALIZER.to_owned()]);
        job
    }

    fn with_condition(mut job: JobObject, type_: &str, status: &str, reason: &str) -> JobObject {
        job.status.conditions.push(Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(at(50)),
        });
        job
    }

    fn finished(ttl: Option<i64>) -> JobObject {
        let mut job = with_condition(mk_job(), conditions::FINISHED, "True", reasons::SUCCEEDED);
        job.status.completion_time = Some(Time(at(100)));
        job.spec.ttl_seconds_after_finished = ttl;
        job
    }

    fn deleted() -> JobObject {
        let mut job = mk_job();
        job.metadata.deletion_timestamp = Some(Time(at(1_000)));
        job
    }

    const TAKES: ClusterFacts = ClusterFacts::Takes {
        default_ttl_seconds: None,
    };

    fn terminating(forced: bool) -> ClusterFacts {
        ClusterFacts::Terminating {
            since: at(900),
            forced,
            default_ttl_seconds: None,
        }
    }

    #[test]
    fn nothing_is_done_about_jobs_of_another_controller() {
        for job in [mk_job(), finished(Some(0)), deleted()] {
            let mut job = job;
            job.metadata.finalizers = None;
            job.spec.managed_by = Some("kueue.x-k8s.io/multikueue".to_owned());
            for cluster in [TAKES, ClusterFacts::NotFound] {
                assert_eq!(
                    plan(&job, &cluster, true, at(9_999)),
                    idle(IdleReason::ManagedByOther)
                );
            }
        }
    }

    #[test]
    fn a_job_that_a_cluster_takes_gets_the_finalizer_once() {
        let mut job = mk_job();
        assert_eq!(plan(&job, &TAKES, false, at(1)), idle(IdleReason::InOrder));
        job.metadata.finalizers = Some(vec!["other.example/finalizer".to_owned()]);
        assert_eq!(plan(&job, &TAKES, false, at(2)), JobPlan::AddFinalizer);
    }

    #[test]
    fn a_finalizer_never_comes_between_a_new_job_and_its_first_status() {
        let mut job = mk_job();
        job.metadata.finalizers = None;
        let waits = JobPlan::Idle {
            reason: IdleReason::CoordinatorFirst,
            until: Some(at(2)),
        };
        assert_eq!(plan(&job, &TAKES, false, at(0)), waits);
        assert_eq!(plan(&job, &TAKES, false, at(1)), waits);
        let told = with_condition(job.clone(), conditions::ACCEPTED, "True", reasons::ACCEPTED);
        assert_eq!(plan(&told, &TAKES, false, at(1)), JobPlan::AddFinalizer);
        // Nobody waits for what another clock calls the future.
        job.metadata.creation_timestamp = Some(Time(at(9_000)));
        assert_eq!(plan(&job, &TAKES, false, at(1)), JobPlan::AddFinalizer);
    }

    #[test]
    fn a_deleted_job_waits_for_its_artifacts_but_not_for_ever() {
        let until = Some(at(1_060));
        let waits = JobPlan::Idle {
            reason: IdleReason::Collecting,
            until,
        };
        assert_eq!(plan(&deleted(), &TAKES, false, at(1_059)), waits);
        assert_eq!(plan(&deleted(), &terminating(false), false, at(1_059)), waits);
        assert_eq!(plan(&deleted(), &ClusterFacts::Unknown, false, at(1_059)), waits);
        let release = |reason| JobPlan::RemoveFinalizer(reason);
        assert_eq!(
            plan(&deleted(), &TAKES, false, at(1_060)),
            release(ReleaseReason::WaitedLongEnough)
        );
        let collected = with_condition(deleted(), conditions::ARTIFACTS_COLLECTED, "True", "Collected");
        assert_eq!(
            plan(&collected, &TAKES, false, at(1_001)),
            release(ReleaseReason::ArtifactsCollected)
        );
        assert_eq!(
            plan(&deleted(), &TAKES, true, at(1_001)),
            release(ReleaseReason::NamespaceTerminating)
        );
        assert_eq!(
            plan(&deleted(), &ClusterFacts::NotFound, false, at(1_001)),
            release(ReleaseReason::ClusterGone)
        );
        assert_eq!(
            plan(&deleted(), &terminating(true), false, at(1_001)),
            release(ReleaseReason::ClusterForced)
        );
    }

    #[test]
    fn a_deleted_job_without_our_finalizer_is_left_to_the_others() {
        let mut job = deleted();
        job.metadata.finalizers = Some(vec!["other.example/finalizer".to_owned()]);
        assert_eq!(
            plan(&job, &ClusterFacts::NotFound, false, at(5_000)),
            idle(IdleReason::InOrder)
        );
    }

    #[test]
    fn a_finished_job_is_deleted_when_its_time_is_over() {
        let job = finished(Some(60));
        let waits = JobPlan::Idle {
            reason: IdleReason::TimeToLive,
            until: Some(at(160)),
        };
        assert_eq!(plan(&job, &TAKES, false, at(159)), waits);
        assert_eq!(plan(&job, &TAKES, false, at(160)), JobPlan::Delete);
        assert_eq!(
            plan(&job, &ClusterFacts::NotFound, false, at(160)),
            JobPlan::Delete
        );
        assert_eq!(plan(&finished(Some(0)), &TAKES, false, at(100)), JobPlan::Delete);
    }

    #[test]
    fn the_time_to_live_of_the_cluster_holds_for_jobs_that_name_none() {
        let cluster = ClusterFacts::Takes {
            default_ttl_seconds: Some(10),
        };
        assert_eq!(plan(&finished(None), &cluster, false, at(110)), JobPlan::Delete);
        let waits = JobPlan::Idle {
            reason: IdleReason::TimeToLive,
            until: Some(at(160)),
        };
        assert_eq!(plan(&finished(Some(60)), &cluster, false, at(110)), waits);
        assert_eq!(
            plan(&finished(None), &TAKES, false, at(999_999)),
            idle(IdleReason::InOrder)
        );
    }

    #[test]
    fn a_job_that_git_keeps_is_not_deleted_unless_it_says_so() {
        let mut job = finished(Some(0));
        job.metadata.labels =
            Some([("kustomize.toolkit.fluxcd.io/name".to_owned(), "apps".to_owned())].into());
        assert_eq!(
            plan(&job, &TAKES, false, at(200)),
            JobPlan::HeldByGitOps(Tracker::Flux)
        );
        let annotation = (names::TTL_DESPITE_GITOPS_ANNOTATION.to_owned(), "true".to_owned());
        job.metadata.annotations = Some([annotation].into());
        assert_eq!(plan(&job, &TAKES, false, at(200)), JobPlan::Delete);
    }

    #[test]
    fn a_job_that_no_cluster_takes_is_told_why_once() {
        for (cluster, reason) in [
            (ClusterFacts::NotFound, reasons::CLUSTER_NOT_FOUND),
            (ClusterFacts::NotAllowed, reasons::NAMESPACE_NOT_ALLOWED),
        ] {
            let JobPlan::Refuse(condition) = plan(&mk_job(), &cluster, false, at(70)) else {
                panic!("{reason} is not told")
            };
            assert_eq!(
                (condition.status.as_str(), condition.reason.as_str()),
                ("False", reason)
            );
            assert_eq!(condition.last_transition_time, Time(at(70)));
            let told = with_condition(mk_job(), conditions::ACCEPTED, "False", reason);
            assert_eq!(plan(&told, &cluster, false, at(80)), idle(IdleReason::InOrder));
        }
    }

    #[test]
    fn another_reason_keeps_the_transition_time() {
        let told = with_condition(
            mk_job(),
            conditions::ACCEPTED,
            "False",
            reasons::NAMESPACE_NOT_ALLOWED,
        );
        let JobPlan::Refuse(condition) = plan(&told, &ClusterFacts::NotFound, false, at(70)) else {
            panic!("the new reason is not told")
        };
        assert_eq!(condition.last_transition_time, Time(at(50)));
    }

    #[test]
    fn a_cluster_that_is_going_refuses_only_what_came_later() {
        let mut job = mk_job();
        assert_eq!(
            plan(&job, &terminating(false), false, at(950)),
            idle(IdleReason::InOrder)
        );
        job.metadata.creation_timestamp = Some(Time(at(901)));
        assert!(matches!(
            plan(&job, &terminating(false), false, at(950)),
            JobPlan::Refuse(_)
        ));
        let accepted = with_condition(job, conditions::ACCEPTED, "True", reasons::ACCEPTED);
        assert_eq!(
            plan(&accepted, &terminating(false), false, at(950)),
            idle(IdleReason::InOrder)
        );
    }

    #[test]
    fn what_we_said_is_taken_back_once_a_cluster_takes_the_job() {
        let mut job = with_condition(
            mk_job(),
            conditions::ACCEPTED,
            "False",
            reasons::CLUSTER_NOT_FOUND,
        );
        job.we_wrote_status = true;
        assert_eq!(plan(&job, &TAKES, false, at(70)), JobPlan::LeaveToCoordinator);
        job.we_wrote_status = false;
        assert_eq!(plan(&job, &TAKES, false, at(70)), idle(IdleReason::InOrder));
    }

    #[test]
    fn nothing_is_concluded_from_a_cluster_that_cannot_be_read() {
        assert_eq!(
            plan(&mk_job(), &ClusterFacts::Unknown, false, at(70)),
            idle(IdleReason::InOrder)
        );
    }
}
