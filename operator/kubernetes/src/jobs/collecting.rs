//! Collecting what deleted jobs left in the store, and telling that it is done.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kube::api::Api;
use kube::core::ObjectMeta;
use prover_coordinator::{Milliseconds, Timestamp};
use prover_crds::conditions::{self, Conditions};
use prover_crds::{JobDefaults, ProofJob, ProofJobSpec, ProofJobStatus, reasons};

use super::entry::{Job, Stage, SweepReason};
use super::sightings::own_part;
use super::{Jobs, PARALLEL_SWEEPS};
use crate::collect::{job_prefix, kept, sweep};
use crate::writer::JobName;
use crate::{events, status};

/// Between two tries to collect the artifacts of a job.
const RETRY: Milliseconds = Milliseconds(5_000);
/// Longest time that reading one object may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// How a collection ended.
#[derive(Debug)]
pub(super) struct Swept {
    name: JobName,
    result: Result<Collected, String>,
}

#[derive(Debug)]
struct Collected {
    objects: u64,
    /// As the API server has it, where it had to be read.
    status: Option<ProofJobStatus>,
}

impl Jobs {
    /// The object of a job that had ended before is being deleted.
    pub(super) fn collect_done(&mut self, name: &JobName, object: &ProofJob) {
        self.collect(name, object, SweepReason::Deleted);
    }

    /// Begins to delete what the retention of is over, for jobs that have ended.
    pub(super) fn end_retentions(&mut self, now: Timestamp) {
        while let Some(name) = self.retained.take_due(self.retention(), now) {
            if !self.done.contains(&name) {
                continue;
            }
            self.collect(&name, &mk_object(&name), SweepReason::RetentionOver);
        }
    }

    /// How long proofs stay after the end of their jobs; none: for ever.
    pub(super) fn retention(&self) -> Option<Milliseconds> {
        let seconds = self.rules.cluster.as_ref()?.defaults.proof_retention_seconds?;
        let seconds = u64::try_from(seconds).ok()?;
        Some(Milliseconds(seconds.saturating_mul(1_000)))
    }

    /// Collects what ended jobs left whose objects were being deleted before this replica led.
    pub(super) fn collect_inherited(&mut self) {
        for name in std::mem::take(&mut self.uncollected) {
            self.collect(&name, &mk_object(&name), SweepReason::Deleted);
        }
    }

    fn collect(&mut self, name: &JobName, object: &ProofJob, reason: SweepReason) {
        self.done.remove(name);
        self.retained.remove(name);
        let now = self.now();
        let mut job = Job::new(object, &JobDefaults::default(), now);
        job.stage = Stage::Collecting { keep: None, reason };
        self.jobs.insert(name.clone(), job);
        self.sweep_queue.insert(name.clone());
    }

    pub(super) fn start_sweeps(&mut self) {
        while self.sweeps.len() < PARALLEL_SWEEPS {
            let Some(name) = self.sweep_queue.pop_first() else {
                return;
            };
            let Some(Job {
                stage: Stage::Collecting { keep, reason },
                ..
            }) = self.jobs.get(&name)
            else {
                continue;
            };
            let (keep, reason, client) = (keep.clone(), *reason, self.parts.client.clone());
            let coordinator = Arc::clone(&self.parts.coordinator);
            let refused = self.parts.metrics.collections_refused.clone();
            let (store, uri) = (Arc::clone(&self.parts.store), self.parts.store_uri.clone());
            self.sweeps.push(Box::pin(async move {
                let collect = async {
                    let (keep, status) = match keep {
                        Some(keep) => (keep, None),
                        None => {
                            let status = read_status(client, &name).await?;
                            // Without its status nobody knows what its user keeps.
                            let Some(status) = status else {
                                return Ok(Collected {
                                    objects: 0,
                                    status: None,
                                });
                            };
                            let keep = match reason {
                                SweepReason::Deleted => kept(&status, &uri),
                                SweepReason::RetentionOver => Vec::new(),
                            };
                            (keep, Some(status))
                        }
                    };
                    let prefix = job_prefix("", &name.uid).map_err(|error| error.to_string())?;
                    // What the action cache gave to other jobs is theirs too.
                    let held = coordinator.release(&name.uid, prefix.clone()).await;
                    let mut keep: BTreeSet<Arc<str>> = keep.into_iter().map(Arc::from).collect();
                    keep.extend(held.map_err(|error| {
                        let category = error.category();
                        refused.with_label_values(&[category]).inc();
                        error.to_string()
                    })?);
                    let objects = sweep(store, prefix, &keep)
                        .await
                        .map_err(|error| error.to_string())?;
                    Ok(Collected { objects, status })
                };
                let result = collect.await;
                Swept { name, result }
            }));
        }
    }

    pub(super) fn swept(&mut self, swept: Swept) {
        let Swept { name, result } = swept;
        let now = self.now();
        let Some(job) = self.jobs.get_mut(&name) else {
            return;
        };
        let collected = match result {
            Ok(collected) => collected,
            Err(error) => {
                tracing::warn!(
                    namespace = %name.namespace, name = %name.name, error,
                    "the artifacts of a deleted job could not be collected and are tried again"
                );
                self.set_timer(&name, now + RETRY);
                return;
            }
        };
        tracing::info!(
            namespace = %name.namespace, name = %name.name, objects = collected.objects,
            "the artifacts of a deleted job are collected"
        );
        if job.gone {
            self.remove(&name);
            return;
        }
        let Stage::Collecting { reason, .. } = job.stage else {
            return;
        };
        job.stage = Stage::Collected(reason);
        let generation = job.generation;
        if let Some(status) = &collected.status {
            self.writer.known(&name, own_part(Some(status)));
        }
        let Some(latest) = self.writer.latest(&name) else {
            self.remove(&name);
            return;
        };
        let mut status = (*latest).clone();
        let generation = generation.or(status.observed_generation);
        let mut own = Conditions::new(&mut status.conditions, generation, status::time(now));
        match reason {
            SweepReason::Deleted => {
                own.set(
                    conditions::ARTIFACTS_COLLECTED,
                    true,
                    reasons::ARTIFACTS_COLLECTED,
                    "what the job left in the artifact store is deleted, but for its proof and its public values",
                );
            }
            SweepReason::RetentionOver => {
                let seconds = self.rules.cluster.as_ref().and_then(|cluster| {
                    let defaults = &cluster.defaults;
                    defaults.proof_retention_seconds
                });
                let message = format!(
                    "proof and public values were deleted, {} s after the job's end, as proofRetentionSeconds of the \
                     ProverCluster says",
                    seconds.unwrap_or_default()
                );
                own.set(conditions::PROOF_DELETED, true, reasons::RETENTION_OVER, &message);
                self.parts.teller.tell(&name, events::retention_over(message));
            }
        }
        self.writer.want(&name, status, now);
    }
}

/// What is known of an object of which only the name was kept.
fn mk_object(name: &JobName) -> ProofJob {
    let metadata = ObjectMeta {
        namespace: Some(name.namespace.to_string()),
        name: Some(name.name.to_string()),
        uid: Some(name.uid.to_string()),
        ..ObjectMeta::default()
    };
    ProofJob {
        metadata,
        ..ProofJob::new("", ProofJobSpec::default())
    }
}

/// The status as the API server has it; none where the object is gone.
async fn read_status(client: kube::Client, name: &JobName) -> Result<Option<ProofJobStatus>, String> {
    let api: Api<ProofJob> = Api::namespaced(client, &name.namespace);
    let found = tokio::time::timeout(FETCH_TIMEOUT, api.get_opt(&name.name))
        .await
        .map_err(|_| format!("the API server did not answer within {FETCH_TIMEOUT:?}"))?
        .map_err(|error| error.to_string())?;
    let found = found.filter(|object| object.metadata.uid.as_deref() == Some(&*name.uid));
    Ok(found.map(|object| object.status.unwrap_or_default()))
}
