//! Calls of running attempts: who may call, and the submission of tasks.

use std::sync::Arc;

use crate::action::{Action, Answer, Refusal};
use crate::attempts::Lease;
use crate::classes::ClassKey;
use crate::event::Event;
use crate::jobs::Lookup;
use crate::model::{AttemptId, RequestId, TaskId, TaskSpec};
use crate::state::State;
use crate::tasks::Stage;

/// What a submission comes to for one task.
enum Submission {
    Known(u32),
    New(Arc<TaskSpec>, u8),
}

impl State {
    /// The caller and its job, if it holds the lease of its task.
    fn caller(&self, id: AttemptId) -> Result<(u32, u32), Refusal> {
        let attempt = self.find_attempt(id).ok_or(Refusal::LeaseLost)?;
        let entry = &self.attempts[attempt];
        if self.jobs[entry.job].is_over() {
            return Err(Refusal::JobOver);
        }
        if entry.lease != Lease::Held {
            return Err(Refusal::LeaseLost);
        }
        Ok((attempt, entry.job))
    }

    /// Every event that is a call of an attempt.
    pub(crate) fn called(&mut self, event: Event, out: &mut Vec<Action>) {
        let Some((call, id)) = event.caller() else {
            unreachable!("only calls of attempts come here");
        };
        let (attempt, job) = match self.caller(id) {
            Ok(found) => found,
            Err(refusal) => return self.answer(id, call, Err(refusal), out),
        };
        let answer = match event {
            Event::TasksSubmitted { tasks, .. } => self.tasks_submitted(attempt, job, tasks, out),
            Event::MarkerCompleted { marker, .. } => self.marker_completed(job, id, marker, out),
            // These are answered by what they bring, or later.
            Event::TasksSubscribed { tasks, .. } => match self.tasks_subscribed(call, id, job, &tasks, out) {
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            },
            Event::ChannelOpened {
                task, start_offset, ..
            } => match self.channel_opened(call, id, job, &task, start_offset, out) {
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            },
            Event::PermitRequested { name, bytes, .. } => {
                return self.permit_requested(call, id, job, &name, bytes, out);
            }
            Event::ChannelMessageSent {
                task,
                number,
                payload,
                ..
            } => self.channel_message_sent(attempt, job, task, number, &payload, out),
            Event::ArtifactBound { name, binding, .. } => Ok(self.artifact_bound(job, &name, binding, out)),
            Event::ArtifactResolved { name, .. } => self.artifact_resolved(job, &name),
            Event::ArtifactsDeleted { names, .. } => Ok(self.artifacts_deleted(job, &names, out)),
            Event::ReferenceAdded { name, reference, .. } => self.reference_added(job, &name, reference, out),
            Event::ReferenceRemoved { name, reference, .. } => {
                self.reference_removed(job, &name, &reference, out)
            }
            _ => unreachable!("only calls of attempts come here"),
        };
        self.answer(id, call, answer, out);
    }

    fn marker_completed(
        &mut self,
        job: u32,
        by: AttemptId,
        name: RequestId,
        out: &mut Vec<Action>,
    ) -> Result<Answer, Refusal> {
        let Some(marker) = self.jobs[job].by_request.get(&name) else {
            return Err(Refusal::NotFound(name));
        };
        if !self.tasks[marker].marker {
            return Err(Refusal::NotAMarker(name));
        }
        self.complete_marker(marker, Some(by), out);
        Ok(Answer::Done)
    }

    /// Takes all tasks of a submission or none.
    fn tasks_submitted(
        &mut self,
        attempt: u32,
        job: u32,
        specs: Vec<TaskSpec>,
        out: &mut Vec<Action>,
    ) -> Result<Answer, Refusal> {
        let limit = self.limits.tasks_per_job;
        if self.jobs[job].planned + specs.len() > limit {
            return Err(Refusal::LimitExceeded {
                what: "tasks_per_job",
                limit: limit as u64,
            });
        }
        let parent = self.attempts[attempt].task;
        self.tasks[parent].submits = true;
        let mut submissions = Vec::with_capacity(specs.len());
        let mut refusal = None;
        let mut batch: Lookup<RequestId, usize> = Lookup::default();
        let several = specs.len() > 1;
        for (at, spec) in specs.into_iter().enumerate() {
            let name = several.then(|| spec.request_id.clone());
            match self.judge_submission(job, spec, &batch, &submissions) {
                // A class that is named here must not make room for the next one.
                Ok(submission) => {
                    if let Submission::New(spec, class) = &submission
                        && !spec.marker
                    {
                        self.classes.entries[usize::from(*class)].references += 1;
                    }
                    submissions.push(submission);
                    if let Some(name) = name {
                        batch.entry(name).or_insert(at);
                    }
                }
                Err(found) => {
                    refusal = Some(found);
                    break;
                }
            }
        }
        for submission in &submissions {
            if let Submission::New(spec, class) = submission
                && !spec.marker
            {
                self.classes.entries[usize::from(*class)].references -= 1;
            }
        }
        match refusal {
            Some(refusal) => Err(refusal),
            None => Ok(Answer::Tasks(self.create_tasks(job, parent, submissions, out))),
        }
    }

    fn create_tasks(
        &mut self,
        job: u32,
        parent: u32,
        submissions: Vec<Submission>,
        out: &mut Vec<Action>,
    ) -> Vec<(TaskId, bool)> {
        let mut answers = Vec::with_capacity(submissions.len());
        for submission in submissions {
            let task = match submission {
                Submission::Known(task) => task,
                Submission::New(spec, class) => {
                    // Submitted twice in one call: the first one counts.
                    let earlier = self.jobs[job].by_request.get(&spec.request_id);
                    match earlier.filter(|earlier| self.tasks[*earlier].spec == spec) {
                        Some(earlier) => earlier,
                        None => self.create_new(job, parent, spec, class, out),
                    }
                }
            };
            answers.push((
                TaskId(self.tasks.id(task)),
                self.tasks[task].stage == Stage::Succeeded,
            ));
            if self.jobs[job].is_over() {
                break;
            }
        }
        answers
    }

    fn create_new(
        &mut self,
        job: u32,
        parent: u32,
        spec: Arc<TaskSpec>,
        class: u8,
        out: &mut Vec<Action>,
    ) -> u32 {
        if let Some(old) = self.jobs[job].by_request.get(&spec.request_id) {
            // Its content changed with the epoch: the finished one belongs to no plan any more.
            self.forget_request(old);
        }
        let task = self.create_task(job, spec, Some(parent), class, out);
        self.task_submitted(task, out);
        task
    }

    fn judge_submission(
        &mut self,
        job: u32,
        spec: TaskSpec,
        batch: &Lookup<RequestId, usize>,
        before: &[Submission],
    ) -> Result<Submission, Refusal> {
        self.check_task_sizes(&spec)?;
        if let Some(at) = batch.get(&spec.request_id)
            && let Submission::New(earlier, _) = &before[*at]
            && **earlier != spec
        {
            return Err(Refusal::RequestIdReused(spec.request_id));
        }
        if let Some(known) = self.jobs[job].by_request.get(&spec.request_id) {
            let entry = &self.tasks[known];
            if *entry.spec == spec {
                return Ok(Submission::Known(known));
            }
            if entry.epoch == self.jobs[job].epoch || !entry.stage.is_terminal() {
                return Err(Refusal::RequestIdReused(spec.request_id));
            }
        }
        for dependency in &spec.depends_on {
            if self.jobs[job].by_request.get(dependency).is_none() && !batch.contains_key(dependency) {
                let (task, dependency) = (spec.request_id.clone(), dependency.clone());
                return Err(Refusal::UnknownDependency { task, dependency });
            }
        }
        if spec.marker {
            return Ok(Submission::New(Arc::new(spec), 0));
        }
        if spec.requirements.backend != self.jobs[job].backend {
            return Err(Refusal::OtherBackend(spec.request_id));
        }
        for input in &spec.inputs {
            let gone = self.jobs[job]
                .artifact_by_name
                .get(input)
                .is_some_and(|index| self.jobs[job].artifacts[index as usize].gone);
            if gone {
                return Err(Refusal::NotFound(input.clone()));
            }
        }
        let class = self.class_of(ClassKey::of(&spec.requirements))?;
        Ok(Submission::New(Arc::new(spec), class))
    }
}
