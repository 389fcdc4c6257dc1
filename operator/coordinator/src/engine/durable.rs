//! What waits for the log: acknowledgements, answers, deletes, ends of jobs. And what a coordinator knows from the log
//! of those before it.
//!
//! Owns when something may be seen outside. Does not own the log: the driver takes the records, and tells how far the
//! log has them.

use std::collections::BTreeSet;
use std::sync::Arc;

use prover_core::{AttemptId, CallId, Event, Fact, JobId, Milliseconds, State, WorkerId};
use prover_wire::protocol as wire;
use prover_wire::protocol::coordinator_message::Message as Outbound;
use tokio::sync::{oneshot, watch};

use super::{Engine, EngineParts};
use crate::admission::JobRequest;
use crate::catalogue::Backend;
use crate::command::Released;
use crate::convert;
use crate::deletes::Deletion;
use crate::record::{JobRecord, early_view};
use crate::remembered::{Memory, Record, ShellChange, shell_fact};
use crate::view::{JobView, Phase};

/// Reason of a job of which the log says too little to go on with it.
const NOT_REMEMBERED: &str = "NotRemembered";

/// What a job left in the store is looked for again if it ended so shortly before the recovery: its leader may have
/// died before it did.
const SWEPT_AGAIN: Milliseconds = Milliseconds(600_000);

/// What is done once the log has all that was recorded before it.
#[derive(Debug)]
pub(super) enum Held {
    Acknowledge {
        worker: WorkerId,
        attempt: AttemptId,
        accepted: bool,
    },
    Answer {
        worker: WorkerId,
        answer: wire::Answer,
    },
    Channel {
        worker: WorkerId,
        message: wire::ChannelMessage,
    },
    Delete(Deletion),
    /// A job is over: it is shown, and what its attempts left is swept.
    End(JobId),
    /// What of a released job must stay is told.
    Release {
        reply: oneshot::Sender<Released>,
        answer: Released,
    },
    /// A job is over that was never taken.
    EndWaiting {
        sender: watch::Sender<Arc<JobView>>,
        view: Box<JobView>,
    },
}

/// Calls whose answer promises that something will not be forgotten.
fn promises(event: &Event) -> bool {
    matches!(
        event,
        Event::TasksSubmitted { .. }
            | Event::MarkerCompleted { .. }
            | Event::ChannelMessageSent { .. }
            | Event::ArtifactBound { .. }
            | Event::ArtifactsDeleted { .. }
            | Event::ReferenceAdded { .. }
            | Event::ReferenceRemoved { .. }
    )
}

/// The call whose answer waits for the log.
pub(super) fn promising_call(event: &Event) -> Option<CallId> {
    event.caller().filter(|_| promises(event)).map(|(call, _)| call)
}

impl Engine {
    /// Knows what a log says. `state` is of a higher epoch than all before.
    #[must_use]
    pub(crate) fn recovered(parts: EngineParts, state: State, memory: Memory) -> Engine {
        let mut engine = Engine::with_state(parts, state);
        engine.memory = memory;
        let known: Vec<(JobId, Arc<str>)> = engine
            .state
            .jobs()
            .map(|job| (job.job, job.uid.clone()))
            .collect();
        let mut lost = Vec::new();
        for (job, uid) in known {
            match engine.remembered_record(job, &uid) {
                Some(record) => drop(engine.jobs.insert(job, record)),
                None => lost.push((job, uid)),
            }
        }
        for (job, uid) in lost {
            tracing::error!(%job, %uid, "the log knows a job, but not how it was taken: it can't go on");
            engine.apply(Event::JobAborted {
                job,
                reason: NOT_REMEMBERED,
                message: "the log of the coordinator before does not say how the job was taken".into(),
            });
        }
        engine.apply(Event::Tick);
        let all: Vec<JobId> = engine.jobs.keys().copied().collect();
        let now = engine.now();
        for job in all {
            let ended = engine.state.job(job).and_then(|told| told.finished_at);
            if ended.is_some_and(|at| now < at + SWEPT_AGAIN) {
                engine.to_sweep.insert(job);
            }
            engine.publish(job);
        }
        engine
    }

    fn remembered_record(&self, job: JobId, uid: &str) -> Option<JobRecord> {
        let remembered = self.memory.job(uid)?;
        let told = self.state.job(job)?;
        let request = JobRequest::remembered(uid, &remembered.taken, told.policy)?;
        let backend = Arc::new(Backend::remembered(&remembered.taken.backend)?);
        let view = early_view(&request, told.submitted_at, Phase::Queued, "Admitted", "");
        let (sender, _) = watch::channel(Arc::new(view));
        let mut record = JobRecord::new(job, request, backend, sender);
        record.returned(&self.state, remembered);
        Some(record)
    }

    /// Facts of the core that came with an event, for the log.
    pub(super) fn record_core(&mut self, facts: Vec<Fact>) {
        if facts.is_empty() {
            return;
        }
        self.recorded += facts.len() as u64;
        for fact in &facts {
            self.memory.core(fact);
        }
        self.unwritten.push(facts.into_iter().map(Record::Core).collect());
    }

    /// A fact of the shell. With `join` it belongs to the facts that were recorded last: a log has all or none.
    pub(super) fn record_shell(&mut self, uid: &str, change: ShellChange, join: bool) {
        if !self.parts.limits.record_facts {
            return;
        }
        let fact = shell_fact(uid, change);
        self.recorded += 1;
        self.memory.shell(fact.clone());
        match self.unwritten.last_mut().filter(|_| join) {
            Some(group) => group.push(Record::Shell(fact)),
            None => self.unwritten.push(vec![Record::Shell(fact)]),
        }
    }

    /// What the log must have, in order; each group whole or not at all. A record's index is its number, from 1.
    pub fn take_records(&mut self) -> Vec<Vec<Record>> {
        std::mem::take(&mut self.unwritten)
    }

    /// How many records have been made.
    #[must_use]
    pub fn recorded(&self) -> u64 {
        self.recorded
    }

    /// The log has all records up to this index: what waited for them happens.
    pub fn committed(&mut self, index: u64) {
        self.committed = self.committed.max(index);
        while self
            .held
            .front()
            .is_some_and(|(needs, _)| *needs <= self.committed)
        {
            if let Some((_, held)) = self.held.pop_front() {
                self.perform(held);
            }
        }
        self.show_held();
    }

    /// Records that say everything that all records so far say.
    #[must_use]
    pub fn checkpoint(&self) -> Vec<Record> {
        let core = self.state.checkpoint().into_iter().map(Record::Core);
        self.memory.checkpoint().into_iter().chain(core).collect()
    }

    /// Whether the log takes nothing more: new work is refused meanwhile, what is known goes on.
    pub fn set_log_full(&mut self, full: bool) {
        if std::mem::replace(&mut self.log_full, full) != full {
            if full {
                tracing::warn!("the log can't be written: new jobs and tasks are refused until it can");
            } else {
                tracing::info!("the log can be written again");
            }
        }
    }

    pub(super) fn must_wait(&self) -> bool {
        self.recorded > self.committed
    }

    /// Does it now, or once the log has all that was recorded before.
    pub(super) fn hold(&mut self, held: Held) {
        if self.must_wait() {
            self.held.push_back((self.recorded, held));
            self.show_held();
        } else {
            self.perform(held);
        }
    }

    fn show_held(&self) {
        let held = i64::try_from(self.held.len()).unwrap_or(i64::MAX);
        self.parts.metrics.waiting_for_log.set(held);
    }

    fn perform(&mut self, held: Held) {
        match held {
            Held::Acknowledge {
                worker,
                attempt,
                accepted,
            } => {
                self.parts.metrics.acknowledgements.inc();
                let message = wire::CompletionAcknowledged {
                    attempt_id: attempt.0,
                    accepted,
                };
                self.send_acknowledgement(worker, message);
            }
            Held::Answer { worker, answer } => self.send(worker, Outbound::Answer(answer)),
            Held::Channel { worker, message } => self.send(worker, Outbound::ChannelMessage(message)),
            Held::Delete(deletion) => self.deletions.push(deletion),
            Held::Release { reply, answer } => drop(reply.send(answer)),
            Held::EndWaiting { sender, view } => drop(sender.send_replace(Arc::new(*view))),
            Held::End(job) => {
                if let Some(record) = self.jobs.get_mut(&job) {
                    record.withheld = false;
                }
                self.publish(job);
                self.to_sweep.insert(job);
            }
        }
    }

    /// What attempts of a job that is over left in the store goes, once none of them runs.
    pub(super) fn sweep_ended(&mut self) {
        if self.to_sweep.is_empty() {
            return;
        }
        let mut waiting = BTreeSet::new();
        for job in std::mem::take(&mut self.to_sweep) {
            let (Some(record), Some(told)) = (self.jobs.get(&job), self.state.job(job)) else {
                continue;
            };
            if told.attempts_placed > 0 {
                waiting.insert(job);
                continue;
            }
            let prefix = record.request.prefix.clone();
            let keep = self.state.kept_keys(job, prefix.as_str());
            self.deletions.push(Deletion::Leftovers { prefix, keep });
        }
        self.to_sweep = waiting;
    }

    /// All jobs that exist have been submitted: others that the log knows are forgotten.
    pub(super) fn jobs_synced(&mut self) {
        let unclaimed: Vec<(JobId, Arc<str>, bool)> = self
            .jobs
            .iter()
            .filter(|(_, record)| !record.claimed)
            .map(|(job, record)| (*job, record.request.uid.clone(), record.phase.is_terminal()))
            .collect();
        for (job, uid, over) in unclaimed {
            tracing::info!(%job, %uid, "a job that the log knows does not exist any more");
            if !over {
                self.apply(Event::JobCancelled { job });
            }
            self.forget(&uid);
        }
    }

    /// Workers that are waited for since the recovery, of which this is known to be gone.
    pub(super) fn not_awaited(&mut self, gone: impl Fn(&str) -> bool) {
        let names: Vec<Arc<str>> = self
            .state
            .awaited_workers()
            .filter(|name| gone(name))
            .cloned()
            .collect();
        for name in names {
            tracing::info!(%name, "a worker that was waited for is gone");
            self.apply(Event::AwaitedWorkerGone { name });
        }
    }

    /// Pods that exist: workers of others are not waited for.
    pub(super) fn set_pods(&mut self, pods: &BTreeSet<Arc<str>>) {
        self.not_awaited(|name| !pods.contains(convert::pod_of(name)));
    }

    /// Sources of a job that is known, so that nobody reads them again.
    pub(super) fn known_sources(&self, uid: &str) -> Option<crate::command::Sources> {
        let record = self.state.job_by_uid(uid).and_then(|job| self.jobs.get(&job))?;
        Some(record.request.sources.clone())
    }
}
