//! Facts from a state: checkpoints, and the counts of a task as a fact.

use crate::action::Action;
use crate::fact::{ArtifactFacts, Fact, TaskCounts, TaskSuccess};
use crate::model::{AttemptId, TaskId, TenantPolicy};
use crate::slab::NONE;
use crate::state::State;
use crate::tasks::Stage;

impl State {
    /// Facts that make the same durable state as all facts so far.
    pub fn checkpoint(&self) -> Vec<Fact> {
        let mut facts = Vec::new();
        for tenant in self
            .tenants
            .iter()
            .filter(|tenant| tenant.policy != TenantPolicy::default())
        {
            facts.push(Fact::TenantPolicyChanged {
                tenant: tenant.name.clone(),
                policy: tenant.policy,
            });
        }
        let mut jobs: Vec<u32> = self.jobs.iter().map(|(job, _)| job).collect();
        // The order of admission, which is that of identities within an epoch.
        jobs.sort_by_key(|job| self.jobs.id(*job));
        for job in &jobs {
            self.checkpoint_job(*job, &mut facts);
        }
        self.checkpoint_cache(&mut facts);
        for job in jobs {
            if self.jobs[job].is_over() {
                facts.push(Fact::JobFinished {
                    job: self.job_id(job),
                    phase: self.jobs[job].phase.clone(),
                    at: self.jobs[job].finished_at.unwrap_or_default(),
                });
            }
        }
        for (_, worker) in self.workers.iter() {
            facts.push(Fact::WorkerJoined {
                name: worker.spec.name.clone(),
            });
        }
        if let Some(recovering) = &self.recovering {
            for (name, count) in &recovering.awaited {
                facts.extend((0..*count).map(|_| Fact::WorkerJoined { name: name.clone() }));
            }
        }
        facts
    }

    fn checkpoint_job(&self, job: u32, facts: &mut Vec<Fact>) {
        let entry = &self.jobs[job];
        let id = self.job_id(job);
        facts.push(Fact::JobAdmitted {
            job: id,
            root: TaskId(self.tasks.id(entry.root)),
            spec: entry.spec.clone(),
            at: entry.submitted_at,
        });
        if entry.policy != entry.spec.policy {
            facts.push(Fact::JobPolicyChanged {
                job: id,
                policy: entry.policy,
                at: entry.submitted_at,
            });
        }
        for task in entry.tasks.iter().copied().filter(|task| *task != entry.root) {
            let entry = &self.tasks[task];
            facts.push(Fact::TaskSubmitted {
                job: id,
                task: TaskId(self.tasks.id(task)),
                parent: (entry.parent != NONE).then(|| TaskId(self.tasks.id(entry.parent))),
                epoch: entry.epoch,
                spec: entry.spec.clone(),
                at: entry.submitted_at,
            });
        }
        facts.push(Fact::JobStands {
            job: id,
            epoch: entry.epoch,
            root_epoch: self.tasks[entry.root].epoch,
            replans: entry.replans,
            started_at: entry.started_at,
            active_since: entry.active_since,
            active_before: entry.active_before,
        });
        if entry.failures + entry.infrastructure_failures > 0 {
            facts.push(self.job_counted(job));
        }
        for task in &entry.tasks {
            self.checkpoint_task(*task, facts);
        }
        let mut read = vec![false; entry.artifacts.len()];
        for task in &entry.tasks {
            for input in &self.tasks[*task].inputs {
                read[*input as usize] = true;
            }
        }
        for (artifact, read) in entry.artifacts.iter().zip(read) {
            // What follows from the specifications of the job and its tasks.
            let implied = !artifact.gone
                && artifact.references.is_empty()
                && artifact.consumed == read
                && (artifact.binding.is_none() || artifact.source);
            if implied {
                continue;
            }
            facts.push(Fact::ArtifactStands(Box::new(ArtifactFacts {
                job: id,
                name: artifact.name.clone(),
                binding: artifact.binding.as_deref().cloned(),
                shared: artifact.shared,
                gone: artifact.gone,
                consumed: artifact.consumed,
                references: artifact.references.iter().cloned().collect(),
            })));
        }
    }

    fn checkpoint_task(&self, task: u32, facts: &mut Vec<Fact>) {
        let entry = &self.tasks[task];
        let id = TaskId(self.tasks.id(task));
        let job = &self.jobs[entry.job];
        let counts = self.counts_of(task);
        if counts.is_told(entry.stage == Stage::Succeeded) {
            facts.push(Fact::TaskCounted(Box::new(counts)));
        }
        self.checkpoint_channel(task, facts);
        let at = entry.finished_at().unwrap_or_default();
        let named = job.by_request.get(&entry.spec.request_id) == Some(task);
        match entry.stage {
            Stage::Succeeded if entry.marker => facts.push(Fact::MarkerCompleted { task: id, at }),
            // Names stand for themselves.
            Stage::Succeeded => facts.push(Fact::TaskSucceeded(Box::new(TaskSuccess {
                task: id,
                attempt: (entry.accepted != 0).then_some(AttemptId(entry.accepted)),
                attempts: entry.attempts,
                outputs: Vec::new(),
                result: entry.result.clone().unwrap_or_default(),
                device_microseconds: entry.device_microseconds,
                energy_millijoules: entry.energy_millijoules,
                started_at: entry.started_at,
                from_cache: entry.from_cache,
                at,
            }))),
            Stage::Failed => facts.push(Fact::TaskFailed {
                task: id,
                message: entry.trouble().last_failure.clone().unwrap_or_default(),
                at,
            }),
            // What was dropped with its job is named until the job is forgotten.
            Stage::Dropped if !(job.is_over() && named) => facts.push(Fact::TaskDropped { task: id, at }),
            _ => {}
        }
        if !entry.planned && matches!(entry.stage, Stage::Succeeded | Stage::Failed) {
            facts.push(Fact::TaskLeftPlan { task: id });
        }
    }

    pub(crate) fn job_counted(&self, job: u32) -> Fact {
        Fact::JobCounted {
            job: self.job_id(job),
            failures: self.jobs[job].failures,
            infrastructure_failures: self.jobs[job].infrastructure_failures,
        }
    }

    /// What is known of a task's attempts. One that holds the lease counts when it has ended.
    pub(crate) fn counts_of(&self, task: u32) -> TaskCounts {
        let entry = &self.tasks[task];
        let running = self
            .attempts
            .get(entry.current)
            .is_some_and(|current| !current.regained);
        let minimums = if entry.stage.is_terminal() || entry.marker {
            (0, 0)
        } else {
            let key = &self.classes.entries[usize::from(entry.class)].key;
            (key.minimum_host_bytes, key.minimum_vram_bytes)
        };
        let trouble = entry.trouble();
        TaskCounts {
            task: TaskId(self.tasks.id(task)),
            attempts: entry.attempts - u32::from(running) - u32::from(self.twins.contains_key(&task)),
            fence: entry.fence,
            failures: trouble.failures,
            crashes: trouble.crashes,
            suspected: trouble.suspected,
            alone: entry.alone,
            sent: entry.sent,
            minimum_host_bytes: minimums.0,
            minimum_vram_bytes: minimums.1,
            device_microseconds: entry.device_microseconds,
            energy_millijoules: entry.energy_millijoules,
            last_failure: trouble.last_failure.clone(),
        }
    }

    pub(crate) fn record_counts(&self, task: u32, out: &mut Vec<Action>) {
        self.record(out, || Fact::TaskCounted(Box::new(self.counts_of(task))));
    }

    pub(crate) fn record(&self, out: &mut Vec<Action>, fact: impl FnOnce() -> Fact) {
        if self.recording {
            out.push(Action::Record(fact()));
        }
    }
}

impl TaskCounts {
    /// Whether it says more than a task that was just submitted, or than the fact of its success.
    fn is_told(&self, succeeded: bool) -> bool {
        let beyond_success = (self.failures, self.crashes, self.suspected, self.fence) != (0, 0, 0, 0)
            || self.alone
            || self.sent
            || self.last_failure.is_some();
        let beyond_submission = self.attempts > 0
            || self.minimum_host_bytes + self.minimum_vram_bytes > 0
            || self.device_microseconds + self.energy_millijoules > 0;
        beyond_success || (!succeeded && beyond_submission)
    }
}
