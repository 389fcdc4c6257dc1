//! What the coordinator says, and what is said to it when a stream is opened.

use std::time::Duration;

use prost::Message as _;
use prover_wire::limits::{self as wire_limits, MESSAGES_PER_BATCH};
use prover_wire::protocol::coordinator_message::Message;
use prover_wire::protocol::{
    Assign, AttemptStarted, AttemptStopped, BackendDescription, Device, DeviceChanged, FailureClass,
    HeldAttempt, RecallAnswer, WorkerHello, WorkerMessage,
};
use tokio_util::sync::CancellationToken;

use super::Agent;
use super::children::USABLE_AGAIN;
use crate::attempt::{Attempt, Stage};
use crate::config::BackendPlace;
use crate::event::{Event, Outgoing};
use crate::limits::CALL_AGAIN_AFTER;
use crate::usage::Share;

impl Agent {
    /// What the worker is and holds; none as long as no child has said what it is.
    pub(super) fn hello(&self) -> Option<WorkerHello> {
        let backend = self.backend.as_ref()?;
        let devices = self
            .slots
            .iter()
            .filter(|slot| !slot.is_control())
            .map(|slot| Device {
                id: slot.device.id.clone(),
                class: self.config.device_kind.wire().into(),
                product: slot.device.product.clone(),
                vram_bytes: slot.device.vram_bytes,
                attempts_at_once: backend.attempts_at_once,
            });
        Some(WorkerHello {
            protocol_version: prover_wire::PROTOCOL_VERSION,
            worker_id: self.config.worker_id.clone(),
            worker_group: self.config.worker_group.clone(),
            host_memory_bytes: self.config.host_memory_bytes,
            devices: devices.collect(),
            backend: Some(BackendDescription {
                name: backend.name.clone(),
                version: backend.version.clone(),
                encoded: backend.encode_to_vec(),
            }),
            held: self.attempts.values().map(held).collect(),
            // Known to the session, which fills it and the number of the stream in.
            highest_epoch: 0,
            process_id: u64::from(std::process::id()),
            stream: 0,
            process_nonce: 0,
            batch_messages: u32::try_from(MESSAGES_PER_BATCH).unwrap_or(u32::MAX),
        })
    }

    /// A stream is open: says what happened since its hello, what was not acknowledged, and what was not answered.
    pub(super) fn connected(&mut self, outgoing: Outgoing, epoch: u64, stop: &[u64], told: &[HeldAttempt]) {
        self.outgoing = Some(outgoing);
        tracing::debug!(epoch, held = self.attempts.len(), "reporting what is held");
        for attempt in stop {
            self.stop_attempt(
                *attempt,
                "the coordinator does not know the attempt as this worker's",
            );
        }
        for held in told {
            if !self.attempts.contains_key(&held.attempt_id) && !stop.contains(&held.attempt_id) {
                self.send(AttemptStopped {
                    attempt_id: held.attempt_id,
                });
            }
        }
        let started_before = |id| told.iter().any(|held| held.attempt_id == id && held.started);
        let mut messages: Vec<WorkerMessage> = Vec::new();
        for (id, attempt) in &self.attempts {
            if attempt.stage.has_started() && !started_before(*id) {
                messages.push(AttemptStarted { attempt_id: *id }.into());
            }
            if let Stage::Reported(report) = &attempt.stage {
                messages.push((**report).clone());
            }
        }
        for slot in self
            .slots
            .iter()
            .filter(|slot| slot.was_unusable && !slot.is_control())
        {
            let change = DeviceChanged {
                device_id: slot.device.id.clone(),
                usable: slot.unusable.is_none(),
                reason: slot.unusable.clone().unwrap_or_else(|| USABLE_AGAIN.to_owned()),
            };
            messages.push(change.into());
        }
        messages.extend(self.calls.again().into_iter().map(WorkerMessage::from));
        for message in messages {
            self.send(message);
        }
        self.tell_draining();
    }

    pub(super) fn coordinator_says(&mut self, message: Message) {
        match message {
            Message::Assign(assign) => self.assigned(assign),
            Message::Recall(recall) => self.recalled(recall.attempt_id),
            Message::Stop(stop) => self.stop_attempt(stop.attempt_id, &stop.reason),
            Message::Acknowledged(acknowledged) => self.acknowledged(acknowledged.attempt_id),
            Message::Answer(answer) => {
                let call = answer.call_id;
                if self.calls.answer(answer) {
                    self.later(CALL_AGAIN_AFTER, Event::CallAgain { call });
                }
            }
            Message::TaskResult(result) => self.calls.task_result(result),
            Message::ChannelMessage(message) => self.calls.channel_message(message),
            Message::Drain(drain) => {
                // A container that ends is started again: in a pod it stays, with nothing to do, until the pod goes.
                let leaves = matches!(self.config.backend, BackendPlace::Command(_));
                self.start_drain(&format!("the coordinator asked for it: {}", drain.reason), leaves);
            }
            Message::Welcome(_) => tracing::warn!("the coordinator sent a second welcome: ignored"),
            Message::NotLeader(_) => {
                tracing::warn!("the session ends by itself where another one leads: ignored");
            }
            // Answered by its arrival: the session has noted it.
            Message::Heartbeat(_) => {}
            Message::Batch(_) => tracing::warn!("the session takes batches apart by itself: ignored"),
        }
    }

    fn assigned(&mut self, assign: Assign) {
        let id = assign.attempt_id;
        if self.attempts.contains_key(&id) {
            tracing::debug!(attempt = id, "assigned again: it is here already");
            return;
        }
        self.held.insert(id);
        let slot = self.slots.iter().position(|slot| slot.serves(&assign.device_id));
        let attempt = Attempt {
            slot: slot.unwrap_or(self.slots.len() - 1),
            stage: Stage::Queued,
            folder: self.work.attempt(id),
            cancel: CancellationToken::new(),
            fetch: Duration::ZERO,
            upload: Duration::ZERO,
            share: Share::default(),
            peak_memory_bytes: 0,
            assign,
        };
        tracing::info!(
            attempt = id,
            job = attempt.assign.job_id,
            task = attempt.assign.task_id,
            number = attempt.assign.attempt_number,
            task_type = attempt.assign.task_type,
            device = attempt.assign.device_id,
            prefetch = attempt.assign.prefetch,
            speculative = attempt.assign.speculative,
            "assigned"
        );
        if attempt.assign.speculative {
            self.metrics.speculative_attempts.inc();
        }
        let device_id = attempt.assign.device_id.clone();
        self.attempts.insert(id, attempt);
        let Some(slot) = slot else {
            let message = format!("worker {} has no device {device_id:?}", self.config.worker_id);
            self.fail(id, FailureClass::Retryable, "UnknownDevice", &message, None);
            return;
        };
        if self.draining.is_some() {
            self.give_back(id);
            return;
        }
        if self.attempts.len() > wire_limits::ATTEMPTS_PER_WORKER {
            let message = format!(
                "the worker holds {} attempts already",
                wire_limits::ATTEMPTS_PER_WORKER
            );
            self.fail(id, FailureClass::Retryable, "TooManyAttempts", &message, None);
            return;
        }
        if let Some(reason) = self.slots[slot].unusable.clone() {
            self.fail(id, FailureClass::Retryable, "DeviceUnusable", &reason, None);
            return;
        }
        if self.slots[slot].keeper.is_none()
            && let Err(error) = self.start_keeper(slot)
        {
            self.fail(
                id,
                FailureClass::Retryable,
                "DeviceUnusable",
                &error.to_string(),
                None,
            );
            return;
        }
        self.fetch_what_has_room();
    }

    fn recalled(&mut self, id: u64) {
        let waits = self
            .attempts
            .get(&id)
            .is_some_and(|attempt| !attempt.stage.has_started());
        if waits {
            self.give_back(id);
        } else {
            self.send(RecallAnswer {
                attempt_id: id,
                given_back: false,
            });
        }
    }

    /// Lets go of an attempt that has not started.
    pub(super) fn give_back(&mut self, id: u64) {
        tracing::info!(attempt = id, "given back");
        self.metrics.attempts.with_label_values(&["given_back"]).inc();
        self.send(RecallAnswer {
            attempt_id: id,
            given_back: true,
        });
        self.forget(id);
    }

    fn acknowledged(&mut self, id: u64) {
        if self
            .attempts
            .get(&id)
            .is_some_and(|attempt| matches!(attempt.stage, Stage::Reported(_)))
        {
            self.forget(id);
        }
    }
}

fn held(attempt: &Attempt) -> HeldAttempt {
    HeldAttempt {
        attempt_id: attempt.assign.attempt_id,
        started: attempt.stage.has_started(),
        completed: matches!(attempt.stage, Stage::Reported(_)),
        task_id: attempt.assign.task_id,
        device_id: attempt.assign.device_id.clone(),
        attempt_number: attempt.assign.attempt_number,
        plan_epoch: attempt.assign.plan_epoch,
    }
}
