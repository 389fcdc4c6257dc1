//! Whether a cluster takes a job: a pure decision with its reason.

use prover_coordinator::{JobPolicy, Timestamp};
use prover_crds::{Phase, ProofSpec, reasons};

use crate::cluster::{ClusterRules, Rules};
use crate::status::Ending;

/// What is looked at.
#[derive(Clone, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) proof: &'a ProofSpec,
    pub(crate) policy: &'a JobPolicy,
    pub(crate) cancelled: bool,
    /// The cluster had accepted it before: bounds that have been passed since do not throw it out.
    pub(crate) accepted_before: bool,
}

/// Accepted jobs that have not ended, the candidate not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unfinished {
    pub(crate) in_all: usize,
    pub(crate) of_namespace: usize,
}

/// The decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The cluster takes it.
    Accept,
    /// Not as things stand.
    Refuse { reason: &'static str, message: String },
    /// It is over before it began.
    End(Ending),
    /// Nobody can tell yet: the ProverCluster is not there. The operator tells the user.
    Unknown,
}

/// Decides about a job that the core does not have.
pub(crate) fn judge(
    candidate: &Candidate<'_>,
    rules: &Rules,
    unfinished: Unfinished,
    now: Timestamp,
) -> Verdict {
    if let Some(ending) = early_end(candidate, now) {
        return Verdict::End(ending);
    }
    let Some(cluster) = &rules.cluster else {
        return Verdict::Unknown;
    };
    if !cluster.offers(candidate.proof) {
        return not_offered(candidate.proof, cluster);
    }
    let bounds = cluster.namespace(candidate.namespace);
    if let Some(most) = bounds.and_then(|bounds| bounds.max_priority)
        && candidate.policy.priority > most
    {
        return Verdict::Refuse {
            reason: reasons::PRIORITY_TOO_HIGH,
            message: format!(
                "spec.priority is {}, but jobs of namespace {} may have at most {most}: lower it",
                candidate.policy.priority, candidate.namespace
            ),
        };
    }
    if candidate.accepted_before {
        return Verdict::Accept;
    }
    if cluster.terminating {
        return Verdict::Refuse {
            reason: reasons::CLUSTER_TERMINATING,
            message: "the ProverCluster is being deleted and takes no new jobs".to_owned(),
        };
    }
    if !rules.namespaces.contains(candidate.namespace) {
        return Verdict::Refuse {
            reason: reasons::NAMESPACE_NOT_ALLOWED,
            message: format!(
                "the ProverCluster does not take jobs of namespace {}: see its spec.allowedNamespaces",
                candidate.namespace
            ),
        };
    }
    let most_here = bounds.and_then(|bounds| bounds.max_unfinished_jobs);
    too_many(most_here, unfinished.of_namespace, "its namespace")
        .or_else(|| {
            too_many(
                cluster.limits.max_unfinished_jobs,
                unfinished.in_all,
                "the ProverCluster",
            )
        })
        .unwrap_or(Verdict::Accept)
}

fn early_end(candidate: &Candidate<'_>, now: Timestamp) -> Option<Ending> {
    if candidate.cancelled {
        return Some(Ending {
            phase: Phase::Cancelled,
            reason: reasons::CANCELLED.to_owned(),
            message: "the job was cancelled before it began".to_owned(),
            invalid_input: false,
            accepted: candidate.accepted_before,
        });
    }
    let deadline = candidate.policy.deadline?;
    (deadline <= now).then(|| Ending {
        phase: Phase::Failed,
        reason: reasons::DEADLINE_EXCEEDED.to_owned(),
        message: "spec.deadline passed before the job began".to_owned(),
        invalid_input: false,
        accepted: candidate.accepted_before,
    })
}

fn not_offered(proof: &ProofSpec, cluster: &ClusterRules) -> Verdict {
    let offered: Vec<&str> = cluster.offers.iter().map(String::as_str).collect();
    Verdict::Refuse {
        reason: reasons::PROOF_NOT_OFFERED,
        message: format!(
            "no backend of the ProverCluster makes {} proofs; it offers {}: change spec.proof or spec.clusterRef, or \
             add a backend to the ProverCluster",
            proof.offered_as(),
            offered.join(", ")
        ),
    }
}

fn too_many(most: Option<i32>, present: usize, whose: &str) -> Option<Verdict> {
    let most = usize::try_from(most?).unwrap_or(0);
    (present >= most).then(|| Verdict::Refuse {
        reason: reasons::TOO_MANY_JOBS,
        message: format!(
            "{whose} has {present} unfinished jobs and may have {most}: this one is taken when others have ended"
        ),
    })
}

#[cfg(test)]
mod tests;
