//! Ended jobs whose proof or public values lie in the store, by the time of their end.

use std::collections::{BTreeMap, BTreeSet};

use prover_coordinator::{Milliseconds, Timestamp};
use prover_crds::{Phase, ProofJobStatus, conditions};

use crate::writer::JobName;

/// What the store keeps for users. One entry per ProofJob that succeeded, so those bound it.
#[derive(Debug, Default)]
pub(super) struct Retained {
    by_end: BTreeSet<(Timestamp, JobName)>,
    ends: BTreeMap<JobName, Timestamp>,
}

impl Retained {
    /// Takes note of an ended job, if it left anything and that is not deleted yet.
    pub(super) fn note(&mut self, name: &JobName, status: &ProofJobStatus) {
        self.remove(name);
        let left = status.proof.is_some() || status.public_values.is_some();
        let deleted = conditions::is_true(&status.conditions, conditions::PROOF_DELETED);
        let succeeded = status.phase == Some(Phase::Succeeded);
        let Some(ended) = status
            .completion_time
            .as_ref()
            .filter(|_| succeeded && left && !deleted)
        else {
            return;
        };
        let ended = Timestamp(u64::try_from(ended.0.as_millisecond()).unwrap_or(0));
        self.ends.insert(name.clone(), ended);
        self.by_end.insert((ended, name.clone()));
    }

    /// The job is gone, or what it left.
    pub(super) fn remove(&mut self, name: &JobName) {
        if let Some(ended) = self.ends.remove(name) {
            self.by_end.remove(&(ended, name.clone()));
        }
    }

    /// When the first retention is over; never without one.
    pub(super) fn due(&self, retention: Option<Milliseconds>) -> Option<Timestamp> {
        let (ended, _) = self.by_end.first()?;
        Some(*ended + retention?)
    }

    /// The next job whose retention is over.
    pub(super) fn take_due(&mut self, retention: Option<Milliseconds>, now: Timestamp) -> Option<JobName> {
        if self.due(retention)? > now {
            return None;
        }
        let (_, name) = self.by_end.pop_first()?;
        self.ends.remove(&name);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
    use prover_crds::{StoredArtifact, reasons};

    use super::*;

    fn mk_name(name: &str) -> JobName {
        JobName {
            namespace: "tenant".into(),
            name: name.into(),
            uid: name.into(),
        }
    }

    fn mk_status(ended: i64) -> ProofJobStatus {
        ProofJobStatus {
            phase: Some(Phase::Succeeded),
            completion_time: Some(Time(k8s_openapi::jiff::Timestamp::from_second(ended).unwrap())),
            public_values: Some(StoredArtifact::default()),
            ..ProofJobStatus::default()
        }
    }

    #[test]
    fn results_are_due_in_the_order_in_which_their_jobs_ended() {
        let mut retained = Retained::default();
        let day = Some(Milliseconds(86_400_000));
        for (name, ended) in [("late", 300), ("early", 100), ("gone", 50), ("middle", 200)] {
            retained.note(&mk_name(name), &mk_status(ended));
        }
        retained.note(&mk_name("late"), &mk_status(300));
        retained.remove(&mk_name("gone"));
        assert_eq!(retained.due(day), Some(Timestamp(86_500_000)));
        assert_eq!(retained.due(None), None);
        let now = Timestamp(86_600_000);
        assert_eq!(retained.take_due(None, now), None);
        assert_eq!(retained.take_due(day, now), Some(mk_name("early")));
        assert_eq!(retained.take_due(day, now), Some(mk_name("middle")));
        assert_eq!(retained.take_due(day, now), None);
        assert_eq!(retained.due(day), Some(Timestamp(86_700_000)));
    }

    #[test]
    fn jobs_that_left_nothing_are_not_remembered() {
        let mut nothing = mk_status(1);
        nothing.public_values = None;
        let mut failed = mk_status(1);
        failed.phase = Some(Phase::Failed);
        let mut deleted = mk_status(1);
        deleted.conditions.push(Condition {
            type_: conditions::PROOF_DELETED.to_owned(),
            status: "True".to_owned(),
            reason: reasons::RETENTION_OVER.to_owned(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH),
        });
        for status in [nothing, failed, deleted] {
            let mut retained = Retained::default();
            retained.note(&mk_name("job"), &mk_status(1));
            retained.note(&mk_name("job"), &status);
            assert_eq!(retained.due(Some(Milliseconds(0))), None);
        }
    }
}
