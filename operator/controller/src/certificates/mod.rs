//! The certificate authority of each cluster, the bundle that its workers trust, and its coordinator's certificate.
//!
//! Owns the Secret with the authority's key (in the operator's namespace), the bundle ConfigMap and the certificate's
//! Secret (in the cluster's namespace), and their renewal without a moment in which a worker and a coordinator don't
//! agree. Does not own who mounts them.

pub mod issue;
mod objects;
pub mod plan;
#[cfg(test)]
mod simulation;
pub mod state;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, ObjectReference, Secret};
use kube::core::PartialObjectMeta;
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::store::Store;
use kube::{Resource, ResourceExt};
use prover_crds::{ProverCluster, names, reasons};

use crate::api::{ApiError, call};
use crate::retry::Retry;
use crate::watches::{Queue, reference};
use crate::{ClusterKey, Context};
use issue::IssueError;
use objects::Objects;
use plan::{LeafReason, Step, plan};

/// Steps that may be due at once: an authority, the bundle, a certificate, and each once more.
const MOST_STEPS: usize = 8;

/// Authorities and certificates could not be looked after.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The API server did not do what was asked.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The cryptographic library refused.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The ProverCluster has no uid, so it does not come from an API server.
    #[error("the ProverCluster {name} has no uid")]
    NoUid {
        /// Its name.
        name: String,
    },
    /// Steps did not come to an end: a fault of ours.
    #[error("the certificates of {name} did not settle within {MOST_STEPS} steps")]
    Unsettled {
        /// Name of the ProverCluster.
        name: String,
    },
}

impl CertificateError {
    /// Short name for metrics and events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            CertificateError::Api(error) => error.category(),
            CertificateError::Issue(_) => "certificate_issue",
            CertificateError::NoUid { .. } => "certificate_no_uid",
            CertificateError::Unsettled { .. } => "certificate_unsettled",
        }
    }

    /// When it is worth trying again.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            CertificateError::Api(error) => error.retry(),
            CertificateError::NoUid { .. } => Retry::Never,
            CertificateError::Issue(_) | CertificateError::Unsettled { .. } => Retry::Backoff,
        }
    }
}

/// What is in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificatesApplied {
    /// The bundle in PEM, as the workers have it.
    pub bundle_pem: String,
    /// End of the coordinator's certificate, in milliseconds since the epoch.
    pub leaf_not_after_ms: u64,
    /// When something is due next, in milliseconds since the epoch.
    pub next_due_ms: u64,
}

/// Versions of the objects that were found, or put, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Versions {
    authority: Option<String>,
    bundle: Option<String>,
    leaf: Option<String>,
}

#[derive(Clone, Debug)]
struct Verified {
    versions: Versions,
    applied: CertificatesApplied,
}

/// What was found in order, so that looking again costs no call until an object changes or something is due.
#[derive(Debug, Default)]
pub struct CertificateMemory(Mutex<BTreeMap<ClusterKey, Verified>>);

impl CertificateMemory {
    fn get(&self, key: &ClusterKey) -> Option<Verified> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
            .cloned()
    }

    fn set(&self, key: &ClusterKey, verified: Option<Verified>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match verified {
            Some(verified) => all.insert(key.clone(), verified),
            None => all.remove(key),
        };
    }

    /// What is in place for a cluster, where it was looked at since the operator started.
    #[must_use]
    pub fn applied(&self, key: &ClusterKey) -> Option<CertificatesApplied> {
        self.get(key).map(|verified| verified.applied)
    }

    /// Clusters for which something is due at `now_ms`.
    #[must_use]
    pub fn due(&self, now_ms: u64) -> Vec<ClusterKey> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = all
            .iter()
            .filter(|(_, verified)| verified.applied.next_due_ms <= now_ms);
        due.map(|(key, _)| key.clone()).collect()
    }
}

/// Name of the Secret with a cluster's authority, in the operator's namespace.
#[must_use]
pub fn authority_secret(uid: &str) -> String {
    format!("authority-{uid}")
}

/// Puts authority, bundle and certificate of a cluster in order. No call is made while nothing changed and nothing is
/// due.
///
/// # Errors
/// See [`CertificateError`].
pub async fn ensure(
    context: &Context,
    cluster: &ProverCluster,
    key: &ClusterKey,
) -> Result<CertificatesApplied, CertificateError> {
    let uid = cluster.uid().ok_or_else(|| CertificateError::NoUid {
        name: key.name.clone(),
    })?;
    let now_ms = context.clock.now_milliseconds();
    let verified = context.certificates.get(key);
    let in_order = verified.filter(|verified| {
        verified.applied.next_due_ms > now_ms && verified.versions == cached(context, &uid, key)
    });
    if let Some(verified) = in_order {
        return Ok(verified.applied);
    }
    context.certificates.set(key, None);
    let verified = put_in_order(context, cluster, key, &uid, now_ms).await?;
    let applied = verified.applied.clone();
    context.certificates.set(key, Some(verified));
    Ok(applied)
}

/// Deletes a cluster's authority: the other objects go with their owner, this one lies in another namespace.
///
/// # Errors
/// The API server did not do what was asked.
pub async fn forget(context: &Context, cluster: &ProverCluster) -> Result<(), CertificateError> {
    let uid = cluster.uid().ok_or_else(|| CertificateError::NoUid {
        name: cluster.name_any(),
    })?;
    objects::delete_authority(context, &uid).await?;
    context.certificates.set(&crate::watches::key_of(cluster), None);
    Ok(())
}

fn cached(context: &Context, uid: &str, key: &ClusterKey) -> Versions {
    fn version<K>(store: &Store<PartialObjectMeta<K>>, namespace: &str, name: &str) -> Option<String>
    where
        K: Resource<DynamicType = ()> + Clone + 'static,
    {
        let key = ClusterKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        store
            .get(&reference(&key))
            .and_then(|object| object.resource_version())
    }
    let caches = &context.caches;
    Versions {
        authority: version::<Secret>(
            &caches.secrets,
            &context.settings.namespace,
            &authority_secret(uid),
        ),
        bundle: version::<ConfigMap>(&caches.config_maps, &key.namespace, &names::ca_bundle(&key.name)),
        leaf: version::<Secret>(&caches.secrets, &key.namespace, &names::tls_secret(&key.name)),
    }
}

async fn put_in_order(
    context: &Context,
    cluster: &ProverCluster,
    key: &ClusterKey,
    uid: &str,
    now_ms: u64,
) -> Result<Verified, CertificateError> {
    let mut objects = Objects::read(context, cluster, key, uid).await?;
    let title = format!("{}/{}", key.namespace, key.name);
    let mut steps = 0;
    let next_due_ms = loop {
        let step = plan(&objects.state.facts(now_ms), now_ms);
        if let Step::Keep { until_ms } = step {
            break until_ms;
        }
        steps += 1;
        if steps > MOST_STEPS {
            return Err(CertificateError::Unsettled {
                name: key.name.clone(),
            });
        }
        let replaced = objects.is_replacing(&step);
        let changed = objects.state.take(&step, &title, now_ms)?;
        objects.write(context, cluster, changed).await?;
        context.metrics.certificate_step(step.as_str());
        tracing::info!(cluster = title, step = step.as_str(), "certificates");
        if replaced || is_worth_telling(&step) {
            tell(context, cluster, &step, replaced).await;
        }
    };
    Ok(Verified {
        versions: objects.versions(),
        applied: CertificatesApplied {
            bundle_pem: objects.bundle_pem(),
            leaf_not_after_ms: objects
                .state
                .leaf
                .as_ref()
                .map_or(now_ms, |leaf| leaf.not_after_ms),
            next_due_ms,
        },
    })
}

fn is_worth_telling(step: &Step) -> bool {
    matches!(
        step,
        Step::StartRotation | Step::SwitchAuthority | Step::FinishRotation
    ) || matches!(step, Step::IssueLeaf(LeafReason::Expired))
}

async fn tell(context: &Context, cluster: &ProverCluster, step: &Step, replaced: bool) {
    let (type_, note) = match step {
        Step::CreateAuthority => (
            EventType::Warning,
            "the authority's Secret was gone or could not be read: a new one was made",
        ),
        Step::PublishBundle(_) => (
            EventType::Warning,
            "the bundle of authorities had been changed or deleted: it was restored",
        ),
        Step::IssueLeaf(LeafReason::Expired) => (
            EventType::Warning,
            "the coordinator's certificate had ended: a new one was made",
        ),
        Step::IssueLeaf(_) => (
            EventType::Warning,
            "the coordinator's certificate had been changed or deleted: a new one was made",
        ),
        Step::StartRotation => (
            EventType::Normal,
            "the authority ends soon: workers learn of its successor",
        ),
        Step::SwitchAuthority => (EventType::Normal, "the new authority signs from now on"),
        Step::FinishRotation => (
            EventType::Normal,
            "nothing of the old authority is served any more: it is forgotten",
        ),
        Step::Keep { .. } => return,
    };
    let reason = if replaced {
        reasons::CERTIFICATE_REPLACED
    } else {
        reasons::AUTHORITY_ROTATED
    };
    let event = Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note.to_owned()),
        action: "Renew".to_owned(),
        secondary: None,
    };
    let regarding: ObjectReference = cluster.object_ref(&());
    if let Err(error) = call("create an event", context.recorder.publish(&event, &regarding)).await {
        tracing::warn!(%error, "an event could not be written");
    }
}

/// Between two looks whether something is due.
const DUE_PERIOD: Duration = Duration::from_secs(60);

/// Wakes the clusters for which something is due, for as long as it is polled.
pub(crate) async fn wake_when_due(context: &Context, queue: &Queue) {
    loop {
        tokio::time::sleep(DUE_PERIOD).await;
        queue.wake_all(context.certificates.due(context.clock.now_milliseconds()));
    }
}
