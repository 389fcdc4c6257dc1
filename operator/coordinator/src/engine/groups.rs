//! Work per worker group: what the operator scales by.
//!
//! Owns what is remembered of groups, so that work counts for a group that has no worker now. Does not own how many
//! workers there shall be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prover_core::{BackendVersion, JobPhase, WaitReason, WorkerSpec};

use super::Engine;
use crate::record::duration;
use crate::view::{ClassDepth, GroupDepth, GroupOffer};

/// Groups that are remembered; a ProverCluster has at most 32.
const GROUPS: usize = 64;

/// What is known of the groups.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// From the ProverCluster.
    pub(super) offers: Vec<GroupOffer>,
    /// The worker of each group that connected last.
    seen: BTreeMap<Arc<str>, WorkerSpec>,
}

impl Groups {
    /// A worker of a group presents itself.
    pub(super) fn remember(&mut self, spec: &WorkerSpec) {
        if self.seen.len() < GROUPS || self.seen.contains_key(&spec.group) {
            self.seen.insert(spec.group.clone(), spec.clone());
        }
    }

    fn names(&self) -> BTreeSet<Arc<str>> {
        let offered = self.offers.iter().map(|offer| offer.group.clone());
        self.seen.keys().cloned().chain(offered).take(GROUPS).collect()
    }
}

impl Engine {
    pub(super) fn group_depths(&self) -> Vec<GroupDepth> {
        let names = self.groups.names();
        let mut depths: BTreeMap<Arc<str>, GroupDepth> = names
            .into_iter()
            .map(|group| {
                let mut work = ClassDepth::default();
                if let Some(spec) = self.groups.seen.get(&group) {
                    let (tasks, time) = self.state.waiting_for(spec);
                    work.waiting_tasks = tasks;
                    work.waiting_device_seconds = duration(time).as_secs_f64();
                }
                let jobs_without_worker = self.jobs_without_worker(&group);
                let depth = GroupDepth {
                    group: group.clone(),
                    work,
                    jobs_without_worker,
                };
                (group, depth)
            })
            .collect();
        for told in self.state.workers() {
            if let Some(depth) = depths.get_mut(&told.spec.group) {
                let (tasks, time) = self.state.device_work(told.worker);
                depth.work.running_tasks += tasks;
                depth.work.running_device_seconds += duration(time).as_secs_f64();
            }
        }
        depths.into_values().collect()
    }

    /// Jobs that no connected worker can take, but a worker of this group could.
    fn jobs_without_worker(&self, group: &str) -> u64 {
        let offered: BTreeSet<&str> = self
            .groups
            .offers
            .iter()
            .filter(|offer| *offer.group == *group)
            .map(|offer| &*offer.offered_as)
            .collect();
        let seen = self.groups.seen.get(group);
        let unpinned = self
            .waiting
            .values()
            .filter(|job| offered.contains(job.system()))
            .count();
        let pinned = self
            .jobs
            .iter()
            .filter(|(job, record)| {
                let waits = self.state.job(**job).is_some_and(|job| {
                    matches!(
                        job.phase,
                        JobPhase::Queued(WaitReason::NoWorkerOfBackend | WaitReason::NoWorkerLargeEnough)
                    )
                });
                waits
                    && (offered.contains(&*record.request.system)
                        || seen.is_some_and(|spec| spec.backend == record.backend.version))
            })
            .count();
        (unpinned + pinned) as u64
    }

    /// Backend versions that unfinished jobs are pinned to.
    pub(super) fn pinned_backends(&self) -> Vec<BackendVersion> {
        let unfinished = self.jobs.values().filter(|record| !record.phase.is_terminal());
        let versions: BTreeSet<&BackendVersion> = unfinished.map(|record| &record.backend.version).collect();
        versions.into_iter().cloned().collect()
    }
}
