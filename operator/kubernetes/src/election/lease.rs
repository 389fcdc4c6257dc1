//! What a replica concludes from the Lease of its ProverCluster: pure decisions with their reasons.
//!
//! The Lease is a hint for when to take over, never a fence: that is the epoch in the log. A wrong takeover costs the old
//! leader its lead and nothing else, so the rules here are about disturbing nobody without need. Clocks of replicas are
//! never compared: a Lease is over when a replica has seen for as long as it lasts that it does not change.
//!
//! Each look shows that nothing changed since the one before, so what passed between two looks counts, however late the
//! second one came: a starved machine lets nobody look in time. It counts for at most [`COUNTED_MS`], since whatever
//! kept this replica from looking may have kept the leader from renewing. What passed until a look failed counts for
//! nothing. After a gap longer than [`LONGEST_GAP_MS`], in which this process was stopped or the API server was away,
//! the Lease gets its whole time again. That a look was answered by a cache that lags does no harm: the Lease is taken in
//! the version that was seen, or not at all.

use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt;

/// How long a Lease lasts after it was last seen to change.
pub(crate) const LEASE_MS: u64 = 3_000;
/// Between two renewals by the leader.
pub(crate) const RENEW_PERIOD_MS: u64 = 1_000;
/// Between two looks of a follower, which a cache of the API server answers.
pub(crate) const LOOK_PERIOD_MS: u64 = 500;
/// What passes between two looks counts for at most so long.
const COUNTED_MS: u64 = 2 * LOOK_PERIOD_MS;
/// Longest time between two answered looks after which they belong together.
const LONGEST_GAP_MS: u64 = 6_000;
/// How long the API server must have been away before a follower asks the leader itself.
const BLIND_MS: u64 = 5_000;
/// How long the leader must not have answered then.
const SILENCE_MS: u64 = 5_000;
/// Annotation of the Lease with the address at which workers reach its holder, as HOST:PORT.
pub(crate) const ADDRESS_ANNOTATION: &str = "proving.rs/address";
/// Annotation of the Lease with the address of its holder's probes, as HOST:PORT.
pub(crate) const PROBES_ANNOTATION: &str = "proving.rs/probes";

/// What a replica has seen of the Lease, in its own time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    /// Version of the object; a change of it is what shows that the holder lives.
    pub(crate) version: Option<String>,
    /// Name of the pod that holds it; none where nobody does.
    pub(crate) holder: Option<String>,
    /// Where workers reach the holder.
    pub(crate) address: Option<String>,
    /// Where the holder answers probes.
    pub(crate) probes: Option<String>,
    /// How often it changed hands.
    pub(crate) transitions: i32,
    lasts_ms: u64,
    /// For how long it was seen not to change.
    unchanged_ms: u64,
    /// Up to when that is known; after a failed look, when that failed.
    known_until_ms: u64,
    /// The last look that was answered.
    looked_at_ms: Option<u64>,
}

impl Observed {
    /// What is known after a look that began and was answered at these moments; none stands for a Lease that does not exist.
    /// The answer may have waited for this process, so it tells of nothing after the begin.
    #[must_use]
    pub(crate) fn after(self, lease: Option<&Lease>, began_ms: u64, answered_ms: u64) -> Observed {
        let no_gap = self
            .looked_at_ms
            .is_some_and(|before| began_ms.saturating_sub(before) <= LONGEST_GAP_MS);
        let version = lease.and_then(ResourceExt::resource_version);
        if no_gap && self.version == version {
            let passed = began_ms.saturating_sub(self.known_until_ms);
            return Observed {
                unchanged_ms: self.unchanged_ms.saturating_add(passed.min(COUNTED_MS)),
                known_until_ms: self.known_until_ms.max(began_ms),
                looked_at_ms: Some(began_ms),
                ..self
            };
        }
        let annotation = |name| lease.and_then(|lease| lease.annotations().get(name).cloned());
        let spec = lease.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let lasts_ms = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(LEASE_MS, |seconds| seconds.saturating_mul(1_000));
        Observed {
            version,
            holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
            address: annotation(ADDRESS_ANNOTATION),
            probes: annotation(PROBES_ANNOTATION),
            transitions: spec.lease_transitions.unwrap_or(0),
            lasts_ms,
            unchanged_ms: 0,
            known_until_ms: answered_ms,
            looked_at_ms: Some(answered_ms),
        }
    }

    /// A look was not answered until now: what passed before is lost.
    #[must_use]
    pub(crate) fn unanswered(self, now_ms: u64) -> Observed {
        Observed {
            known_until_ms: self.known_until_ms.max(now_ms),
            ..self
        }
    }
}

/// What to do about the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Make it: there is none.
    Create,
    /// Take it.
    Take(TakeReason),
    /// It is this replica's own.
    Renew,
    /// Another one holds it, for so long still if it does not change.
    Wait { for_ms: u64 },
}

/// Why a Lease may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TakeReason {
    /// Its holder gave it back.
    Released,
    /// Its holder did not renew it in time.
    Expired,
}

/// What a replica does about the Lease after an answered look.
#[must_use]
pub(crate) fn decide(observed: &Observed, identity: &str) -> Decision {
    if observed.version.is_none() {
        return Decision::Create;
    }
    match &observed.holder {
        None => Decision::Take(TakeReason::Released),
        Some(holder) if holder == identity => Decision::Renew,
        Some(_) => match observed.lasts_ms.saturating_sub(observed.unchanged_ms) {
            0 => Decision::Take(TakeReason::Expired),
            for_ms => Decision::Wait { for_ms },
        },
    }
}

/// What a follower knows while the API server does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blind {
    /// Since when no look was answered.
    since_ms: Option<u64>,
    /// Since when the leader itself has not answered.
    silent_since_ms: Option<u64>,
}

/// What a follower does while the API server does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlindDecision {
    /// Wait: it may come back, as it does after a restart.
    Wait,
    /// Ask the leader itself whether it lives.
    Ask,
    /// Lead: nobody else does, as far as anybody can tell.
    TakeOver,
}

impl Blind {
    /// A look was not answered.
    #[must_use]
    pub(crate) fn unanswered(self, now_ms: u64) -> Blind {
        Blind {
            since_ms: self.since_ms.or(Some(now_ms)),
            ..self
        }
    }

    /// The leader was asked and answered, or did not.
    #[must_use]
    pub(crate) fn asked(self, answered: bool, now_ms: u64) -> Blind {
        Blind {
            silent_since_ms: (!answered).then(|| self.silent_since_ms.unwrap_or(now_ms)),
            ..self
        }
    }

    /// A follower that has never seen a leader can't ask any, and waits for the API server.
    #[must_use]
    pub(crate) fn decide(self, knows_leader: bool, now_ms: u64) -> BlindDecision {
        let passed =
            |since: Option<u64>, limit| since.is_some_and(|since| now_ms.saturating_sub(since) >= limit);
        if !knows_leader || !passed(self.since_ms, BLIND_MS) {
            BlindDecision::Wait
        } else if passed(self.silent_since_ms, SILENCE_MS) {
            BlindDecision::TakeOver
        } else {
            BlindDecision::Ask
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use kube::core::ObjectMeta;

    use super::*;

    const ME: &str = "main-coordinator-a";
    const OTHER: &str = "main-coordinator-b";

    fn lease(version: &str, holder: &str) -> Lease {
        let annotations = [
            (ADDRESS_ANNOTATION.to_owned(), "10.0.0.1:7000".to_owned()),
            (PROBES_ANNOTATION.to_owned(), "10.0.0.1:9090".to_owned()),
        ];
        Lease {
            metadata: ObjectMeta {
                resource_version: Some(version.to_owned()),
                annotations: Some(annotations.into()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: Some(3),
                lease_transitions: Some(4),
                ..LeaseSpec::default()
            }),
        }
    }

    fn look(observed: Observed, lease: &Lease, at_ms: u64) -> Observed {
        observed.after(Some(lease), at_ms, at_ms)
    }

    /// Looks at the same Lease again and again.
    fn looked(mut observed: Observed, lease: &Lease, from_ms: u64, to_ms: u64, every_ms: u64) -> Observed {
        let mut now_ms = from_ms;
        while now_ms <= to_ms {
            observed = look(observed, lease, now_ms);
            now_ms += every_ms;
        }
        observed
    }

    #[test]
    fn a_lease_is_made_where_there_is_none_and_taken_at_once_where_it_was_given_back() {
        let none = Observed::default().after(None, 5, 5);
        assert_eq!(decide(&none, ME), Decision::Create);
        let released = look(Observed::default(), &lease("1", ""), 5);
        assert_eq!(decide(&released, ME), Decision::Take(TakeReason::Released));
    }

    #[test]
    fn a_lease_is_over_after_its_time_without_a_change() {
        let held = lease("1", OTHER);
        let observed = looked(Observed::default(), &held, 10_000, 12_500, LOOK_PERIOD_MS);
        assert_eq!(observed.address.as_deref(), Some("10.0.0.1:7000"));
        assert_eq!(decide(&observed, ME), Decision::Wait { for_ms: 500 });
        let observed = look(observed, &held, 13_000);
        assert_eq!(decide(&observed, ME), Decision::Take(TakeReason::Expired));
        let renewed = look(observed, &lease("2", OTHER), 13_500);
        assert_eq!(decide(&renewed, ME), Decision::Wait { for_ms: LEASE_MS });
        assert_eq!(decide(&renewed, OTHER), Decision::Renew);
    }

    #[test]
    fn on_a_starved_machine_late_looks_count_and_none_counts_for_much() {
        let held = lease("1", OTHER);
        // Every 2 s, as where all cores are proving.
        let observed = looked(Observed::default(), &held, 10_000, 14_000, 2_000);
        assert_eq!(decide(&observed, ME), Decision::Wait { for_ms: 1_000 });
        let observed = look(observed, &held, 16_000);
        assert_eq!(decide(&observed, ME), Decision::Take(TakeReason::Expired));
        // The leader was starved, too, and comes a little later.
        let observed = looked(Observed::default(), &held, 10_000, 11_000, LOOK_PERIOD_MS);
        let late = look(observed, &held, 16_000);
        assert_eq!(decide(&late, ME), Decision::Wait { for_ms: 1_000 });
        let renewed = look(late, &lease("2", OTHER), 16_500);
        assert_eq!(decide(&renewed, ME), Decision::Wait { for_ms: LEASE_MS });
    }

    #[test]
    fn a_lease_gets_its_whole_time_again_after_a_gap_in_which_nobody_could_look() {
        let held = lease("1", OTHER);
        let observed = looked(Observed::default(), &held, 10_000, 12_500, LOOK_PERIOD_MS);
        // The API server was restarted, or this process was stopped, for a minute.
        let back = look(observed, &held, 72_500);
        assert_eq!(decide(&back, ME), Decision::Wait { for_ms: LEASE_MS });
        let later = looked(back, &held, 73_000, 75_500, LOOK_PERIOD_MS);
        assert_eq!(decide(&later, ME), Decision::Take(TakeReason::Expired));
    }

    #[test]
    fn a_look_that_failed_tells_nothing_and_takes_nothing_back() {
        let held = lease("1", OTHER);
        let mut observed = look(Observed::default(), &held, 10_000);
        // Every second one fails after a second.
        for cycle in 0..5 {
            let began_ms = 10_000 + cycle * 2_000;
            observed = look(observed.unanswered(began_ms + 1_500), &held, began_ms + 2_000);
            let for_ms = LEASE_MS - 500 * (cycle + 1);
            assert_eq!(decide(&observed, ME), Decision::Wait { for_ms });
        }
        let observed = look(observed.unanswered(21_500), &held, 22_000);
        assert_eq!(decide(&observed, ME), Decision::Take(TakeReason::Expired));
    }

    #[test]
    fn an_answer_tells_of_nothing_after_its_question() {
        let held = lease("1", OTHER);
        let observed = looked(Observed::default(), &held, 10_000, 12_500, LOOK_PERIOD_MS);
        // This process was stopped between question and answer: the leader may have renewed since.
        let observed = observed.after(Some(&held), 12_600, 15_000);
        assert_eq!(decide(&observed, ME), Decision::Wait { for_ms: 400 });
        // The first sight of a version counts from its answer: it may have been renewed just before.
        let observed = Observed::default().after(Some(&held), 10_000, 11_000);
        let observed = look(observed, &held, 11_500);
        assert_eq!(decide(&observed, ME), Decision::Wait { for_ms: 2_500 });
    }

    #[test]
    fn without_the_api_server_a_silent_leader_is_replaced_and_one_that_answers_is_left_alone() {
        let mut blind = Blind::default().unanswered(1_000);
        assert_eq!(blind.decide(true, 5_999), BlindDecision::Wait);
        assert_eq!(blind.decide(true, 6_000), BlindDecision::Ask);
        assert_eq!(blind.decide(false, 60_000), BlindDecision::Wait);
        blind = blind.unanswered(6_000).asked(true, 6_000);
        assert_eq!(blind.decide(true, 60_000), BlindDecision::Ask);
        blind = blind.asked(false, 60_000).asked(false, 62_000);
        assert_eq!(blind.decide(true, 64_999), BlindDecision::Ask);
        assert_eq!(blind.decide(true, 65_000), BlindDecision::TakeOver);
        // One answer in between begins anew.
        blind = blind.asked(true, 63_000).asked(false, 64_000);
        assert_eq!(blind.decide(true, 65_000), BlindDecision::Ask);
    }
}
