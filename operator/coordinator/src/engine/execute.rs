//! Executing what the scheduling core asks for.

use prover_core::{
    Action, Answer, Assignment, AttemptId, CallId, Event, FailureClass, JobId, JobPhase, Refusal, TaskChange,
    TaskId, TaskOutcome, TaskState as CoreTaskState, Usage, WorkerId,
};
use prover_wire::Validate;
use prover_wire::limits::cut_text;
use prover_wire::protocol as wire;
use prover_wire::protocol::coordinator_message::Message as Outbound;

use super::durable::Held;
use super::{Engine, again};
use crate::admission::BackendCapacity;
use crate::convert;
use crate::deletes::Deletion;
use crate::record::describe;
use crate::view::Phase;

impl Engine {
    pub(super) fn execute(&mut self, action: Action) {
        self.parts.metrics.action(&action);
        match action {
            Action::Assign(assignment) => self.assign(&assignment),
            Action::Recall { worker, attempt } => {
                self.send(
                    worker,
                    Outbound::Recall(wire::Recall {
                        attempt_id: attempt.0,
                    }),
                );
            }
            Action::Stop {
                worker,
                attempt,
                reason,
            } => {
                let reason = convert::stop_reason(reason).to_owned();
                self.send(
                    worker,
                    Outbound::Stop(wire::StopAttempt {
                        attempt_id: attempt.0,
                        reason,
                    }),
                );
            }
            Action::CompletionJudged {
                worker,
                attempt,
                accepted,
            } => {
                let metrics = &self.parts.metrics;
                if accepted {
                    metrics.completions_accepted.inc();
                } else {
                    metrics.completions_discarded.inc();
                }
                self.acknowledge(worker, attempt, accepted);
            }
            Action::Answer { worker, call, answer } => self.answer(worker, call, answer),
            Action::TaskResult {
                worker,
                call,
                task,
                outcome,
            } => {
                self.task_result(worker, call, &task, outcome);
            }
            Action::ChannelMessage {
                worker,
                call,
                offset,
                payload,
            } => {
                let message = wire::ChannelMessage {
                    call_id: convert::worker_call_id(call),
                    offset,
                    end_of_channel: payload.is_none(),
                    payload: payload.map(|payload| payload.to_vec()).unwrap_or_default(),
                };
                // What a reader has seen must be what a later leader replays.
                self.hold(Held::Channel { worker, message });
            }
            // Read where the job was submitted and the worker connected: both are answered at once.
            Action::JobAnswered { .. } | Action::WorkerRefused { .. } | Action::Record(_) => {}
            Action::JobChanged { job, phase } => self.job_changed(job, &phase),
            Action::TaskChanged { job, task, change } => self.task_changed(job, task, &change),
            Action::WorkerEmpty { worker } => {
                tracing::info!(%worker, name = %self.worker_name(worker), "a draining worker is empty");
                let reason = "it is empty".to_owned();
                self.send(worker, Outbound::Drain(wire::Drain { reason }));
            }
            Action::DeleteArtifact { job, name, binding } => {
                tracing::debug!(%job, %name, key = %binding.key, "nothing refers to an artifact any more");
                self.hold(Held::Delete(Deletion::Artifact(binding.key)));
            }
        }
    }

    fn assign(&mut self, assignment: &Assignment) {
        let Some(message) = self.assignment_message(assignment) else {
            // Its job was forgotten while it was on its way; the core has already taken the lease back.
            tracing::debug!(attempt = %assignment.attempt, "an assignment lost its task");
            return;
        };
        // What the worker plane can't carry is the job's fault: sending it would only break the worker's stream.
        if let Err(error) = message.validate() {
            self.following.push_back(Event::AttemptFailed {
                attempt: assignment.attempt,
                class: FailureClass::Fatal,
                reason: "AssignmentTooLarge".into(),
                message: format!(
                    "task type {} can't be sent to a worker: {error}",
                    message.task_type
                )
                .into(),
                usage: Usage::default(),
            });
            return;
        }
        self.parts.metrics.assignments.inc();
        if assignment.speculative {
            self.parts.metrics.speculative.inc();
        }
        self.send(assignment.worker, Outbound::Assign(message));
    }

    fn assignment_message(&self, assignment: &Assignment) -> Option<wire::Assign> {
        let record = self.jobs.get(&assignment.job)?;
        let task = self.state.task(assignment.task)?;
        let worker = self.workers.get(&assignment.worker)?;
        let root = self.state.job(assignment.job)?.root;
        let device = assignment
            .device
            .and_then(|device| worker.device_ids.get(usize::from(device.0)));
        let spec = task.spec;
        let plan = if assignment.task == root {
            let workers = self.catalogue.workers(&record.backend.version);
            let specs = workers
                .filter_map(|worker| self.workers.get(&worker))
                .map(|worker| &worker.spec);
            let class = record.leaf_class();
            record
                .request
                .encoded_plan(BackendCapacity::of(specs, class), assignment.replans)
        } else {
            Vec::new()
        };
        Some(wire::Assign {
            attempt_id: assignment.attempt.0,
            epoch: self.parts.epoch,
            job_id: record.request.uid.to_string(),
            artifact_prefix: record.request.prefix.as_str().trim_end_matches('/').to_owned(),
            task_type: spec.task_type.to_string(),
            device_id: device.map(ToString::to_string).unwrap_or_default(),
            prefetch: assignment.prefetch,
            inputs: assignment
                .inputs
                .iter()
                .map(|(name, binding)| convert::artifact(name, binding))
                .collect(),
            outputs: spec.outputs.iter().map(ToString::to_string).collect(),
            parameters: spec.parameters.to_vec(),
            plan,
            dependency_results: assignment
                .dependency_results
                .iter()
                .map(|result| result.to_vec())
                .collect(),
            host_memory_bytes: spec.requirements.host_memory_bytes,
            vram_bytes: spec.requirements.vram_bytes,
            alone: assignment.alone,
            attempt_number: assignment.number,
            plan_epoch: assignment.epoch,
            task_id: assignment.task.0,
            speculative: assignment.speculative,
        })
    }

    /// The one place where the end of an attempt is acknowledged, whether it completed or failed: what must be
    /// durable first is waited for here. Until then its worker keeps the report and waits before it leaves.
    pub(super) fn acknowledge(&mut self, worker: WorkerId, attempt: AttemptId, accepted: bool) {
        let worker = self.known_or_speaker(worker);
        self.hold(Held::Acknowledge {
            worker,
            attempt,
            accepted,
        });
    }

    /// The core does not know whose an attempt of a forgotten job was: whoever speaks of it is answered.
    fn known_or_speaker(&self, worker: WorkerId) -> WorkerId {
        match self.speaker {
            Some(speaker) if worker == WorkerId::UNKNOWN => speaker,
            _ => worker,
        }
    }

    fn answer(&mut self, worker: WorkerId, call: CallId, answer: Result<Answer, Refusal>) {
        let worker = self.known_or_speaker(worker);
        let call_id = convert::worker_call_id(call);
        let name = self
            .workers
            .get_mut(&worker)
            .and_then(|record| record.named_calls.remove(&call_id));
        let mut message = wire::Answer {
            call_id,
            ..wire::Answer::default()
        };
        match answer {
            Ok(Answer::Done) => {}
            Ok(Answer::Tasks(tasks)) => {
                message.task_ids = tasks.iter().map(|(task, _)| task.0).collect();
                message.already_succeeded = tasks.iter().map(|(_, succeeded)| *succeeded).collect();
            }
            Ok(Answer::Artifact(binding)) => {
                message.artifact = Some(convert::artifact(&name.unwrap_or_default(), &binding));
            }
            Ok(Answer::Dropped(dropped)) => message.dropped = dropped,
            Err(refusal) => {
                let kind = convert::refusal_kind(&refusal);
                self.parts
                    .metrics
                    .calls_refused
                    .with_label_values(&[kind.as_str_name()])
                    .inc();
                tracing::debug!(%worker, %call, %refusal, "a call is refused");
                message.error = cut_text(&refusal.to_string());
                message.error_kind = kind.into();
            }
        }
        if self.promising == Some(call) {
            let answer = message;
            self.hold(Held::Answer { worker, answer });
        } else {
            self.send(worker, Outbound::Answer(message));
        }
    }

    fn task_result(&mut self, worker: WorkerId, call: CallId, task: &str, outcome: TaskOutcome) {
        let mut message = wire::TaskResult {
            call_id: convert::worker_call_id(call),
            request_id: task.to_owned(),
            ..wire::TaskResult::default()
        };
        match outcome {
            TaskOutcome::Succeeded(result) => {
                message.succeeded = true;
                message.result = result.to_vec();
            }
            TaskOutcome::Failed(failure) => message.failure = cut_text(&failure),
        }
        self.send(worker, Outbound::TaskResult(message));
    }

    /// Counts what the last of several plans of a job did not take over from those before.
    fn count_again(&self, job: JobId) {
        let Some(told) = self.state.job(job).filter(|told| told.epoch > 0) else {
            return;
        };
        let again = again::count(|| {
            self.state.tasks(job).filter_map(|task| {
                Some(again::Cacheable {
                    key: task.spec.cache_key.as_deref()?,
                    planned: task.planned,
                    made: task.state == CoreTaskState::Succeeded && !task.from_cache,
                })
            })
        });
        // Smaller segments make everything anew, and mean to.
        let regrouped = if told.replans > 0 {
            "replanned"
        } else {
            "regrouped"
        };
        for (reason, count) in [(regrouped, again.regrouped), ("evicted", again.evicted)] {
            self.parts
                .metrics
                .tasks_again
                .with_label_values(&[reason])
                .inc_by(count);
        }
    }

    fn job_changed(&mut self, job: JobId, phase: &JobPhase) {
        let words = describe(phase);
        let waits = self.must_wait();
        let Some(record) = self.jobs.get_mut(&job) else {
            return;
        };
        let before = std::mem::replace(&mut record.phase, words.phase);
        let changed = before != words.phase;
        if changed {
            tracing::info!(
                %job, uid = %record.request.uid, phase = words.phase.as_str(), reason = %words.reason,
                words = %words.message, "a job changed"
            );
        }
        if words.phase.is_terminal() && !before.is_terminal() {
            record.withheld = waits;
            self.parts
                .metrics
                .jobs_finished
                .with_label_values(&[words.phase.as_str()])
                .inc();
            if words.phase == Phase::Succeeded {
                self.count_again(job);
            }
        }
        // Reasons of waiting change for thousands of jobs at once; only phases are shown at once.
        if changed {
            self.phases_changed.push((job, words.phase.is_terminal()));
        } else {
            self.mark_changed(job);
        }
    }

    /// Shows new phases once all actions of their event are executed: what became of the tasks comes after the phase.
    pub(super) fn show_phases(&mut self) {
        for (job, over) in std::mem::take(&mut self.phases_changed) {
            if over {
                self.hold(Held::End(job));
            } else {
                self.publish(job);
            }
        }
    }

    fn task_changed(&mut self, job: JobId, task: TaskId, change: &TaskChange) {
        let worker = match change {
            TaskChange::Assigned { worker, .. } => {
                let group = self.workers.get(worker).map(|worker| worker.spec.group.clone());
                Some((self.worker_name(*worker), group.unwrap_or_default()))
            }
            _ => None,
        };
        if let Some(record) = self.jobs.get_mut(&job) {
            match worker {
                Some((worker, group)) => record.task_assigned(task, worker, group),
                None => record.task_changed(task),
            }
            record.refresh_if_many(&self.state);
            self.mark_changed(job);
        }
    }
}
