//! The way of an attempt: queued, fetching, ready, in the child, uploading, reported. And how it is cut short.

use std::time::Duration;

use prost::Message as _;
use prover_backend::protocol::{
    AttemptCompleted, AttemptFailed as ChildFailed, AttemptProgress as ChildProgress, ExecutionReport,
    JobPlan, RunAttempt, StopAttempt,
};
use prover_backend::{CallError, validate};
use prover_wire::protocol::{
    AttemptFailed, AttemptProgress, AttemptStarted, AttemptStopped, AttemptSucceeded, FailureClass,
    WorkerMessage, call,
};
use prover_wire::{Validate, limits as wire_limits};

use super::Agent;
use crate::attempt::Stage;
use crate::calls;
use crate::child::Killed;
use crate::event::{AttemptView, Event, Reply};
use crate::limits::{PLACES_KEPT_FROM_PROGRESS, STOP_WITHIN};
use crate::transfer::{self, AttemptFolder, Fetched, TransferError, Uploaded};

impl Agent {
    /// Starts to fetch the inputs of queued attempts that have room, in order of assignment.
    pub(super) fn fetch_what_has_room(&mut self) {
        let mut used: u64 = self
            .attempts
            .values()
            .filter(|attempt| attempt.stage.has_files())
            .map(|a| a.input_bytes())
            .sum();
        let mut too_large = Vec::new();
        for (id, attempt) in &mut self.attempts {
            if !matches!(attempt.stage, Stage::Queued) {
                continue;
            }
            let bytes = attempt.input_bytes();
            if bytes > self.work.bytes() {
                too_large.push((*id, bytes));
                continue;
            }
            if used.saturating_add(bytes) > self.work.bytes() {
                break;
            }
            used += bytes;
            attempt.stage = Stage::Fetching;
            let (store, events, attempt_id) = (self.store.clone(), self.events.clone(), *id);
            let (inputs, folder) = (attempt.assign.inputs.clone(), attempt.folder.clone());
            let cancel = attempt.cancel.clone();
            tokio::spawn(async move {
                tokio::select! {
                    result = transfer::fetch(store, inputs, folder) => {
                        drop(events.send(Event::Fetched { attempt: attempt_id, result }).await);
                    }
                    () = cancel.cancelled() => {}
                }
            });
        }
        for (id, bytes) in too_large {
            let message = format!(
                "its inputs take {bytes} bytes, but the work directory of worker {} has room for {}: give it more",
                self.config.worker_id,
                self.work.bytes()
            );
            self.fail(
                id,
                FailureClass::Retryable,
                "WorkDirectoryTooSmall",
                &message,
                None,
            );
        }
    }

    pub(super) fn fetched(&mut self, id: u64, result: Result<Fetched, TransferError>) {
        let Some(attempt) = self
            .attempts
            .get_mut(&id)
            .filter(|attempt| matches!(attempt.stage, Stage::Fetching))
        else {
            return;
        };
        match result {
            Ok(fetched) => {
                self.metrics.fetch_seconds.observe(fetched.took.as_secs_f64());
                self.metrics.fetched_bytes.inc_by(fetched.bytes);
                attempt.fetch = fetched.took;
                attempt.stage = Stage::Ready(fetched.inputs);
                let slot = attempt.slot;
                self.start_what_can(slot);
            }
            Err(error) => self.fail(id, error.class(), error.reason(), &error.to_string(), None),
        }
    }

    /// Hands attempts to the child of a slot as long as it has places.
    pub(super) fn start_what_can(&mut self, slot: usize) {
        while let Some(id) = self.next_to_start(slot) {
            self.start(slot, id);
        }
    }

    fn next_to_start(&self, index: usize) -> Option<u64> {
        let slot = &self.slots[index];
        let backend = self.backend.as_ref()?;
        slot.child.as_ref()?;
        let running = slot.in_child.len();
        let running_alone = slot
            .in_child
            .iter()
            .any(|id| self.attempts.get(id).is_some_and(|attempt| attempt.assign.alone));
        if running >= slot.capacity(backend) || running_alone {
            return None;
        }
        let waiting = || {
            self.attempts
                .values()
                .filter(move |attempt| attempt.slot == index && !attempt.stage.has_started())
        };
        // What was fetched ahead only takes a place that nobody was given.
        let given = waiting().filter(|attempt| !attempt.assign.prefetch).count();
        let may_start = |prefetch: bool| !prefetch || running + given < slot.capacity(backend);
        let mut candidates: Vec<_> = waiting()
            .filter(|attempt| matches!(attempt.stage, Stage::Ready(_)) && may_start(attempt.assign.prefetch))
            .filter(|attempt| !attempt.assign.alone || running == 0)
            .collect();
        candidates.sort_by_key(|attempt| (attempt.assign.prefetch, attempt.assign.attempt_id));
        candidates.first().map(|attempt| attempt.assign.attempt_id)
    }

    fn start(&mut self, slot: usize, id: u64) {
        self.read_clock(slot);
        let Some(attempt) = self.attempts.get_mut(&id) else {
            return;
        };
        let Stage::Ready(inputs) = std::mem::replace(&mut attempt.stage, Stage::Running) else {
            return;
        };
        let assign = &attempt.assign;
        let plan = match assign.plan.as_slice() {
            [] => None,
            encoded => match JobPlan::decode(encoded) {
                Ok(plan) => Some(plan),
                Err(error) => {
                    let message = format!("the plan of the job can't be read: {error}");
                    self.fail(id, FailureClass::Fatal, "MalformedAssignment", &message, None);
                    return;
                }
            },
        };
        let run = RunAttempt {
            attempt_id: id,
            job_id: assign.job_id.clone(),
            task_type: assign.task_type.clone(),
            directory: attempt.folder.path().to_string_lossy().into_owned(),
            inputs,
            outputs: assign.outputs.clone(),
            parameters: assign.parameters.clone(),
            plan,
            dependency_results: assign.dependency_results.clone(),
            attempt_number: assign.attempt_number,
        };
        if let Err(error) = validate::run_attempt(&run) {
            self.fail(
                id,
                FailureClass::Fatal,
                "MalformedAssignment",
                &error.to_string(),
                None,
            );
            return;
        }
        let slot = &mut self.slots[slot];
        slot.in_child.insert(id);
        slot.clock.start(id);
        let sent = slot
            .child
            .as_ref()
            .is_some_and(|child| child.commands.try_send(Ok(run.into())).is_ok());
        if !sent {
            // The attempt fails with the child, whose end comes as an event.
            slot.kill(Killed::NotReading);
        }
        tracing::debug!(attempt = id, device = slot.device.id, "started");
        self.send(AttemptStarted { attempt_id: id });
    }

    pub(super) fn progressed(&mut self, progress: &ChildProgress) {
        // Lossy: a backend that tells more than the coordinator reads must not cost the stream.
        let places = self
            .outgoing
            .as_ref()
            .map_or(0, |outgoing| outgoing.queue.capacity());
        if places < PLACES_KEPT_FROM_PROGRESS {
            return;
        }
        let attempt_id = progress.attempt_id;
        self.send(AttemptProgress {
            attempt_id,
            encoded: progress.encode_to_vec(),
        });
    }

    /// The attempt has left its child: its place is free, what comes next may start.
    fn left_child(&mut self, id: u64) {
        let Some(slot) = self.attempts.get(&id).map(|attempt| attempt.slot) else {
            return;
        };
        if !self.slots[slot].in_child.contains(&id) {
            return;
        }
        self.read_clock(slot);
        let peak = self.slots[slot]
            .child
            .as_ref()
            .and_then(|child| child.meter.peak_memory_bytes());
        let share = self.slots[slot].clock.end(id);
        self.slots[slot].in_child.remove(&id);
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.share = share;
            attempt.peak_memory_bytes = peak.unwrap_or_default();
        }
        self.calls.drop_attempts(&[id].into());
    }

    pub(super) fn child_completed(&mut self, completed: AttemptCompleted) {
        let id = completed.attempt_id;
        let Some(attempt) = self.attempts.get(&id) else {
            return;
        };
        let slot = attempt.slot;
        if matches!(attempt.stage, Stage::Stopping) {
            self.stopped(id);
            return;
        }
        let task_type = self
            .backend
            .as_ref()
            .and_then(|backend| backend.task_type(&attempt.assign.task_type));
        let checked = task_type.map_or(Ok(()), |task_type| validate::completed(task_type, &completed));
        self.left_child(id);
        if let Err(error) = checked {
            self.fail(
                id,
                FailureClass::Fatal,
                error.category(),
                &error.to_string(),
                completed.execution.as_ref(),
            );
        } else if let Some(attempt) = self.attempts.get_mut(&id) {
            let (store, events, cancel) = (self.store.clone(), self.events.clone(), attempt.cancel.clone());
            let (prefix, folder) = (attempt.assign.artifact_prefix.clone(), attempt.folder.clone());
            let (declared, outputs) = (attempt.assign.outputs.clone(), completed.outputs.clone());
            attempt.stage = Stage::Uploading(Box::new(completed));
            tokio::spawn(async move {
                let started = tokio::time::Instant::now();
                let uploading = transfer::upload(store, prefix, folder, declared, outputs);
                tokio::select! {
                    result = uploading => {
                        drop(events.send(Event::Uploaded { attempt: id, result, took: started.elapsed() }).await);
                    }
                    () = cancel.cancelled() => {}
                }
            });
        }
        // The device goes on while the outputs are stored.
        self.start_what_can(slot);
    }

    pub(super) fn uploaded(&mut self, id: u64, result: Result<Uploaded, TransferError>, took: Duration) {
        let Some(attempt) = self.attempts.get_mut(&id) else {
            return;
        };
        let Stage::Uploading(completed) = &attempt.stage else {
            return;
        };
        attempt.upload = took;
        let uploaded = match result {
            Ok(uploaded) => uploaded,
            Err(error) => {
                let execution = completed.execution.clone();
                self.fail(
                    id,
                    error.class(),
                    error.reason(),
                    &error.to_string(),
                    execution.as_ref(),
                );
                return;
            }
        };
        self.metrics.upload_seconds.observe(took.as_secs_f64());
        self.metrics.uploaded_bytes.inc_by(uploaded.bytes);
        let succeeded = AttemptSucceeded {
            attempt_id: id,
            outputs: uploaded.outputs,
            result: completed.result.clone(),
            execution: completed
                .execution
                .as_ref()
                .map(ExecutionReport::encode_to_vec)
                .unwrap_or_default(),
            proof: completed
                .proof
                .as_ref()
                .map(prost::Message::encode_to_vec)
                .unwrap_or_default(),
            usage: Some(attempt.usage(completed.device_milliseconds)),
        };
        if let Err(error) = succeeded.validate() {
            self.fail(
                id,
                FailureClass::Fatal,
                "MalformedReport",
                &error.to_string(),
                None,
            );
            return;
        }
        self.metrics.attempts.with_label_values(&["succeeded"]).inc();
        self.report(id, succeeded.into());
    }

    pub(super) fn child_failed(&mut self, failed: &ChildFailed) {
        let id = failed.attempt_id;
        let stopping = self
            .attempts
            .get(&id)
            .is_some_and(|attempt| matches!(attempt.stage, Stage::Stopping));
        if stopping {
            self.stopped(id);
        } else if let Err(error) = validate::failed(failed) {
            let message = format!("{}: {}", error, failed.message);
            self.fail(
                id,
                FailureClass::Retryable,
                "MalformedReport",
                &message,
                failed.execution.as_ref(),
            );
        } else {
            use prover_backend::protocol::FailureClass as Child;
            let class = match failed.class() {
                Child::Retryable | Child::Unspecified => FailureClass::Retryable,
                Child::OutOfMemory => FailureClass::OutOfMemory,
                Child::Fatal => FailureClass::Fatal,
                Child::InvalidInput => FailureClass::InvalidInput,
                Child::Artifact => FailureClass::Artifact,
            };
            self.fail(
                id,
                class,
                &failed.reason,
                &failed.message,
                failed.execution.as_ref(),
            );
        }
    }

    /// The child gave the attempt up. Unless it was asked to, that is a failure: nothing else would run it again.
    pub(super) fn child_stopped(&mut self, id: u64) {
        let Some(attempt) = self.attempts.get(&id) else {
            return;
        };
        if matches!(attempt.stage, Stage::Stopping) {
            self.stopped(id);
        } else {
            let message = "the backend stopped the attempt without being asked to";
            self.fail(id, FailureClass::Retryable, "StoppedByBackend", message, None);
        }
    }

    /// Ends an attempt without a result, whatever its stage. Its device goes on with the next one.
    pub(super) fn fail(
        &mut self,
        id: u64,
        class: FailureClass,
        reason: &str,
        message: &str,
        execution: Option<&ExecutionReport>,
    ) {
        self.left_child(id);
        let Some(attempt) = self.attempts.get(&id) else {
            return;
        };
        let slot = attempt.slot;
        tracing::info!(
            attempt = id,
            class = class.as_str_name(),
            reason,
            "failed: {message}"
        );
        let failed = AttemptFailed {
            attempt_id: id,
            class: class.into(),
            reason: reason.to_owned(),
            message: wire_limits::cut_text(message),
            execution: execution.map(ExecutionReport::encode_to_vec).unwrap_or_default(),
            usage: Some(attempt.usage(0)),
        };
        self.metrics.attempts.with_label_values(&[outcome(class)]).inc();
        self.report(id, failed.into());
        self.start_what_can(slot);
    }

    /// Reports the end of an attempt and keeps the report until it is acknowledged. Its files can go: all that
    /// counts is in the store or in the report.
    fn report(&mut self, id: u64, report: WorkerMessage) {
        self.send(report.clone());
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.cancel.cancel();
            attempt.stage = Stage::Reported(Box::new(report));
            remove_later(attempt.folder.clone());
        }
        self.fetch_what_has_room();
    }

    /// Drops an attempt with its files and calls.
    pub(super) fn forget(&mut self, id: u64) {
        self.left_child(id);
        self.held.remove(id);
        if let Some(attempt) = self.attempts.remove(&id) {
            attempt.cancel.cancel();
            if attempt.stage.has_files() {
                remove_later(attempt.folder);
            }
            self.start_what_can(attempt.slot);
        }
        self.fetch_what_has_room();
    }

    /// Stops an attempt at any stage and discards what it makes.
    pub(super) fn stop_attempt(&mut self, id: u64, reason: &str) {
        let Some(attempt) = self.attempts.get_mut(&id) else {
            // It is over already; the coordinator wants to hear that nothing of it runs.
            self.held.remove(id);
            self.send(AttemptStopped { attempt_id: id });
            return;
        };
        match attempt.stage {
            Stage::Stopping => {}
            Stage::Running => {
                tracing::info!(attempt = id, reason, "stopping");
                attempt.stage = Stage::Stopping;
                attempt.cancel.cancel();
                let slot = attempt.slot;
                self.calls.drop_attempts(&[id].into());
                let stop = StopAttempt {
                    attempt_id: id,
                    only_if_not_started: false,
                };
                let child = self.slots[slot].child.as_ref();
                if child.is_some_and(|child| child.commands.try_send(Ok(stop.into())).is_err()) {
                    self.slots[slot].kill(Killed::NotReading);
                }
                self.later(STOP_WITHIN, Event::StopOverdue { attempt: id });
            }
            Stage::Queued | Stage::Fetching | Stage::Ready(_) | Stage::Uploading(_) | Stage::Reported(_) => {
                tracing::info!(attempt = id, reason, "stopped before or after its run");
                self.stopped(id);
            }
        }
    }

    /// A stopped attempt has left its device.
    pub(super) fn stopped(&mut self, id: u64) {
        self.metrics.attempts.with_label_values(&["stopped"]).inc();
        self.send(AttemptStopped { attempt_id: id });
        self.forget(id);
    }

    /// A stopped attempt is still in its child, which is killed if it serves nobody else.
    pub(super) fn stop_overdue(&mut self, id: u64) {
        let Some(attempt) = self
            .attempts
            .get(&id)
            .filter(|attempt| matches!(attempt.stage, Stage::Stopping))
        else {
            return;
        };
        let slot = &self.slots[attempt.slot];
        let serves_others = slot.in_child.iter().any(|other| {
            self.attempts
                .get(other)
                .is_some_and(|other| matches!(other.stage, Stage::Running))
        });
        if serves_others {
            self.later(STOP_WITHIN, Event::StopOverdue { attempt: id });
        } else {
            tracing::info!(
                attempt = id,
                device = slot.device.id,
                "does not stop: its backend process is killed"
            );
            slot.kill(Killed::ToStopAttempt);
        }
    }

    /// An attempt makes a call.
    pub(super) fn called(&mut self, slot: usize, id: u64, call: call::Call, reply: Reply) {
        if let Err(error) = self.view(slot, id) {
            calls::refuse(reply, error);
            return;
        }
        let probe = prover_wire::protocol::Call {
            call_id: 1,
            attempt_id: id,
            call: Some(call.clone()),
        };
        if let Err(error) = probe.validate() {
            calls::refuse(reply, CallError::InvalidArgument(error.to_string()));
            return;
        }
        if let Some(call) = self.calls.add(id, call, reply) {
            self.send(call);
        }
    }

    /// Where a running attempt lives.
    pub(super) fn view(&self, slot: usize, id: u64) -> Result<AttemptView, CallError> {
        let attempt = self
            .attempts
            .get(&id)
            .filter(|attempt| attempt.slot == slot && attempt.stage.is_in_child());
        let attempt =
            attempt.ok_or_else(|| CallError::LeaseLost(format!("attempt {id} does not run here")))?;
        if matches!(attempt.stage, Stage::Stopping) {
            return Err(CallError::LeaseLost(format!("attempt {id} was stopped")));
        }
        let description = self
            .backend
            .clone()
            .ok_or_else(|| CallError::Internal("no backend".to_owned()))?;
        Ok(AttemptView {
            folder: attempt.folder.clone(),
            artifact_prefix: attempt.assign.artifact_prefix.clone(),
            description,
            cancel: attempt.cancel.clone(),
        })
    }
}

/// Label of the metric, from a fixed set.
fn outcome(class: FailureClass) -> &'static str {
    match class {
        FailureClass::Unspecified => "unspecified",
        FailureClass::Retryable => "retryable",
        FailureClass::OutOfMemory => "out_of_memory",
        FailureClass::Fatal => "fatal",
        FailureClass::InvalidInput => "invalid_input",
        FailureClass::Artifact => "artifact",
        FailureClass::ChildCrashed => "child_crashed",
        FailureClass::ChildHung => "child_hung",
        FailureClass::ChildOutOfMemory => "child_out_of_memory",
        FailureClass::WorkerLeaving => "worker_leaving",
    }
}

/// Removes files without holding up the agent's loop.
fn remove_later(folder: AttemptFolder) {
    tokio::task::spawn_blocking(move || {
        if let Err(error) = folder.remove()
            && error.kind() != std::io::ErrorKind::NotFound
        {
            let directory = folder.path();
            tracing::warn!(directory = %directory.display(), %error, "an attempt's files could not be removed");
        }
    });
}
