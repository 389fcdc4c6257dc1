//! How many jobs may run at once, in all and per namespace, and the shares of namespaces.
//!
//! A job without a place is held back by the core as if it were suspended, so it gets one without delay.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use prover_coordinator::TenantPolicy;
use prover_crds::NamespaceLimits;

use super::Jobs;
use super::entry::Stage;
use crate::cluster::ClusterRules;
use crate::writer::JobName;

/// Places that are taken.
#[derive(Debug, Default)]
pub(super) struct Slots {
    in_all: usize,
    by_namespace: HashMap<Arc<str>, usize>,
}

impl Slots {
    fn change(&mut self, namespace: &Arc<str>, taken: bool) {
        let of_namespace = self.by_namespace.entry(Arc::clone(namespace)).or_default();
        if taken {
            self.in_all += 1;
            *of_namespace += 1;
        } else {
            self.in_all = self.in_all.saturating_sub(1);
            *of_namespace = of_namespace.saturating_sub(1);
            if *of_namespace == 0 {
                self.by_namespace.remove(namespace);
            }
        }
    }

    /// Whether a job of the namespace may have a place.
    fn has_room(&self, namespace: &str, cluster: &ClusterRules) -> bool {
        let below = |taken: usize, most: Option<i32>| {
            most.is_none_or(|most| taken < usize::try_from(most).unwrap_or(0))
        };
        let bounds = cluster.namespace(namespace);
        let of_namespace = self.by_namespace.get(namespace).copied().unwrap_or_default();
        below(self.in_all, cluster.limits.max_running_jobs)
            && below(of_namespace, bounds.and_then(|bounds| bounds.max_running_jobs))
    }
}

impl Jobs {
    /// Gives the job a place if it wants one and there is room. Others that wait longer had their turn before.
    pub(super) fn try_slot(&mut self, name: &JobName) -> bool {
        let Some(job) = self.jobs.get_mut(name) else {
            return false;
        };
        if !job.wants_slot() {
            return false;
        }
        let nothing = ClusterRules::default();
        let cluster = self.rules.cluster.as_ref().unwrap_or(&nothing);
        if !self.slots.has_room(&name.namespace, cluster) {
            return false;
        }
        job.slot = true;
        self.slots.change(&name.namespace, true);
        true
    }

    /// Takes the job's place away: it has ended or is suspended.
    pub(super) fn free_slot(&mut self, name: &JobName) {
        if let Some(job) = self.jobs.get_mut(name)
            && std::mem::take(&mut job.slot)
        {
            self.slots.change(&name.namespace, false);
            self.room = true;
        }
    }

    /// Gives free places to the jobs that wait for one, the most urgent first.
    pub(super) async fn grant_slots(&mut self) {
        let waiting: BTreeMap<_, _> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.wants_slot())
            .map(|(name, job)| (job.mk_turn(name), name.clone()))
            .collect();
        for name in waiting.into_values() {
            if !self.try_slot(&name) {
                continue;
            }
            if let Some(job) = self.jobs.get(&name)
                && let Stage::Taken { handle, .. } = &job.stage
            {
                let (handle, policy) = (handle.clone(), job.core_policy());
                // A coordinator that has stopped has no jobs left to change.
                let _ = handle.set_policy(policy).await;
            }
        }
    }

    /// Tells the core shares and bounds of the namespaces whose jobs it has or that are named.
    pub(super) async fn tell_tenants(&mut self) {
        let Some(cluster) = self.rules.cluster.as_ref() else {
            return;
        };
        let named = cluster
            .limits
            .namespaces
            .iter()
            .map(|limits| limits.namespace.as_str());
        let present = self.jobs.keys().map(|name| &*name.namespace);
        let told: Vec<String> = named
            .chain(present)
            .chain(self.tenants.keys().map(|namespace| &**namespace))
            .filter(|namespace| *namespace != "*")
            .map(str::to_owned)
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        for namespace in told {
            self.tell_tenant(&namespace).await;
        }
    }

    /// Tells the core share and bound of one namespace, if it does not know them.
    pub(super) async fn tell_tenant(&mut self, namespace: &str) {
        let bounds = self
            .rules
            .cluster
            .as_ref()
            .and_then(|cluster| cluster.namespace(namespace));
        let policy = tenant_policy(bounds);
        if policy == self.tenants.get(namespace).copied().unwrap_or_default() {
            return;
        }
        self.tenants.insert(namespace.into(), policy);
        // A coordinator that has stopped shares nothing out.
        let _ = self.parts.coordinator.set_tenant_policy(namespace, policy).await;
    }
}

/// Share and bound of a namespace for the core.
fn tenant_policy(bounds: Option<&NamespaceLimits>) -> TenantPolicy {
    let number = |value: Option<i32>| value.and_then(|value| u32::try_from(value).ok());
    TenantPolicy {
        weight: number(bounds.and_then(|bounds| bounds.weight)).unwrap_or(1),
        max_devices: number(bounds.and_then(|bounds| bounds.max_devices)),
    }
}

#[cfg(test)]
mod tests {
    use prover_crds::ClusterLimits;

    use super::*;

    #[test]
    fn weight_and_devices_of_a_namespace_reach_the_core() {
        let bounds = NamespaceLimits {
            weight: Some(3),
            max_devices: Some(0),
            ..NamespaceLimits::default()
        };
        let expected = TenantPolicy {
            weight: 3,
            max_devices: Some(0),
        };
        assert_eq!(tenant_policy(Some(&bounds)), expected);
        assert_eq!(tenant_policy(None), TenantPolicy::default());
    }

    #[test]
    fn places_are_bounded_in_all_and_per_namespace() {
        let cluster = ClusterRules {
            limits: ClusterLimits {
                max_running_jobs: Some(3),
                namespaces: vec![NamespaceLimits {
                    namespace: "small".to_owned(),
                    max_running_jobs: Some(1),
                    ..NamespaceLimits::default()
                }],
                ..ClusterLimits::default()
            },
            ..ClusterRules::default()
        };
        let (small, large): (Arc<str>, Arc<str>) = ("small".into(), "large".into());
        let mut slots = Slots::default();
        assert!(slots.has_room("small", &cluster));
        slots.change(&small, true);
        assert!(!slots.has_room("small", &cluster) && slots.has_room("large", &cluster));
        slots.change(&large, true);
        slots.change(&large, true);
        assert!(!slots.has_room("large", &cluster));
        slots.change(&small, false);
        assert!(slots.has_room("large", &cluster) && slots.has_room("small", &cluster));
        assert!(slots.has_room("any", &ClusterRules::default()));
    }
}
