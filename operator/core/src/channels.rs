//! Channels and subscriptions: what attempts of a job tell each other through the core.
//!
//! A channel belongs to a task, keeps all of its messages and is closed only when the task is terminal. A
//! subscription is answered when its task is terminal, at once where it is already.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::action::{Action, Answer, Refusal, TaskOutcome};
use crate::attempts::Lease;
use crate::fact::Fact;
use crate::model::{AttemptId, CallId, RequestId, TaskId};
use crate::slab::NONE;
use crate::state::State;
use crate::tasks::Stage;

/// Subscribers and readers beyond which those of ended attempts are removed.
const SWEEP: usize = 16;

/// Who listens to a task, and what it was told to pass on.
#[derive(Debug, Default)]
pub(crate) struct Links {
    subscribers: Vec<(CallId, AttemptId)>,
    messages: Vec<Message>,
    message_bytes: usize,
    /// Number of the last message of each attempt that has sent any.
    heard: BTreeMap<AttemptId, u64>,
    readers: Vec<(CallId, AttemptId)>,
    /// First offset that each reader wants.
    starts: Vec<u64>,
}

/// A message of a channel.
#[derive(Debug)]
struct Message {
    sender: AttemptId,
    number: u64,
    payload: Arc<[u8]>,
}

impl Links {
    fn append(&mut self, message: Message) {
        self.message_bytes += message.payload.len();
        self.heard.insert(message.sender, message.number);
        self.messages.push(message);
    }
}

impl State {
    fn holds_lease(&self, attempt: AttemptId) -> bool {
        self.find_attempt(attempt)
            .is_some_and(|attempt| self.attempts[attempt].lease == Lease::Held)
    }

    fn outcome(&self, task: u32) -> Option<TaskOutcome> {
        let entry = &self.tasks[task];
        let words = || {
            entry
                .trouble()
                .last_failure
                .clone()
                .unwrap_or_else(|| "the task was dropped with its plan".into())
        };
        match entry.stage {
            Stage::Succeeded => Some(TaskOutcome::Succeeded(entry.result.clone().unwrap_or_default())),
            Stage::Failed | Stage::Dropped => Some(TaskOutcome::Failed(words())),
            _ => None,
        }
    }

    pub(crate) fn tasks_subscribed(
        &mut self,
        call: CallId,
        attempt: AttemptId,
        job: u32,
        names: &[RequestId],
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let mut tasks = Vec::with_capacity(names.len());
        for name in names {
            let task = self.jobs[job].by_request.get(name);
            tasks.push(task.ok_or_else(|| Refusal::NotFound(name.clone()))?);
        }
        for task in tasks {
            match self.outcome(task) {
                Some(outcome) => self.tell_subscriber(task, call, attempt, outcome, out),
                None => {
                    let sweep = self.links(task).subscribers.len() >= SWEEP;
                    if sweep {
                        let mut subscribers = std::mem::take(&mut self.links(task).subscribers);
                        subscribers.retain(|(_, attempt)| self.holds_lease(*attempt));
                        self.links(task).subscribers = subscribers;
                    }
                    self.links(task).subscribers.push((call, attempt));
                }
            }
        }
        Ok(())
    }

    fn links(&mut self, task: u32) -> &mut Links {
        self.tasks[task].links.get_or_insert_default()
    }

    fn tell_subscriber(
        &self,
        task: u32,
        call: CallId,
        attempt: AttemptId,
        outcome: TaskOutcome,
        out: &mut Vec<Action>,
    ) {
        let Some(index) = self.find_attempt(attempt) else {
            return;
        };
        if self.attempts[index].lease == Lease::Held {
            let worker = self.attempts[index].worker_id;
            out.push(Action::TaskResult {
                worker,
                call,
                task: self.tasks[task].spec.request_id.clone(),
                outcome,
            });
        }
    }

    /// A task is terminal: subscribers are answered and its channel ends. Messages stay for late readers.
    pub(crate) fn end_links(&mut self, task: u32, out: &mut Vec<Action>) {
        let Some(links) = &mut self.tasks[task].links else {
            return;
        };
        let subscribers = std::mem::take(&mut links.subscribers);
        let readers = std::mem::take(&mut links.readers);
        links.starts.clear();
        let end = links.messages.len() as u64;
        if let Some(outcome) = self.outcome(task) {
            for (call, attempt) in subscribers {
                self.tell_subscriber(task, call, attempt, outcome.clone(), out);
            }
        }
        for (call, attempt) in readers {
            self.tell_reader(call, attempt, end, None, out);
        }
    }

    /// The channel's messages belong to a plan that is dropped.
    pub(crate) fn drop_channel(&mut self, task: u32) {
        if let Some(links) = &mut self.tasks[task].links {
            links.messages.clear();
            links.message_bytes = 0;
            links.heard.clear();
        }
    }

    /// A message that was sent before the recovery.
    pub(crate) fn restore_message(&mut self, task: u32, sender: AttemptId, number: u64, payload: Arc<[u8]>) {
        self.links(task).append(Message {
            sender,
            number,
            payload,
        });
    }

    pub(crate) fn checkpoint_channel(&self, task: u32, facts: &mut Vec<Fact>) {
        let messages = self.tasks[task].links.iter().flat_map(|links| &links.messages);
        facts.extend(messages.map(|message| Fact::ChannelMessageSent {
            task: TaskId(self.tasks.id(task)),
            sender: None,
            attempt: message.sender,
            number: message.number,
            payload: message.payload.clone(),
        }));
    }

    fn tell_reader(
        &self,
        call: CallId,
        attempt: AttemptId,
        offset: u64,
        payload: Option<Arc<[u8]>>,
        out: &mut Vec<Action>,
    ) {
        let Some(index) = self.find_attempt(attempt) else {
            return;
        };
        if self.attempts[index].lease == Lease::Held {
            let worker = self.attempts[index].worker_id;
            out.push(Action::ChannelMessage {
                worker,
                call,
                offset,
                payload,
            });
        }
    }

    pub(crate) fn channel_message_sent(
        &mut self,
        attempt: u32,
        job: u32,
        name: Option<RequestId>,
        number: u64,
        payload: &Arc<[u8]>,
        out: &mut Vec<Action>,
    ) -> Result<Answer, Refusal> {
        let own = self.attempts[attempt].task;
        let sender = self.attempt_id(attempt);
        let task = match name {
            None => own,
            Some(name) => {
                let found = self.jobs[job].by_request.get(&name);
                found.ok_or(Refusal::NotFound(name))?
            }
        };
        let limits = &self.limits;
        if payload.len() > limits.opaque_bytes {
            return Err(Refusal::LimitExceeded {
                what: "opaque_bytes",
                limit: limits.opaque_bytes as u64,
            });
        }
        let links = self.tasks[task].links.as_ref();
        let last = links.and_then(|links| links.heard.get(&sender));
        if last.is_some_and(|last| number <= *last) {
            return Ok(Answer::Done);
        }
        if self.tasks[task].stage.is_terminal() {
            return Err(Refusal::NotFound(self.tasks[task].spec.request_id.clone()));
        }
        let (messages, bytes) = (limits.channel_messages, limits.channel_bytes);
        let links = self.links(task);
        if links.messages.len() >= messages {
            return Err(Refusal::LimitExceeded {
                what: "channel_messages",
                limit: messages as u64,
            });
        }
        if links.message_bytes + payload.len() > bytes {
            return Err(Refusal::LimitExceeded {
                what: "channel_bytes",
                limit: bytes as u64,
            });
        }
        let offset = links.messages.len() as u64;
        links.append(Message {
            sender,
            number,
            payload: payload.clone(),
        });
        let readers: Vec<(CallId, AttemptId)> = links
            .readers
            .iter()
            .zip(&links.starts)
            .filter(|(_, start)| offset >= **start)
            .map(|(reader, _)| *reader)
            .collect();
        for (call, reader) in readers {
            self.tell_reader(call, reader, offset, Some(payload.clone()), out);
        }
        self.tasks[own].sent = true;
        self.record(out, || Fact::ChannelMessageSent {
            task: TaskId(self.tasks.id(task)),
            sender: Some(TaskId(self.tasks.id(own))),
            attempt: sender,
            number,
            payload: payload.clone(),
        });
        Ok(Answer::Done)
    }

    pub(crate) fn channel_opened(
        &mut self,
        call: CallId,
        attempt: AttemptId,
        job: u32,
        name: &RequestId,
        start: u64,
        out: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        let task = self.jobs[job]
            .by_request
            .get(name)
            .ok_or_else(|| Refusal::NotFound(name.clone()))?;
        let over = self.tasks[task].stage.is_terminal();
        let links = self.links(task);
        let end = links.messages.len() as u64;
        let missed = links.messages.iter().skip(start as usize);
        let replay: Vec<Arc<[u8]>> = missed.map(|message| message.payload.clone()).collect();
        for (at, payload) in replay.into_iter().enumerate() {
            self.tell_reader(call, attempt, start + at as u64, Some(payload), out);
        }
        if over {
            self.tell_reader(call, attempt, end, None, out);
            return Ok(());
        }
        if self.links(task).readers.len() >= SWEEP {
            let links = self.links(task);
            let readers = std::mem::take(&mut links.readers);
            let starts = std::mem::take(&mut links.starts);
            let kept: Vec<_> = readers
                .into_iter()
                .zip(starts)
                .filter(|((_, a), _)| self.holds_lease(*a))
                .collect();
            let links = self.links(task);
            for (reader, start) in kept {
                links.readers.push(reader);
                links.starts.push(start);
            }
        }
        let links = self.links(task);
        links.readers.push((call, attempt));
        links.starts.push(start);
        Ok(())
    }

    /// Answers a call of an attempt that is known.
    pub(crate) fn answer(
        &self,
        attempt: AttemptId,
        call: CallId,
        answer: Result<Answer, Refusal>,
        out: &mut Vec<Action>,
    ) {
        let index = self.find_attempt(attempt).unwrap_or(NONE);
        let worker = self
            .attempts
            .get(index)
            .map_or(crate::model::WorkerId::UNKNOWN, |entry| entry.worker_id);
        out.push(Action::Answer { worker, call, answer });
    }
}
