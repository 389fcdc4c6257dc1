//! The watches over ProofJobs, one per allowed namespace.
//!
//! Owns which objects reach the jobs: those of this cluster that this operator looks after, trimmed of what nobody
//! needs.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Client, ResourceExt};
use prover_crds::ProofJob;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::writer::JobName;

/// Objects that a page of a list holds: inline data makes them large.
const PAGE: u32 = 100;

/// What a watch tells.
#[derive(Debug)]
pub(crate) enum Sighting {
    /// An object is there, new, changed or listed again.
    Seen(Box<ProofJob>),
    /// An object is gone.
    Gone(JobName),
    /// The list of a namespace is complete: what is not in it is gone.
    Listed {
        namespace: Arc<str>,
        present: BTreeSet<Arc<str>>,
    },
}

/// The cluster that jobs must name.
#[derive(Clone, Debug)]
pub(crate) struct ClusterName {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl ClusterName {
    /// Whether the job names this cluster and is for us to look after.
    fn is_meant_by(&self, job: &ProofJob) -> bool {
        let reference = &job.spec.cluster_ref;
        let own = job.metadata.namespace.as_deref().unwrap_or_default();
        reference.name == *self.name
            && *reference.namespace.as_deref().unwrap_or(own) == *self.namespace
            && job.is_managed_by_us()
    }
}

/// Name and uid of an object; none for one without, which no API server sends.
pub(crate) fn name_of(metadata: &kube::core::ObjectMeta) -> Option<JobName> {
    Some(JobName {
        namespace: metadata.namespace.as_deref()?.into(),
        name: metadata.name.as_deref()?.into(),
        uid: metadata.uid.as_deref()?.into(),
    })
}

/// Tells of the jobs of a namespace until it is stopped. It waits while its receiver is busy, so a long list never
/// lies in memory.
pub(crate) async fn follow(
    client: Client,
    namespace: Arc<str>,
    cluster: ClusterName,
    sightings: mpsc::Sender<Sighting>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let api: Api<DeserializeGuard<ProofJob>> = Api::namespaced(client, &namespace);
    let config = watcher::Config::default().page_size(PAGE);
    let mut events = watcher(api, config).default_backoff().boxed();
    let mut present = BTreeSet::new();
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        let Some(event) = event else { return };
        let sighting = match event {
            Ok(watcher::Event::Init) => {
                present = BTreeSet::new();
                None
            }
            Ok(watcher::Event::InitApply(object)) => {
                if let Some(uid) = object.uid() {
                    present.insert(Arc::from(uid));
                }
                seen(object, &cluster, &metrics)
            }
            Ok(watcher::Event::Apply(object)) => seen(object, &cluster, &metrics),
            Ok(watcher::Event::Delete(object)) => name_of(kube::Resource::meta(&object)).map(Sighting::Gone),
            Ok(watcher::Event::InitDone) => Some(Sighting::Listed {
                namespace: Arc::clone(&namespace),
                present: std::mem::take(&mut present),
            }),
            Err(error) => {
                metrics.watch_errors.with_label_values(&["proofjobs"]).inc();
                tracing::warn!(%namespace, %error, "the watch over ProofJobs broke and begins again");
                None
            }
        };
        let Some(sighting) = sighting else { continue };
        tokio::select! {
            () = stop.cancelled() => return,
            sent = sightings.send(sighting) => if sent.is_err() { return },
        }
    }
}

fn seen(object: DeserializeGuard<ProofJob>, cluster: &ClusterName, metrics: &Metrics) -> Option<Sighting> {
    match object.0 {
        Ok(mut job) if cluster.is_meant_by(&job) => {
            job.metadata.managed_fields = None;
            Some(Sighting::Seen(Box::new(job)))
        }
        Ok(_) => None,
        Err(error) => {
            metrics.undecodable.inc();
            tracing::error!(
                namespace = error.metadata.namespace.as_deref().unwrap_or_default(),
                name = error.metadata.name.as_deref().unwrap_or_default(),
                %error, "a ProofJob can't be read and is passed over"
            );
            None
        }
    }
}
