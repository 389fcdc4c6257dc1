//! Making views when they are due.

use std::collections::BTreeMap;
use std::sync::Arc;

use prover_core::{BackendVersion, DeviceClass, Milliseconds, Timestamp};

use super::Engine;
use crate::catalogue::Backend;
use crate::record::duration;
use crate::view::{ClusterView, GroupProofs, Phase, QueueDepth, WithheldProof, WorkerView};

/// Shortest time between two views of workers and queue.
pub(super) const CLUSTER_INTERVAL: Milliseconds = Milliseconds(200);

impl Engine {
    pub(super) fn show_due(&mut self) {
        let now = self.now();
        while let Some((due, job)) = self.due_views.first().copied() {
            if due > now {
                break;
            }
            self.publish(job);
            // A job without a record has no view to make.
            self.due_views.remove(&(due, job));
        }
        if self.cluster_changed && self.cluster_published + CLUSTER_INTERVAL <= now {
            self.cluster_changed = false;
            self.cluster_published = now;
            let view = self.cluster_view(now);
            self.parts.metrics.show(&view);
            self.parts.metrics.show_cache(self.state.action_cache());
            self.parts.cluster.send_replace(Arc::new(view));
        }
    }

    /// All workers by name; notes since when they have had nothing to do.
    fn worker_views(&mut self, now: Timestamp) -> Vec<WorkerView> {
        let mut views = Vec::with_capacity(self.workers.len());
        for id in self.worker_ids.values() {
            let Some(worker) = self.workers.get_mut(id) else {
                continue;
            };
            let told = self.state.worker(*id);
            let attempts = told.as_ref().map_or(0, |told| told.running + told.prefetched);
            worker.idle_since = (attempts == 0).then(|| worker.idle_since.unwrap_or(now));
            views.push(WorkerView {
                worker_id: worker.spec.name.clone(),
                group: worker.spec.group.clone(),
                connected: worker.session.is_some(),
                pod: worker.identity.pod_name().cloned(),
                draining: told.as_ref().is_some_and(|told| told.draining),
                leaving: told.as_ref().is_some_and(|told| told.leaving),
                idle_since: worker.idle_since,
                failed_devices: told.as_ref().map_or(0, |told| told.failed_devices),
                backend: worker.backend.version.clone(),
                devices: worker.spec.devices.len(),
                attempts,
                host_memory_bytes: worker.spec.host_memory_bytes,
                host_memory_used_bytes: worker.host_memory_used_bytes,
                process_id: worker.process_id,
            });
        }
        views
    }

    fn cluster_view(&mut self, now: Timestamp) -> ClusterView {
        let workers = self.worker_views(now);
        ClusterView {
            epoch: self.parts.epoch,
            workers,
            queue_depth: self.queue_depth(),
            groups: self.group_depths(),
            proofs: self.group_proofs(),
            pinned_backends: self.pinned_backends(),
        }
    }

    /// Workers of one group mostly run one backend, so that little is said of many.
    fn group_proofs(&self) -> Vec<GroupProofs> {
        let mut backends: BTreeMap<(&Arc<str>, &BackendVersion), (&Backend, usize)> = BTreeMap::new();
        for worker in self.workers.values().filter(|worker| worker.session.is_some()) {
            let key = (&worker.spec.group, &worker.backend.version);
            backends.entry(key).or_insert((&*worker.backend, 0)).1 += 1;
        }
        let mut groups: BTreeMap<&Arc<str>, GroupProofs> = BTreeMap::new();
        for ((group, _), (backend, workers)) in backends {
            let proofs = groups.entry(group).or_insert_with(|| GroupProofs {
                group: group.clone(),
                ..GroupProofs::default()
            });
            let offered = backend.offers.iter();
            proofs
                .offered
                .extend(offered.map(|offer| (offer.system.clone(), offer.kind.clone())));
            let withheld = backend.description.withheld.iter();
            proofs.withheld.extend(withheld.map(|told| WithheldProof {
                system: told.system.clone(),
                kind: told.kind.clone(),
                reason: told.reason.clone(),
                message: told.message.clone(),
                workers,
            }));
        }
        groups.into_values().collect()
    }

    fn queue_depth(&self) -> QueueDepth {
        let mut depth = QueueDepth::default();
        for told in self.state.queue_depth() {
            let class = match told.device_class {
                DeviceClass::Cpu => &mut depth.cpu,
                DeviceClass::Gpu => &mut depth.gpu,
            };
            class.waiting_tasks += told.waiting;
            class.running_tasks += told.running;
            class.waiting_device_seconds += duration(told.waiting_device_time).as_secs_f64();
            class.running_device_seconds += duration(told.running_device_time).as_secs_f64();
        }
        let phases = |phase| self.jobs.values().filter(|record| record.phase == phase).count() as u64;
        depth.queued_jobs = phases(Phase::Queued) + self.waiting.len() as u64;
        depth.running_jobs = phases(Phase::Running);
        depth
    }
}
