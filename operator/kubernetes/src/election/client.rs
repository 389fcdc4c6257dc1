//! The Lease of a ProverCluster on the API server: looking at it, taking it, keeping it, giving it back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::api::{Api, GetParams, PostParams};
use kube::core::ObjectMeta;
use kube::{Client, Resource, ResourceExt};
use prover_crds::{ProverCluster, names};
use prover_runtime::Clock;

use super::lease::{
    ADDRESS_ANNOTATION, Decision, LEASE_MS, Observed, PROBES_ANNOTATION, RENEW_PERIOD_MS, TakeReason, decide,
};
use crate::metrics::Metrics;

/// Longest wait for an answer to a look. What is asked for again tells later what the late answer would have told.
const LOOK_LIMIT: Duration = Duration::from_millis(2_000);
/// Longest wait for an answer to a renewal: several fit into the life of a Lease.
const WRITE_LIMIT: Duration = Duration::from_millis(1_000);

/// Why the Lease could not be looked at or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    /// The API server refused or could not be reached.
    #[error("the API server did not serve the Lease: {source}")]
    Api { source: Box<kube::Error> },
    /// It took too long.
    #[error("the API server did not answer within {limit:?}")]
    Timeout { limit: Duration },
}

impl LeaseError {
    /// Label of metrics. All of them are tried again with the next look.
    pub(crate) fn category(&self) -> &'static str {
        match self {
            LeaseError::Api { source } => match &**source {
                kube::Error::Api(status) if status.code == 403 => "forbidden",
                kube::Error::Api(_) => "refused",
                _ => "unreachable",
            },
            LeaseError::Timeout { .. } => "timeout",
        }
    }
}

/// Who takes part in the election.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// Name of the pod.
    pub(crate) pod: String,
    /// Where workers reach it, as HOST:PORT.
    pub(crate) address: String,
    /// Where it answers probes, as HOST:PORT.
    pub(crate) probes: String,
    /// Namespace of the ProverCluster.
    pub(crate) namespace: String,
    /// Name of the ProverCluster.
    pub(crate) cluster: String,
    /// UID of the ProverCluster, which the Lease goes with.
    pub(crate) cluster_uid: String,
}

/// Until when nobody else can have taken the Lease, in milliseconds of this process's clock. A leader writes statuses only
/// until then, so that one that was stopped and wakes up overwrites nothing of its successor's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Confirmed(Arc<AtomicU64>);

impl Confirmed {
    pub(crate) fn holds(&self, now_ms: u64) -> bool {
        now_ms < self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set_until(&self, at_ms: u64) {
        self.0.store(at_ms, Ordering::Relaxed);
    }
}

/// The Lease.
#[derive(Debug)]
pub(crate) struct LeaseClient {
    api: Api<Lease>,
    candidate: Candidate,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    observed: Observed,
    /// As it was seen or written last.
    lease: Option<Lease>,
    /// Who had it before this replica took it.
    before: Option<String>,
}

impl LeaseClient {
    pub(crate) fn new(
        client: Client,
        candidate: Candidate,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> LeaseClient {
        LeaseClient {
            api: Api::namespaced(client, &candidate.namespace),
            candidate,
            clock,
            metrics,
            observed: Observed::default(),
            lease: None,
            before: None,
        }
    }

    /// The pod of the leader before this one, where that was another.
    pub(crate) fn predecessor(&self) -> Option<String> {
        let holder = self.leader().and_then(|leader| leader.holder.clone());
        holder.or_else(|| self.before.clone())
    }

    pub(crate) fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    /// Whether the Lease, as it was seen last, is another's.
    pub(crate) fn leader(&self) -> Option<&Observed> {
        let other = |holder: &String| *holder != self.candidate.pod;
        Some(&self.observed).filter(|observed| observed.holder.as_ref().is_some_and(other))
    }

    fn now_ms(&self) -> u64 {
        self.clock.now_milliseconds()
    }

    fn name(&self) -> String {
        names::coordinator_name(&self.candidate.cluster)
    }

    async fn call<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<Option<T>, LeaseError> {
        let answer = match tokio::time::timeout(limit, call).await {
            Ok(Ok(answer)) => Ok(Some(answer)),
            // Somebody else was quicker, or nothing is there.
            Ok(Err(kube::Error::Api(status))) if [404, 409].contains(&status.code) => Ok(None),
            Ok(Err(source)) => Err(LeaseError::Api {
                source: Box::new(source),
            }),
            Err(_) => Err(LeaseError::Timeout { limit }),
        };
        if let Err(error) = &answer {
            self.metrics
                .lease_errors
                .with_label_values(&[error.category()])
                .inc();
        }
        answer
    }

    /// Looks at the Lease, and says what is to be done about it.
    ///
    /// # Errors
    /// Nobody can tell now.
    pub(crate) async fn look(&mut self) -> Result<Decision, LeaseError> {
        // A cache may answer: what it does not know yet, the version of a write tells.
        let began_ms = self.now_ms();
        let looked = self
            .call(LOOK_LIMIT, self.api.get_with(&self.name(), &GetParams::any()))
            .await;
        let now_ms = self.now_ms();
        let before = std::mem::take(&mut self.observed);
        let lease = match looked {
            Ok(lease) => lease,
            Err(error) => {
                self.observed = before.unanswered(now_ms);
                return Err(error);
            }
        };
        self.observed = before.after(lease.as_ref(), began_ms, now_ms);
        self.lease = lease;
        Ok(decide(&self.observed, &self.candidate.pod))
    }

    /// Writes this replica into the Lease as it was seen last; false where somebody else was quicker.
    ///
    /// # Errors
    /// Nobody can tell whether it was written.
    pub(crate) async fn write(&mut self, confirmed: &Confirmed) -> Result<bool, LeaseError> {
        let began = self.now_ms();
        let holder = self.leader().and_then(|leader| leader.holder.clone());
        let before = self.lease.clone();
        let lease = self.mine(before.unwrap_or_default());
        let parameters = PostParams::default();
        let written = match lease.resource_version() {
            None => {
                self.call(WRITE_LIMIT, self.api.create(&parameters, &lease))
                    .await?
            }
            Some(_) => {
                self.call(WRITE_LIMIT, self.api.replace(&self.name(), &parameters, &lease))
                    .await?
            }
        };
        let Some(written) = written else {
            self.lease = None;
            return Ok(false);
        };
        let now_ms = self.now_ms();
        self.observed = std::mem::take(&mut self.observed).after(Some(&written), now_ms, now_ms);
        self.lease = Some(written);
        self.before = holder.or(self.before.take());
        confirmed.set_until(began.saturating_add(LEASE_MS));
        Ok(true)
    }

    fn mine(&self, mut lease: Lease) -> Lease {
        let candidate = &self.candidate;
        let metadata = &mut lease.metadata;
        if metadata.name.is_none() {
            *metadata = self.metadata();
        }
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(ADDRESS_ANNOTATION.to_owned(), candidate.address.clone());
        annotations.insert(PROBES_ANNOTATION.to_owned(), candidate.probes.clone());
        let now = self.moment();
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        if spec.holder_identity.as_ref() != Some(&candidate.pod) {
            let transitions = spec.lease_transitions.unwrap_or(0);
            spec.lease_transitions = Some(transitions.saturating_add(1));
            spec.acquire_time = Some(now.clone());
        }
        spec.holder_identity = Some(candidate.pod.clone());
        spec.lease_duration_seconds = i32::try_from(LEASE_MS / 1_000).ok();
        spec.renew_time = Some(now);
        lease
    }

    fn metadata(&self) -> ObjectMeta {
        let candidate = &self.candidate;
        let labels = [
            (names::MANAGED_BY_LABEL, names::PROJECT),
            (names::NAME_LABEL, names::PROJECT),
            (names::COMPONENT_LABEL, names::COORDINATOR),
            (names::CLUSTER_LABEL, &candidate.cluster),
        ];
        let owner = OwnerReference {
            api_version: ProverCluster::api_version(&()).into_owned(),
            kind: ProverCluster::kind(&()).into_owned(),
            name: candidate.cluster.clone(),
            uid: candidate.cluster_uid.clone(),
            ..OwnerReference::default()
        };
        ObjectMeta {
            name: Some(self.name()),
            namespace: Some(candidate.namespace.clone()),
            labels: Some(
                labels
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
            ),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        }
    }

    fn moment(&self) -> MicroTime {
        let milliseconds = i64::try_from(self.now_ms()).unwrap_or(i64::MAX);
        MicroTime(Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::MAX))
    }

    /// Renews the Lease for as long as it is polled. One that another holds is left alone until it is over: whoever leads
    /// wants it back then, since only the log says who that is.
    pub(crate) async fn keep(&mut self, confirmed: &Confirmed) {
        let mut due_ms = self.now_ms();
        loop {
            due_ms = due_ms.saturating_add(RENEW_PERIOD_MS).max(self.now_ms());
            let wait = due_ms.saturating_sub(self.now_ms());
            tokio::time::sleep(Duration::from_millis(wait)).await;
            let kept = if self.observed.holder.as_ref() == Some(&self.candidate.pod) && self.lease.is_some() {
                self.write(confirmed).await
            } else {
                self.regain(confirmed).await
            };
            match kept {
                Ok(true) => {}
                Ok(false) => tracing::warn!(holder = ?self.observed.holder, "another replica has the Lease"),
                Err(error) => tracing::warn!(%error, "the Lease can't be renewed; whoever leads leads on"),
            }
        }
    }

    async fn regain(&mut self, confirmed: &Confirmed) -> Result<bool, LeaseError> {
        match self.look().await? {
            Decision::Wait { .. } => Ok(false),
            Decision::Create | Decision::Renew => self.write(confirmed).await,
            Decision::Take(TakeReason::Released | TakeReason::Expired) => self.write(confirmed).await,
        }
    }

    /// Gives the Lease back, if this replica has it, so that nobody waits until it is over.
    pub(crate) async fn release(&mut self, confirmed: &Confirmed) {
        confirmed.set_until(0);
        if self.observed.holder.as_ref() != Some(&self.candidate.pod) {
            return;
        }
        let Some(mut lease) = self.lease.take() else {
            return;
        };
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        spec.holder_identity = Some(String::new());
        spec.renew_time = Some(self.moment());
        let parameters = PostParams::default();
        match self
            .call(WRITE_LIMIT, self.api.replace(&self.name(), &parameters, &lease))
            .await
        {
            Ok(Some(_)) => tracing::info!("the Lease was given back"),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the Lease could not be given back and ends by itself"),
        }
    }
}
