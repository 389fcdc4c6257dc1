//! The action cache: outputs of earlier successes by the canonical key of what was computed.
//!
//! Holds bytes that an entry or several names share until the last of them goes; entries go with the job that
//! made them, so the cache never keeps bytes longer than that job.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::action::Action;
use crate::model::{ArtifactName, Binding, JobId, Usage};
use crate::state::State;

/// What a success left.
#[derive(Clone, Debug)]
struct Cached {
    job: u64,
    outputs: Vec<(ArtifactName, Binding)>,
    result: Arc<[u8]>,
}

/// All entries, and how many names and entries hold each store key.
#[derive(Debug, Default)]
pub(crate) struct ActionCache {
    entries: BTreeMap<Arc<str>, Cached>,
    /// Oldest first; may name entries that are gone.
    order: VecDeque<Arc<str>>,
    holders: BTreeMap<Arc<str>, u32>,
}

impl ActionCache {
    pub(crate) fn hold(&mut self, key: &Arc<str>) {
        *self.holders.entry(key.clone()).or_insert(0) += 1;
    }

    /// One holder less. True: it was the last one.
    pub(crate) fn let_go(&mut self, key: &Arc<str>) -> bool {
        let Some(count) = self.holders.get_mut(key) else {
            return true;
        };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.holders.remove(key);
        true
    }
}

impl State {
    /// Answers a task from an earlier success: its outputs are bound and it has succeeded.
    pub(crate) fn answer_from_cache(&mut self, task: u32, out: &mut Vec<Action>) -> bool {
        let entry = &self.tasks[task];
        if !entry.cacheable {
            return false;
        }
        let Some(key) = &entry.spec.cache_key else {
            return false;
        };
        let Some(cached) = self.cache.entries.get(key) else {
            return false;
        };
        if cached.outputs.len() != entry.outputs.len() {
            return false;
        }
        let cached = cached.clone();
        let job = entry.job;
        for (output, (_, binding)) in entry.outputs.clone().into_iter().zip(cached.outputs) {
            self.bind(job, output, binding, true, out);
        }
        self.tasks[task].from_cache = true;
        self.succeed(task, None, cached.result, Usage::default(), out);
        true
    }

    /// Remembers what a task made, if its type is cacheable. An entry that is there stays: the first one wins.
    pub(crate) fn remember(&mut self, task: u32, result: &Arc<[u8]>, out: &mut Vec<Action>) {
        let entry = &self.tasks[task];
        if !entry.cacheable {
            return;
        }
        let Some(key) = entry.spec.cache_key.clone() else {
            return;
        };
        if self.cache.entries.contains_key(&key) {
            return;
        }
        let job = entry.job;
        let artifacts = &self.jobs[job].artifacts;
        let outputs: Vec<(ArtifactName, Binding)> = entry
            .outputs
            .iter()
            .filter_map(|output| {
                let artifact = &artifacts[*output as usize];
                // Bytes that are not counted could go while the entry still names them.
                artifact
                    .binding
                    .clone()
                    .filter(|_| artifact.shared)
                    .map(|binding| (artifact.name.clone(), binding))
            })
            .collect();
        if outputs.len() != entry.outputs.len() {
            return;
        }
        for (_, binding) in &outputs {
            self.cache.hold(&binding.key);
        }
        let cached = Cached {
            job: self.jobs.id(job),
            outputs,
            result: result.clone(),
        };
        self.cache.entries.insert(key.clone(), cached);
        self.cache.order.push_back(key.clone());
        self.jobs[job].cache_keys.push(key);
        while self.cache.order.len() > self.limits.cache_entries {
            let Some(oldest) = self.cache.order.pop_front() else {
                break;
            };
            if let Some(job) = self.cache.entries.get(&oldest).map(|cached| cached.job) {
                self.forget_cached(&oldest, job, out);
            }
        }
    }

    /// Drops an entry that a job made; bytes that nothing else holds go.
    pub(crate) fn forget_cached(&mut self, key: &Arc<str>, job: u64, out: &mut Vec<Action>) {
        if self.cache.entries.get(key).is_none_or(|cached| cached.job != job) {
            return;
        }
        let Some(cached) = self.cache.entries.remove(key) else {
            return;
        };
        for (name, binding) in cached.outputs {
            if self.cache.let_go(&binding.key) {
                out.push(Action::DeleteArtifact {
                    job: JobId(job),
                    name,
                    binding,
                });
            }
        }
        // Entries that are gone must not fill the order.
        if self.cache.order.len() > 2 * self.cache.entries.len() + 16 {
            let entries = &self.cache.entries;
            self.cache.order.retain(|key| entries.contains_key(key));
        }
    }
}
