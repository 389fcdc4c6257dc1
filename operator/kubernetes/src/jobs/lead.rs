//! From following to leading: what is kept while another replica leads, and what is done once this one does.
//!
//! A follower sees every ProofJob and knows its latest status, but writes nothing, and gives nothing to the coordinator.

use prover_crds::{ProofJob, conditions};

use super::Jobs;
use super::entry::{Job, Stage, has_ended};
use super::sightings::{deleted, own_part};
use crate::writer::JobName;

/// Failed admissions after which a job is not waited for: what the log has of a job is taken without any source.
const ADMISSIONS_WAITED_FOR: u32 = 5;

impl Jobs {
    /// A job is seen while another replica leads: all that is known of it is known anew.
    pub(super) fn seen_in_advance(&mut self, name: JobName, object: &ProofJob) {
        let deleting = object.metadata.deletion_timestamp.is_some();
        self.remove(&name);
        self.uncollected.remove(&name);
        if has_ended(object) {
            let status = object.status.as_ref();
            let collected = status.is_some_and(|status| {
                conditions::is_true(&status.conditions, conditions::ARTIFACTS_COLLECTED)
            });
            if deleting && !collected {
                self.uncollected.insert(name.clone());
            }
            if let Some(status) = status {
                self.retained.note(&name, status);
            }
            self.done.insert(name);
            return;
        }
        self.done.remove(&name);
        let cluster = self.rules.cluster.as_ref();
        let defaults = cluster.map(|cluster| cluster.defaults.clone());
        let job = Job::new(object, &defaults.unwrap_or_default(), self.now());
        self.writer.known(&name, own_part(object.status.as_ref()));
        self.writer.seen(&name, object.metadata.resource_version.clone());
        self.jobs.insert(name, job);
    }

    /// This replica leads from now on: the coordinator gets every job that has not ended, those that were accepted before
    /// first.
    pub(super) async fn begin_to_lead(&mut self) {
        self.leads = true;
        self.room = true;
        self.tell_tenants().await;
        let mut present: Vec<(bool, JobName)> = self
            .jobs
            .iter()
            .map(|(name, job)| (!job.accepted, name.clone()))
            .collect();
        present.sort();
        // Also those of which no status says so: the leader before may have ended between taking and telling.
        let inherited = self.jobs.iter().filter(|(_, job)| !job.deleting);
        self.inherited = Some(inherited.map(|(name, _)| name.clone()).collect());
        tracing::info!(
            jobs = present.len(),
            "the jobs that have not ended are looked after here now"
        );
        for (_, name) in present {
            let Some(job) = self.jobs.get(&name) else {
                continue;
            };
            if job.deleting {
                self.end_early(&name, deleted());
            } else {
                self.judge_again(&name);
            }
        }
        // Last, since these have ended and are not to be judged.
        self.collect_inherited();
    }

    /// Tells the coordinator once that it has every job that the leader before had: it forgets what it knows of others.
    pub(super) async fn tell_synced(&mut self) {
        let Some(inherited) = &mut self.inherited else {
            return;
        };
        let jobs = &self.jobs;
        inherited.retain(|name| {
            jobs.get(name).is_some_and(|job| match job.stage {
                Stage::Unknown | Stage::Backlog | Stage::Admitting => true,
                Stage::Retrying { .. } => job.failed_admissions < ADMISSIONS_WAITED_FOR,
                _ => false,
            })
        });
        if !inherited.is_empty() || !*self.synced.borrow() {
            return;
        }
        self.inherited = None;
        // A coordinator that has stopped has nothing left to forget.
        let _ = self.parts.coordinator.jobs_synced().await;
    }
}
