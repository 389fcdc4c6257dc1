//! Which replica of the operator works: leader election with a Lease in the operator's namespace.
//!
//! A candidate never compares clocks: a Lease is over when the candidate has not seen it change for as long as it
//! lasts. The holder gives up before that moment, so at no time do two replicas believe that they lead.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};
use prover_crds::names;
use prover_runtime::Clock;
use tokio_util::sync::CancellationToken;

use crate::api::{ApiError, call, call_opt};

/// Name of the Lease.
pub const LEASE_NAME: &str = "prover-operator";
/// How long a Lease lasts after it was last seen to change.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How long a holder that can't renew goes on believing that it leads; less than [`LEASE_DURATION`].
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries to acquire or to renew.
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// Longest wait for one answer while leading, so that several tries fit into [`RENEW_DEADLINE`].
const ATTEMPT_LIMIT: Duration = Duration::from_secs(4);

/// What a candidate has seen of the Lease, in its own time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Version of the object; a change of it is what shows that the holder lives.
    pub version: Option<String>,
    /// Who holds it; none where nobody does.
    pub holder: Option<String>,
    /// How often it changed hands.
    pub transitions: i32,
    /// How long its holder says it lasts, in milliseconds.
    pub lasts_ms: u64,
    /// When the candidate saw it change last, by the candidate's clock.
    pub changed_at_ms: u64,
}

impl Observed {
    /// What is known after a look at `now_ms`; none stands for a Lease that does not exist.
    #[must_use]
    pub fn after(self, lease: Option<&Lease>, now_ms: u64) -> Observed {
        let Some(lease) = lease else {
            return Observed {
                changed_at_ms: now_ms,
                ..Observed::default()
            };
        };
        let version = lease.resource_version();
        if self.version.is_some() && self.version == version {
            return self;
        }
        let spec = lease.spec.clone().unwrap_or_default();
        let own = u64::try_from(LEASE_DURATION.as_millis()).unwrap_or(u64::MAX);
        let told = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok());
        Observed {
            version,
            holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
            transitions: spec.lease_transitions.unwrap_or(0),
            lasts_ms: told.map_or(own, |seconds| seconds.saturating_mul(1_000)),
            changed_at_ms: now_ms,
        }
    }
}

/// What a candidate does about the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Make it: there is none.
    Create,
    /// Take it.
    Take {
        /// Why it may be taken.
        reason: TakeReason,
        /// How often it will have changed hands.
        transitions: i32,
    },
    /// Write it again, to show that the holder lives.
    Renew,
    /// Somebody else holds it.
    Wait {
        /// Who.
        holder: String,
        /// How long it lasts still if it does not change.
        for_ms: u64,
    },
}

/// Why a Lease may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakeReason {
    /// Its holder gave it back.
    Released,
    /// Its holder did not renew it in time.
    Expired,
}

/// What to do about the Lease at `now_ms`.
#[must_use]
pub fn decide(observed: &Observed, identity: &str, now_ms: u64) -> Decision {
    if observed.version.is_none() {
        return Decision::Create;
    }
    let transitions = observed.transitions.saturating_add(1);
    match &observed.holder {
        None => Decision::Take {
            reason: TakeReason::Released,
            transitions,
        },
        Some(holder) if holder == identity => Decision::Renew,
        Some(holder) => {
            let over_at = observed.changed_at_ms.saturating_add(observed.lasts_ms);
            if now_ms >= over_at {
                Decision::Take {
                    reason: TakeReason::Expired,
                    transitions,
                }
            } else {
                Decision::Wait {
                    holder: holder.clone(),
                    for_ms: over_at - now_ms,
                }
            }
        }
    }
}

/// Takes part in the election.
#[derive(Debug)]
pub struct Candidate {
    api: Api<Lease>,
    identity: String,
    clock: Arc<dyn Clock>,
    observed: Observed,
    lease: Option<Lease>,
}

/// Why a leader leads no more.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Somebody else holds the Lease.
    #[error("the Lease {LEASE_NAME} is held by {holder} now")]
    Taken {
        /// Who.
        holder: String,
    },
    /// The Lease could not be renewed in time.
    #[error("the Lease {LEASE_NAME} could not be renewed for {} s: {source}", RENEW_DEADLINE.as_secs())]
    NotRenewed {
        /// What the last try said.
        source: ApiError,
    },
}

impl Candidate {
    /// A candidate for the Lease in this namespace. `identity` must be unique: the name of the pod.
    #[must_use]
    pub fn new(client: Client, namespace: &str, identity: &str, clock: Arc<dyn Clock>) -> Self {
        Candidate {
            api: Api::namespaced(client, namespace),
            identity: identity.to_owned(),
            clock,
            observed: Observed::default(),
            lease: None,
        }
    }

    /// Tries until this candidate leads. Answers when it began to.
    pub async fn acquire(&mut self) -> u64 {
        loop {
            let began = self.clock.now_milliseconds();
            match self.step().await {
                Ok(Step::Holding) => return began,
                Ok(Step::Waiting { holder }) => tracing::debug!(holder, "another replica leads"),
                Err(error) => tracing::warn!(%error, "the Lease could not be acquired"),
            }
            tokio::time::sleep(RETRY_PERIOD).await;
        }
    }

    /// Renews until the Lease is lost or `stop`. `since_ms` is when the last write began that went well.
    ///
    /// # Errors
    /// The Lease is lost: nothing may be written any more.
    pub async fn hold(&mut self, mut since_ms: u64, stop: &CancellationToken) -> Result<(), Lost> {
        let deadline_ms = u64::try_from(RENEW_DEADLINE.as_millis()).unwrap_or(u64::MAX);
        loop {
            tokio::select! {
                () = tokio::time::sleep(RETRY_PERIOD) => {}
                () = stop.cancelled() => return Ok(()),
            }
            let began = self.clock.now_milliseconds();
            let left = since_ms.saturating_add(deadline_ms).saturating_sub(began);
            let limit = ATTEMPT_LIMIT.min(Duration::from_millis(left));
            let step = match tokio::time::timeout(limit, self.step()).await {
                Ok(step) => step,
                Err(_) => Err(ApiError::Timeout {
                    call: "renew the Lease",
                }),
            };
            match step {
                Ok(Step::Holding) => since_ms = began,
                Ok(Step::Waiting { holder }) => return Err(Lost::Taken { holder }),
                Err(source) => {
                    if self.clock.now_milliseconds() >= since_ms.saturating_add(deadline_ms) {
                        return Err(Lost::NotRenewed { source });
                    }
                    tracing::warn!(error = %source, "the Lease could not be renewed, trying again");
                }
            }
        }
    }

    /// Gives the Lease back, so that another replica need not wait until it is over.
    ///
    /// # Errors
    /// It could not be written; then it ends by itself.
    pub async fn release(&mut self) -> Result<(), ApiError> {
        let Some(mut lease) = self.lease.take() else {
            return Ok(());
        };
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(self.now());
        call(
            "give back the Lease",
            self.api.replace(LEASE_NAME, &PostParams::default(), &lease),
        )
        .await?;
        Ok(())
    }

    /// One look and, where it is due, one write.
    async fn step(&mut self) -> Result<Step, ApiError> {
        let lease = call_opt("read the Lease", self.api.get(LEASE_NAME)).await?;
        let now = self.clock.now_milliseconds();
        self.observed = std::mem::take(&mut self.observed).after(lease.as_ref(), now);
        let held_before = self.lease.is_some();
        let (lease, transitions) = match (decide(&self.observed, &self.identity, now), lease) {
            (Decision::Wait { holder, .. }, _) => {
                self.lease = None;
                return Ok(Step::Waiting { holder });
            }
            (Decision::Create, _) | (_, None) => (self.new_lease(), 0),
            (Decision::Take { reason, transitions }, Some(lease)) => {
                // A leader that finds its Lease taken and given back has been overtaken meanwhile.
                if held_before {
                    return Ok(Step::Waiting {
                        holder: "nobody".to_owned(),
                    });
                }
                tracing::info!(?reason, transitions, "taking the Lease");
                (lease, transitions)
            }
            (Decision::Renew, Some(lease)) => (lease, self.observed.transitions),
        };
        let written = self.write(lease, transitions).await?;
        self.observed = std::mem::take(&mut self.observed).after(Some(&written), now);
        self.lease = Some(written);
        Ok(Step::Holding)
    }

    async fn write(&self, mut lease: Lease, transitions: i32) -> Result<Lease, ApiError> {
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            spec.acquire_time = Some(self.now());
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = i32::try_from(LEASE_DURATION.as_secs()).ok();
        spec.lease_transitions = Some(transitions);
        spec.renew_time = Some(self.now());
        let parameters = PostParams::default();
        if lease.resource_version().is_none() {
            return call("create the Lease", self.api.create(&parameters, &lease)).await;
        }
        call(
            "write the Lease",
            self.api.replace(LEASE_NAME, &parameters, &lease),
        )
        .await
    }

    fn new_lease(&self) -> Lease {
        let labels = [
            (names::MANAGED_BY_LABEL, names::PROJECT),
            (names::NAME_LABEL, names::PROJECT),
        ];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Lease {
            metadata: ObjectMeta {
                name: Some(LEASE_NAME.to_owned()),
                labels: Some(labels.into()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec::default()),
        }
    }

    fn now(&self) -> MicroTime {
        let milliseconds = i64::try_from(self.clock.now_milliseconds()).unwrap_or(i64::MAX);
        MicroTime(Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::MAX))
    }
}

enum Step {
    Holding,
    Waiting { holder: String },
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: &str = "operator-a";
    const OTHER: &str = "operator-b";

    fn lease(version: &str, holder: Option<&str>) -> Lease {
        Lease {
            metadata: ObjectMeta {
                resource_version: Some(version.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: holder.map(str::to_owned),
                lease_duration_seconds: Some(15),
                lease_transitions: Some(3),
                // Far in the future: nobody may believe it.
                renew_time: Some(MicroTime(Timestamp::from_second(4_000_000_000).unwrap())),
                ..LeaseSpec::default()
            }),
        }
    }

    #[test]
    fn a_lease_that_does_not_exist_is_made() {
        assert_eq!(
            decide(&Observed::default().after(None, 5), ME, 5),
            Decision::Create
        );
    }

    #[test]
    fn a_lease_of_another_is_waited_for_from_when_it_was_first_seen() {
        let observed = Observed::default().after(Some(&lease("1", Some(OTHER))), 100_000);
        let wait = Decision::Wait {
            holder: OTHER.to_owned(),
            for_ms: 14_000,
        };
        assert_eq!(decide(&observed, ME, 101_000), wait);
        let observed = observed.after(Some(&lease("1", Some(OTHER))), 114_999);
        assert!(matches!(
            decide(&observed, ME, 114_999),
            Decision::Wait { for_ms: 1, .. }
        ));
        assert_eq!(
            decide(&observed, ME, 115_000),
            Decision::Take {
                reason: TakeReason::Expired,
                transitions: 4
            }
        );
    }

    #[test]
    fn a_renewed_lease_lasts_from_when_the_renewal_was_seen() {
        let observed = Observed::default().after(Some(&lease("1", Some(OTHER))), 0);
        let observed = observed.after(Some(&lease("2", Some(OTHER))), 14_000);
        assert!(matches!(
            decide(&observed, ME, 28_000),
            Decision::Wait { for_ms: 1_000, .. }
        ));
    }

    #[test]
    fn a_released_lease_is_taken_at_once_and_an_own_one_renewed() {
        for holder in [None, Some("")] {
            let observed = Observed::default().after(Some(&lease("1", holder)), 0);
            let taken = Decision::Take {
                reason: TakeReason::Released,
                transitions: 4,
            };
            assert_eq!(decide(&observed, ME, 0), taken);
        }
        let observed = Observed::default().after(Some(&lease("1", Some(ME))), 0);
        assert_eq!(decide(&observed, ME, 60_000), Decision::Renew);
    }

    #[test]
    fn a_holder_gives_up_before_anybody_else_may_take_over() {
        assert!(RENEW_DEADLINE + RETRY_PERIOD < LEASE_DURATION);
    }
}
