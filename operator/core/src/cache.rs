//! The action cache: outputs of earlier successes by the canonical key of what was computed.
//!
//! Holds bytes that an entry or several names share until the last of them goes; entries go with the job that
//! made them, so the cache never keeps bytes longer than that job.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use crate::action::Action;
use crate::fact::Fact;
use crate::model::{ArtifactName, Binding, JobId, TaskId, Usage};
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

    /// Keys below a prefix that something holds.
    pub(crate) fn held_below(&self, prefix: &str) -> BTreeSet<Arc<str>> {
        let from = self
            .holders
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        from.map(|(key, _)| key)
            .take_while(|key| key.starts_with(prefix))
            .cloned()
            .collect()
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
        let outputs = entry.outputs.clone();
        self.tasks[task].from_cache = true;
        self.record(out, || {
            let names = outputs
                .iter()
                .map(|output| self.jobs[job].artifacts[*output as usize].name.clone());
            let bindings = cached.outputs.iter().map(|(_, binding)| binding.clone());
            self.success_of(task, names.zip(bindings).collect(), cached.result.clone())
        });
        for (output, (_, binding)) in outputs.into_iter().zip(cached.outputs) {
            self.bind(job, output, binding, true, out);
        }
        self.succeed(task, None, cached.result, Usage::default(), out);
        true
    }

    /// Remembers what a task made, if its type is cacheable. An entry that is there stays: the first one wins.
    pub(crate) fn remember(&mut self, task: u32, result: &Arc<[u8]>, out: &mut Vec<Action>) {
        if !self.tasks[task].cacheable || !self.insert_cached(task, result) {
            return;
        }
        self.record(out, || Fact::TaskCached {
            task: TaskId(self.tasks.id(task)),
        });
        while self.cache.order.len() > self.limits.cache_entries {
            let Some(oldest) = self.cache.order.pop_front() else {
                break;
            };
            if self.cache.entries.contains_key(&oldest) {
                let key = oldest.clone();
                self.record(out, || Fact::CacheEntryDropped { key });
                self.drop_cached(&oldest, out);
            }
        }
    }

    /// The success of a task becomes an entry again.
    pub(crate) fn cache_success(&mut self, task: u32) {
        let result = self.tasks[task].result.clone().unwrap_or_default();
        self.insert_cached(task, &result);
    }

    /// An entry as a checkpoint states it.
    pub(crate) fn restore_cached(
        &mut self,
        job: u32,
        key: Arc<str>,
        outputs: Vec<(ArtifactName, Binding)>,
        result: Arc<[u8]>,
    ) {
        for (_, binding) in &outputs {
            self.cache.hold(&binding.key);
        }
        let cached = Cached {
            job: self.jobs.id(job),
            outputs,
            result,
        };
        self.cache.entries.insert(key.clone(), cached);
        self.cache.order.push_back(key.clone());
        self.jobs[job].cache_keys.push(key);
    }

    fn insert_cached(&mut self, task: u32, result: &Arc<[u8]>) -> bool {
        let entry = &self.tasks[task];
        let Some(key) = entry.spec.cache_key.clone() else {
            return false;
        };
        if self.cache.entries.contains_key(&key) {
            return false;
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
                    .as_deref()
                    .cloned()
                    .filter(|_| artifact.shared)
                    .map(|binding| (artifact.name.clone(), binding))
            })
            .collect();
        if outputs.len() != entry.outputs.len() {
            return false;
        }
        self.restore_cached(job, key, outputs, result.clone());
        true
    }

    /// Facts of all entries, oldest first.
    pub(crate) fn checkpoint_cache(&self, facts: &mut Vec<Fact>) {
        let mut told = BTreeSet::new();
        for key in &self.cache.order {
            if let Some(cached) = self.cache.entries.get(key)
                && told.insert(key)
            {
                facts.push(Fact::CacheEntryStands {
                    job: JobId(cached.job),
                    key: key.clone(),
                    outputs: cached.outputs.clone(),
                    result: cached.result.clone(),
                });
            }
        }
    }

    /// Drops an entry if this job made it.
    pub(crate) fn forget_cached(&mut self, key: &Arc<str>, job: u64, out: &mut Vec<Action>) {
        if self
            .cache
            .entries
            .get(key)
            .is_some_and(|cached| cached.job == job)
        {
            self.drop_cached(key, out);
        }
    }

    /// Drops an entry; bytes that nothing else holds go.
    pub(crate) fn drop_cached(&mut self, key: &Arc<str>, out: &mut Vec<Action>) {
        let Some(cached) = self.cache.entries.remove(key) else {
            return;
        };
        let job = cached.job;
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
