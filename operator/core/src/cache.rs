//! The action cache: outputs of earlier successes by the canonical key of what was computed.
//!
//! Holds bytes that an entry or several names share until the last of them goes; entries go with the job that
//! made them, so the cache never keeps bytes longer than that job. An entry that is a result and nothing in the store, such
//! as a verifying key, outlives its job: what a program was set up with serves all later jobs of that program. Count and
//! bytes of those have limits of their own, and the oldest goes first.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use crate::action::Action;
use crate::event::Limits;
use crate::fact::Fact;
use crate::model::{ArtifactName, Binding, JobId, TaskId, Usage};
use crate::state::State;
use crate::views::ActionCacheView;

/// What a success left.
#[derive(Clone, Debug)]
struct Cached {
    /// Entries are numbered as they come: a key that went and came again is as old as its last coming.
    number: u64,
    job: u64,
    outputs: Vec<(ArtifactName, Binding)>,
    result: Arc<[u8]>,
}

/// All entries, and how many names and entries hold each store key.
#[derive(Debug, Default)]
pub(crate) struct ActionCache {
    entries: BTreeMap<Arc<str>, Cached>,
    /// Oldest first; may name entries that are gone.
    order: VecDeque<(u64, Arc<str>)>,
    holders: BTreeMap<Arc<str>, u32>,
    /// Entries that outlive their jobs, oldest first; may name entries that are gone.
    lasting_order: VecDeque<(u64, Arc<str>)>,
    /// Entries so far.
    numbers: u64,
    /// Entries that outlive their jobs.
    lasting: usize,
    /// Bytes of their keys and results.
    lasting_bytes: usize,
    /// Entries that made room for others, so far.
    evicted: u64,
}

fn is_there(entries: &BTreeMap<Arc<str>, Cached>, number: u64, key: &str) -> bool {
    entries.get(key).is_some_and(|cached| cached.number == number)
}

impl Cached {
    /// Nothing in the store goes with it.
    fn outlives_its_job(&self) -> bool {
        self.outputs.is_empty()
    }

    fn bytes(&self, key: &str) -> usize {
        key.len() + self.result.len()
    }
}

impl ActionCache {
    fn insert(&mut self, key: &Arc<str>, mut cached: Cached) {
        self.numbers += 1;
        cached.number = self.numbers;
        if cached.outlives_its_job() {
            self.lasting += 1;
            self.lasting_bytes += cached.bytes(key);
            self.lasting_order.push_back((self.numbers, key.clone()));
        }
        self.order.push_back((self.numbers, key.clone()));
        self.entries.insert(key.clone(), cached);
    }

    fn remove(&mut self, key: &Arc<str>) -> Option<Cached> {
        let cached = self.entries.remove(key)?;
        if cached.outlives_its_job() {
            self.lasting -= 1;
            self.lasting_bytes -= cached.bytes(key);
        }
        // Entries that are gone must not fill the orders.
        for order in [&mut self.order, &mut self.lasting_order] {
            if order.len() > 2 * self.entries.len() + 16 {
                order.retain(|(number, key)| is_there(&self.entries, *number, key));
            }
        }
        Some(cached)
    }

    /// The oldest entry that must make room for others.
    fn surplus(&mut self, limits: &Limits) -> Option<Arc<str>> {
        loop {
            let (number, oldest) = if self.entries.len() > limits.cache_entries {
                self.order.pop_front()?
            } else if self.lasting > limits.lasting_results
                || self.lasting_bytes > limits.lasting_result_bytes
            {
                self.lasting_order.pop_front()?
            } else {
                return None;
            };
            if is_there(&self.entries, number, &oldest) {
                return Some(oldest);
            }
        }
    }

    pub(crate) fn hold(&mut self, key: &Arc<str>) {
        *self.holders.entry(key.clone()).or_insert(0) += 1;
    }

    /// Keys below a prefix that something holds, in order.
    pub(crate) fn held_below(&self, prefix: &str) -> impl Iterator<Item = &Arc<str>> {
        let from = self
            .holders
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        from.map(|(key, _)| key)
            .take_while(move |key| key.starts_with(prefix))
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
        let job = entry.job;
        let artifacts = &self.jobs[job].artifacts;
        // What a user keeps lies below the prefix of its own job: it must not go with another one.
        let kept = |output: &u32| artifacts[*output as usize].retained;
        if cached.outputs.len() != entry.outputs.len() || entry.outputs.iter().any(kept) {
            return false;
        }
        let cached = cached.clone();
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
        while let Some(oldest) = self.cache.surplus(&self.limits) {
            let key = oldest.clone();
            self.record(out, || Fact::CacheEntryDropped { key });
            self.cache.evicted += 1;
            self.drop_cached(&oldest, out);
        }
    }

    /// How full the action cache is.
    pub fn action_cache(&self) -> ActionCacheView {
        ActionCacheView {
            entries: self.cache.entries.len(),
            lasting: self.cache.lasting,
            lasting_bytes: self.cache.lasting_bytes,
            evicted: self.cache.evicted,
        }
    }

    /// The success of a task becomes an entry again.
    pub(crate) fn cache_success(&mut self, task: u32) {
        let result = self.tasks[task].result.clone().unwrap_or_default();
        self.insert_cached(task, &result);
    }

    /// An entry as a checkpoint states it. The job is only asked for where the entry goes with it.
    pub(crate) fn restore_cached(
        &mut self,
        job: JobId,
        key: Arc<str>,
        outputs: Vec<(ArtifactName, Binding)>,
        result: Arc<[u8]>,
    ) {
        for (_, binding) in &outputs {
            self.cache.hold(&binding.key);
        }
        let cached = Cached {
            number: 0,
            job: job.0,
            outputs,
            result,
        };
        let owner = match cached.outlives_its_job() {
            true => None,
            false => self.jobs.find(job.0),
        };
        self.cache.insert(&key, cached);
        if let Some(owner) = owner {
            self.jobs[owner].cache_keys.push(key);
        }
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
        self.restore_cached(self.job_id(job), key, outputs, result.clone());
        true
    }

    /// Facts of all entries, oldest first.
    pub(crate) fn checkpoint_cache(&self, facts: &mut Vec<Fact>) {
        for (number, key) in &self.cache.order {
            if let Some(cached) = self.cache.entries.get(key)
                && cached.number == *number
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
        let Some(cached) = self.cache.remove(key) else {
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
    }
}
