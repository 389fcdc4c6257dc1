//! Artifact names: what they are bound to, who still needs them, when their bytes may go.
//!
//! The first binding of a name wins. An artifact goes when its consumers are terminal and no reference names it;
//! sources and retained artifacts never go. Bytes that the action cache or another name share go with the last of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::action::{Action, Answer, Refusal};
use crate::fact::Fact;
use crate::model::{ArtifactName, Binding, JobId};
use crate::state::State;
use crate::tasks::Places;

/// A name within a job.
#[derive(Debug)]
pub(crate) struct Artifact {
    pub(crate) name: ArtifactName,
    /// Apart, since what waits has none.
    pub(crate) binding: Option<Box<Binding>>,
    pub(crate) source: bool,
    pub(crate) retained: bool,
    /// It was bound and has been dropped since.
    pub(crate) gone: bool,
    /// Its bytes are counted among those that several names or the cache share.
    pub(crate) shared: bool,
    /// Tasks that read it and are not terminal, and whether there ever was one.
    pub(crate) consumers: u32,
    pub(crate) consumed: bool,
    pub(crate) references: BTreeSet<Arc<str>>,
    /// Tasks that wait for it to be bound.
    pub(crate) waiters: Places,
    /// Bytes that a permit holds for it.
    pub(crate) permit_bytes: u64,
}

impl State {
    /// The index of a name within its job; a new name is not bound.
    pub(crate) fn artifact_index(&mut self, job: u32, name: &ArtifactName) -> u32 {
        let entry = &mut self.jobs[job];
        if let Some(index) = entry.artifact_by_name.get(name) {
            return index;
        }
        let index = entry.artifacts.len() as u32;
        if entry.artifacts.len() == entry.artifacts.capacity() {
            // By an eighth, not by as many again: of all lists of a job this one is the largest.
            entry.artifacts.reserve_exact(entry.artifacts.len() / 8 + 4);
        }
        entry.artifacts.push(Artifact {
            name: name.clone(),
            binding: None,
            source: false,
            retained: false,
            gone: false,
            shared: false,
            consumers: 0,
            consumed: false,
            references: BTreeSet::new(),
            waiters: Places::new(),
            permit_bytes: 0,
        });
        entry.artifact_by_name.insert(name.clone(), index);
        index
    }

    pub(crate) fn find_artifact(&self, job: u32, name: &ArtifactName) -> Result<u32, Refusal> {
        self.jobs[job]
            .artifact_by_name
            .get(name)
            .ok_or_else(|| Refusal::NotFound(name.clone()))
    }

    /// Whether a completion brings every declared output, and no result that is too large.
    pub(crate) fn check_outputs(
        &self,
        task: u32,
        outputs: &[(ArtifactName, Binding)],
        result: &[u8],
    ) -> Result<(), String> {
        let limit = self.limits.opaque_bytes;
        if result.len() > limit {
            return Err(format!(
                "the result of the task has {} bytes, the limit is {limit}",
                result.len()
            ));
        }
        let entry = &self.tasks[task];
        for output in &entry.outputs {
            let artifact = &self.jobs[entry.job].artifacts[*output as usize];
            if artifact.binding.is_none() && !outputs.iter().any(|(name, _)| *name == artifact.name) {
                return Err(format!("the task ended without its output {}", artifact.name));
            }
        }
        Ok(())
    }

    pub(crate) fn bind_outputs(
        &mut self,
        job: u32,
        task: u32,
        outputs: Vec<(ArtifactName, Binding)>,
        out: &mut Vec<Action>,
    ) {
        let shared = self.tasks[task].cacheable;
        for (at, (name, binding)) in outputs.into_iter().enumerate() {
            // Outputs mostly come in the declared order, so that nothing has to be looked up.
            let declared = self.tasks[task].outputs.get(at).copied();
            let index = match declared.filter(|index| self.jobs[job].artifacts[*index as usize].name == name)
            {
                Some(index) => index,
                None => self.artifact_index(job, &name),
            };
            self.bind(job, index, binding, shared, out);
        }
    }

    /// Binds a name unless it is bound, and tells the tasks that waited for it.
    pub(crate) fn bind(
        &mut self,
        job: u32,
        index: u32,
        binding: Binding,
        shared: bool,
        out: &mut Vec<Action>,
    ) {
        let artifact = &mut self.jobs[job].artifacts[index as usize];
        if artifact.binding.is_some() {
            return;
        }
        if shared {
            self.cache.hold(&binding.key);
        }
        artifact.shared = shared;
        artifact.gone = false;
        artifact.binding = Some(Box::new(binding));
        for task in std::mem::take(&mut artifact.waiters) {
            if !self.tasks[task].stage.is_terminal() {
                self.one_less_pending(task, out);
            }
        }
    }

    /// A task that reads the artifact is terminal.
    pub(crate) fn consumer_done(&mut self, job: u32, index: u32, may_delete: bool, out: &mut Vec<Action>) {
        let artifact = &mut self.jobs[job].artifacts[index as usize];
        assert!(artifact.consumers > 0, "a consumer that ends was counted");
        artifact.consumers -= 1;
        if artifact.consumers > 0 || !may_delete {
            return;
        }
        if artifact.permit_bytes > 0 {
            self.release_permit(job, index, out);
        }
        self.delete_if_unused(job, index, out);
    }

    fn delete_if_unused(&mut self, job: u32, index: u32, out: &mut Vec<Action>) {
        let artifact = &self.jobs[job].artifacts[index as usize];
        let used = artifact.consumers > 0 || !artifact.references.is_empty() || !artifact.consumed;
        if !used && !artifact.source && !artifact.retained {
            self.unbind(job, index, out);
        }
    }

    /// Drops a name. Its bytes go unless something else holds them.
    pub(crate) fn unbind(&mut self, job: u32, index: u32, out: &mut Vec<Action>) {
        let id = self.job_id(job);
        let artifact = &mut self.jobs[job].artifacts[index as usize];
        let Some(binding) = artifact.binding.take().map(|bound| *bound) else {
            return;
        };
        let name = artifact.name.clone();
        self.record(out, || Fact::ArtifactDropped { job: id, name });
        let artifact = &mut self.jobs[job].artifacts[index as usize];
        artifact.gone = true;
        let shared = std::mem::take(&mut artifact.shared);
        let kept = artifact.source || artifact.retained;
        let name = artifact.name.clone();
        let last = !shared || self.cache.let_go(&binding.key);
        if last && !kept {
            out.push(Action::DeleteArtifact {
                job: id,
                name,
                binding,
            });
        }
    }

    /// Drops all names of a plan; sources stay.
    pub(crate) fn unbind_all(&mut self, job: u32, out: &mut Vec<Action>) {
        for index in 0..self.jobs[job].artifacts.len() as u32 {
            let artifact = &mut self.jobs[job].artifacts[index as usize];
            if artifact.source {
                continue;
            }
            artifact.references.clear();
            artifact.consumed = false;
            self.unbind(job, index, out);
            self.jobs[job].artifacts[index as usize].gone = false;
        }
    }

    /// The job goes: so do its bytes, but for sources, what is retained and what others share.
    pub(crate) fn delete_all_artifacts(&mut self, job: u32, out: &mut Vec<Action>) {
        for key in std::mem::take(&mut self.jobs[job].cache_keys) {
            self.forget_cached(&key, self.jobs.id(job), out);
        }
        for index in 0..self.jobs[job].artifacts.len() as u32 {
            self.unbind(job, index, out);
        }
    }

    // ---- calls of attempts ----

    pub(crate) fn artifact_bound(
        &mut self,
        job: u32,
        name: &ArtifactName,
        binding: Binding,
        out: &mut Vec<Action>,
    ) -> Answer {
        let index = self.artifact_index(job, name);
        if self.jobs[job].artifacts[index as usize].binding.is_none() {
            self.record(out, || Fact::ArtifactBound {
                job: self.job_id(job),
                name: name.clone(),
                binding: binding.clone(),
            });
        }
        self.bind(job, index, binding.clone(), false, out);
        let bound = self.jobs[job].artifacts[index as usize]
            .binding
            .as_deref()
            .cloned();
        Answer::Artifact(bound.unwrap_or(binding))
    }

    pub(crate) fn artifact_resolved(&self, job: u32, name: &ArtifactName) -> Result<Answer, Refusal> {
        let index = self.find_artifact(job, name)?;
        let binding = self.jobs[job].artifacts[index as usize]
            .binding
            .as_deref()
            .cloned();
        binding
            .map(Answer::Artifact)
            .ok_or_else(|| Refusal::NotFound(name.clone()))
    }

    /// Drops names as an attempt asks. Unknown ones are no error; what a task still reads stays until it is done.
    pub(crate) fn artifacts_deleted(
        &mut self,
        job: u32,
        names: &[ArtifactName],
        out: &mut Vec<Action>,
    ) -> Answer {
        for name in names {
            let Ok(index) = self.find_artifact(job, name) else {
                continue;
            };
            self.record(out, || Fact::ArtifactReleased {
                job: self.job_id(job),
                name: name.clone(),
            });
            let artifact = &mut self.jobs[job].artifacts[index as usize];
            artifact.consumed = true;
            artifact.references.clear();
            if artifact.consumers == 0 && artifact.permit_bytes > 0 {
                self.release_permit(job, index, out);
            }
            self.delete_if_unused(job, index, out);
        }
        Answer::Done
    }

    pub(crate) fn reference_added(
        &mut self,
        job: u32,
        name: &ArtifactName,
        reference: Arc<str>,
        out: &mut Vec<Action>,
    ) -> Result<Answer, Refusal> {
        let index = self.find_artifact(job, name)?;
        let references = &mut self.jobs[job].artifacts[index as usize].references;
        if references.insert(reference.clone()) {
            self.record(out, || Fact::ReferenceAdded {
                job: self.job_id(job),
                name: name.clone(),
                reference,
            });
        }
        Ok(Answer::Done)
    }

    /// Removes a named reference; with the last one the artifact goes unless a task still reads it.
    pub(crate) fn reference_removed(
        &mut self,
        job: u32,
        name: &ArtifactName,
        reference: &Arc<str>,
        out: &mut Vec<Action>,
    ) -> Result<Answer, Refusal> {
        let index = self.find_artifact(job, name)?;
        let artifact = &mut self.jobs[job].artifacts[index as usize];
        if artifact.references.remove(reference) {
            artifact.consumed = true;
            self.record(out, || Fact::ReferenceRemoved {
                job: self.job_id(job),
                name: name.clone(),
                reference: reference.clone(),
            });
        }
        let was_bound = self.jobs[job].artifacts[index as usize].binding.is_some();
        self.delete_if_unused(job, index, out);
        let is_bound = self.jobs[job].artifacts[index as usize].binding.is_some();
        Ok(Answer::Dropped(was_bound && !is_bound))
    }

    /// What a name is bound to.
    pub fn artifact(&self, job: JobId, name: &ArtifactName) -> Option<&Binding> {
        let job = self.jobs.find(job.0)?;
        let index = self.jobs[job].artifact_by_name.get(name)?;
        self.jobs[job].artifacts[index as usize].binding.as_deref()
    }
}
