//! The task that drives a coordinator: follows the log until it is told to lead, then takes commands from a queue, tells
//! the engine when its timers are due, and hands on what the engine wants done: records to the log, deletes to the store.
//!
//! Owns waiting. Decides nothing: what the engine does depends on commands, time and commits alone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prover_log::{AppendError, Appender, Follower, Index, Progress, State as LogState};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::command::Command;
use crate::deletes::Deletion;
use crate::engine::{Engine, EngineParts};
use crate::error::{AdmissionError, ReleaseError};
use crate::handle::Control;
use crate::metrics::Metrics;
use crate::remembered::Record;
use crate::replica::Replica;
use crate::role::{Role, TakeOverError};

/// Commands that are taken from the queue at once.
const COMMANDS_PER_TURN: usize = 256;
/// What is applied before timers, views and streams get their turn, by the weight of commands: what a turn has for workers
/// goes to their streams at its end, and must not wait for a dozen large submissions.
const WEIGHT_PER_PART: usize = 256;
/// How long the log may be away before new work is refused.
const LOG_PATIENCE: Duration = Duration::from_secs(10);
/// How long stepping down waits for the log to have everything.
const STEP_DOWN_WITHIN: Duration = Duration::from_secs(5);
/// First wait before the log is read again after an error; then it is the follow interval.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// Pods that are remembered as gone while this coordinator follows.
const GONE_REMEMBERED: usize = 8_192;

/// What drives a coordinator.
pub(crate) struct Actor {
    /// What engines are made with; `epoch` is that of the next one.
    pub(crate) parts: EngineParts,
    pub(crate) deletions: mpsc::Sender<Deletion>,
    pub(crate) role: watch::Sender<Role>,
    pub(crate) leader: watch::Receiver<Option<String>>,
    pub(crate) control: mpsc::Receiver<Control>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) stop: CancellationToken,
}

/// Where a coordinator with a log begins.
pub(crate) struct Following {
    pub(crate) follower: Follower,
    pub(crate) interval: Duration,
}

/// What was told to a follower that a leader must know.
#[derive(Default)]
struct Told {
    /// The latest of each kind.
    latest: BTreeMap<&'static str, Command>,
    tenants: BTreeMap<Arc<str>, Command>,
    gone: VecDeque<Command>,
}

/// Why leading ended.
enum End {
    Stopped,
    Fenced,
    SteppedDown(oneshot::Sender<()>),
}

impl Actor {
    /// Runs until it is stopped, fenced, or nobody can send commands any more.
    pub(crate) async fn run(mut self, following: Option<Following>) {
        let (engine, journal) = match following {
            None => (Engine::new(self.parts.clone()), None),
            Some(following) => match self.follow(following).await {
                Some((engine, journal)) => (engine, Some(journal)),
                None => return,
            },
        };
        self.show(Role::Leading {
            epoch: self.parts.epoch,
        });
        self.lead(engine, journal).await;
    }

    fn show(&self, role: Role) {
        self.parts.metrics.show_role(role);
        // Whoever watches is told of changes only.
        self.role
            .send_if_modified(|known| std::mem::replace(known, role) != role);
    }

    // ---- following ----

    /// Follows the log until it leads; none when it is stopped or steps down.
    async fn follow(&mut self, following: Following) -> Option<(Engine, Journal)> {
        let Following {
            mut follower,
            interval,
        } = following;
        let mut replica = Ok(Replica::new(self.parts.limits.clone()));
        let mut told = Told::default();
        let mut due = Instant::now();
        let mut asked: Option<oneshot::Sender<Result<u64, TakeOverError>>> = None;
        loop {
            // Reading goes on where a dropped call has left it.
            let step = async {
                if asked.is_some() {
                    return Step::TakenOver(follower.take_over().await);
                }
                tokio::time::sleep_until(due).await;
                Step::Read(follower.catch_up().await)
            };
            let step = tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                Some(control) = self.control.recv() => Step::Control(control),
                command = self.commands.recv() => Step::Command(command),
                step = step => step,
            };
            match step {
                Step::Control(Control::TakeOver { reply }) => asked = Some(reply),
                Step::Control(Control::StepDown { reply }) => {
                    self.show(Role::Fenced);
                    let _ = reply.send(());
                    return None;
                }
                Step::Command(None) => return None,
                Step::Command(Some(command)) => told.note(command),
                Step::Read(Ok(read)) => {
                    due = Instant::now() + interval;
                    self.parts.metrics.log.show(follower.metrics());
                    replica = replay(replica, read);
                    self.note(&replica);
                }
                Step::Read(Err(error)) => {
                    due = Instant::now() + interval.max(READ_AGAIN);
                    self.parts
                        .metrics
                        .log_errors
                        .with_label_values(&[error.category()])
                        .inc();
                    tracing::error!(%error, "the log can't be followed");
                    self.show(Role::Following { caught_up: false });
                }
                Step::TakenOver(Ok(taken)) => {
                    self.parts.epoch = taken.epoch;
                    let engine = replay(replica, taken.replayed).and_then(|replica| {
                        let led = replica.lead(self.parts.clone());
                        led.map_err(|error| error.to_string())
                    });
                    let reply = asked.take();
                    match engine {
                        Ok(mut engine) => {
                            tracing::info!(
                                epoch = taken.epoch,
                                jobs = engine.state().jobs().count(),
                                "took over"
                            );
                            told.tell(&mut engine);
                            // Whoever is answered may submit jobs at once.
                            self.show(Role::Leading { epoch: taken.epoch });
                            if let Some(reply) = reply {
                                let _ = reply.send(Ok(taken.epoch));
                            }
                            return Some((engine, Journal::new(taken.appender, self.parts.metrics.clone())));
                        }
                        Err(reason) => {
                            tracing::error!(reason, "the log makes no state");
                            self.show(Role::Fenced);
                            if let Some(reply) = reply {
                                let _ = reply.send(Err(TakeOverError::Unusable { reason }));
                            }
                            return None;
                        }
                    }
                }
                Step::TakenOver(Err(error)) => {
                    self.parts
                        .metrics
                        .log_errors
                        .with_label_values(&[error.category()])
                        .inc();
                    tracing::error!(%error, "the log can't be taken over");
                    if let Some(reply) = asked.take() {
                        let reason = error.to_string();
                        let _ = reply.send(Err(TakeOverError::Unusable { reason }));
                    }
                    due = Instant::now() + READ_AGAIN;
                }
            }
        }
    }

    /// Shows whether what was read can be led with.
    fn note(&self, replica: &Result<Replica, String>) {
        match replica {
            Ok(_) => self.show(Role::Following { caught_up: true }),
            Err(reason) => {
                tracing::error!(
                    reason,
                    "the log can't be understood: this coordinator can't take over"
                );
                self.show(Role::Following { caught_up: false });
            }
        }
    }

    // ---- leading ----

    async fn lead(&mut self, mut engine: Engine, mut journal: Option<Journal>) {
        let end = loop {
            if let Some(end) = self.turn(&mut engine, journal.as_mut()).await {
                break end;
            }
            // Streams that this turn has woken run first, so that the next turn finds all that they bring.
            tokio::task::yield_now().await;
        };
        match end {
            End::Stopped => engine.close_all(),
            End::Fenced => {
                // First of all: from now on nothing is sent or shown.
                self.show(Role::Fenced);
                tracing::error!("another coordinator leads: this one falls silent");
                engine.hand_over(self.leader.borrow().as_deref());
            }
            End::SteppedDown(reply) => {
                self.show(Role::Fenced);
                if let Some(journal) = journal.as_mut() {
                    let flushed = journal.flush(&mut engine);
                    if tokio::time::timeout(STEP_DOWN_WITHIN, flushed).await.is_err() {
                        tracing::warn!("stepped down before the log had everything: workers report again");
                    }
                }
                self.hand_on(&mut engine);
                engine.hand_over(self.leader.borrow().as_deref());
                // Whoever asked may have given up.
                let _ = reply.send(());
            }
        }
    }

    /// One turn; answers why it was the last one.
    async fn turn(&mut self, engine: &mut Engine, mut journal: Option<&mut Journal>) -> Option<End> {
        let wake = self.wake_at(engine, journal.as_deref());
        let mut batch = Vec::with_capacity(COMMANDS_PER_TURN);
        tokio::select! {
            biased;
            () = self.stop.cancelled() => return Some(End::Stopped),
            Some(control) = self.control.recv() => match control {
                Control::TakeOver { reply } => drop(reply.send(Err(TakeOverError::NotFollowing))),
                Control::StepDown { reply } => return Some(End::SteppedDown(reply)),
            },
            () = changed(journal.as_deref_mut()) => {}
            count = self.commands.recv_many(&mut batch, COMMANDS_PER_TURN) => {
                if count == 0 {
                    return Some(End::Stopped);
                }
            }
            () = sleep_until(wake) => {}
        }
        let mut commands = batch.into_iter();
        loop {
            // Whether it still leads comes before anything else is done.
            if let Some(journal) = journal.as_deref_mut()
                && journal.note(engine).is_err()
            {
                return Some(End::Fenced);
            }
            part(&mut commands, |command| engine.handle(command));
            engine.run_timers();
            if let Some(journal) = journal.as_deref_mut()
                && journal.write(engine).is_err()
            {
                return Some(End::Fenced);
            }
            self.hand_on(engine);
            if commands.len() == 0 {
                return None;
            }
            tokio::task::yield_now().await;
        }
    }

    fn wake_at(&self, engine: &Engine, journal: Option<&Journal>) -> Option<Instant> {
        let due = engine.next_wake().map(|due| {
            let wait = due.0.saturating_sub(self.parts.clock.now_milliseconds());
            // A timer that is due already still lets commands in between.
            Instant::now() + Duration::from_millis(wait.max(1))
        });
        let patience = journal.and_then(|journal| journal.impatient_at);
        due.into_iter().chain(patience).min()
    }

    fn hand_on(&mut self, engine: &mut Engine) {
        let metrics = &self.parts.metrics;
        for deletion in engine.take_deletions() {
            match self.deletions.try_send(deletion) {
                Ok(()) => {}
                Err(TrySendError::Full(deletion)) => {
                    metrics.deletes.with_label_values(&["queue_full"]).inc();
                    tracing::warn!(
                        ?deletion,
                        "too many deletions wait: this one is left to the sweep of the job"
                    );
                }
                Err(TrySendError::Closed(_)) => metrics.deletes.with_label_values(&["stopped"]).inc(),
            }
        }
    }
}

/// Hands over the commands of one part of a turn: one at least.
fn part(commands: &mut impl Iterator<Item = Command>, mut handle: impl FnMut(Command)) {
    let mut weight = 0;
    while weight < WEIGHT_PER_PART
        && let Some(command) = commands.next()
    {
        weight += command.weight();
        handle(command);
    }
}

/// What a follower waited for.
enum Step {
    Control(Control),
    Command(Option<Command>),
    Read(Result<Vec<prover_log::Replayed>, prover_log::LogError>),
    TakenOver(Result<prover_log::TakenOver, prover_log::LogError>),
}

fn replay(replica: Result<Replica, String>, read: Vec<prover_log::Replayed>) -> Result<Replica, String> {
    let mut replica = replica?;
    for replayed in read {
        replica.apply(replayed).map_err(|error| error.to_string())?;
    }
    Ok(replica)
}

impl Told {
    /// Answers what can be answered, and keeps what a leader must know.
    fn note(&mut self, command: Command) {
        match command {
            Command::Submit { reply, .. } => drop(reply.send(Err(AdmissionError::NotLeader))),
            Command::Connect { reply, .. } => {
                let told = Status::unavailable("this coordinator does not lead");
                drop(reply.send(Err(told)));
            }
            Command::KnownSources { reply, .. } => drop(reply.send(None)),
            Command::Release { reply, .. } => drop(reply.send(Err(ReleaseError::NotLeader))),
            Command::SetGroups { .. } => drop(self.latest.insert("groups", command)),
            Command::SetPods { .. } => drop(self.latest.insert("pods", command)),
            Command::SetTenantPolicy { ref tenant, .. } => {
                let tenant = Arc::clone(tenant);
                self.tenants.insert(tenant, command);
            }
            Command::PodGone { .. } | Command::WorkerGone { .. } => {
                self.gone.push_back(command);
                if self.gone.len() > GONE_REMEMBERED {
                    self.gone.pop_front();
                }
            }
            // About jobs and sessions of a leader; dropping a reply tells that nobody answers.
            Command::Cancel { .. }
            | Command::SetPolicy { .. }
            | Command::Forget { .. }
            | Command::JobsSynced
            | Command::SetLeaving { .. }
            | Command::AgentEnded { .. }
            | Command::ContainerEnded { .. }
            | Command::Disconnected { .. }
            | Command::Report { .. }
            | Command::Call { .. } => {}
        }
    }

    fn tell(self, engine: &mut Engine) {
        let all = self.tenants.into_values().chain(self.latest.into_values());
        for command in all.chain(self.gone) {
            engine.handle(command);
        }
    }
}

/// The log as its leader writes it.
struct Journal {
    appender: Appender,
    progress: watch::Receiver<Progress>,
    metrics: Metrics,
    /// What was committed when the metrics were brought up to date.
    shown: Option<Index>,
    /// Groups of records that the log has no room for yet.
    backlog: VecDeque<Vec<Vec<u8>>>,
    appended: u64,
    /// When new work is refused, unless the log can be written before.
    impatient_at: Option<Instant>,
}

/// This coordinator leads no more.
struct Lost;

impl Journal {
    fn new(appender: Appender, metrics: Metrics) -> Journal {
        let progress = appender.committed();
        Journal {
            metrics,
            shown: None,
            appender,
            progress,
            backlog: VecDeque::new(),
            appended: 0,
            impatient_at: None,
        }
    }

    /// Tells the engine how far the log is.
    fn note(&mut self, engine: &mut Engine) -> Result<(), Lost> {
        let progress = self.progress.borrow_and_update().clone();
        if self.shown.replace(progress.committed) != Some(progress.committed) {
            self.metrics.log.show(self.appender.metrics());
        }
        match &progress.state {
            LogState::Healthy => self.impatient_at = None,
            LogState::Retrying { error, .. } => {
                if self.impatient_at.is_none() {
                    tracing::warn!(%error, "the log can't be written: what it must have waits");
                    self.impatient_at = Some(Instant::now() + LOG_PATIENCE);
                }
            }
            LogState::Fenced { epoch } => {
                tracing::error!(epoch, "another coordinator has taken over");
                return Err(Lost);
            }
            LogState::Failed { error } => {
                tracing::error!(%error, "the log can't be written any more");
                return Err(Lost);
            }
        }
        engine.committed(progress.committed.0);
        if progress.checkpoint_due && self.backlog.is_empty() && self.appended == engine.recorded() {
            self.checkpoint(engine);
        }
        Ok(())
    }

    fn checkpoint(&self, engine: &Engine) {
        let records = engine.checkpoint();
        tracing::debug!(
            records = records.len(),
            through = self.appended,
            "writing a checkpoint"
        );
        let (appender, through) = (self.appender.clone(), Index(self.appended));
        tokio::task::spawn_blocking(move || {
            let records = records.iter().map(|record| Bytes::from(record.encode()));
            if let Err(error) = appender.checkpoint(records.collect::<Vec<_>>(), through) {
                tracing::warn!(%error, "no checkpoint was taken: the next one will be due");
            }
        });
    }

    /// Gives the log what the engine has recorded.
    fn write(&mut self, engine: &mut Engine) -> Result<(), Lost> {
        let groups = engine.take_records();
        let groups = groups
            .iter()
            .map(|group| group.iter().map(Record::encode).collect());
        self.backlog.extend(groups);
        while let Some(group) = self.backlog.front() {
            match self.appender.append(group) {
                Ok(index) => {
                    self.metrics.log_records.inc_by(group.len() as u64);
                    self.appended = index.0;
                    self.backlog.pop_front();
                }
                Err(AppendError::QueueFull { .. }) => break,
                Err(error) => {
                    tracing::error!(%error, "the log takes no more records");
                    return Err(Lost);
                }
            }
        }
        let waiting: usize = self.backlog.iter().map(Vec::len).sum();
        self.metrics
            .log_backlog
            .set(i64::try_from(waiting).unwrap_or(i64::MAX));
        let impatient = self.impatient_at.is_some_and(|at| at <= Instant::now());
        engine.set_log_full(!self.backlog.is_empty() || impatient);
        Ok(())
    }

    /// Waits until the log has everything, or will never have.
    async fn flush(&mut self, engine: &mut Engine) {
        loop {
            if self.write(engine).is_err() || self.note(engine).is_err() {
                return;
            }
            let all = self.backlog.is_empty() && self.progress.borrow().committed.0 >= engine.recorded();
            if all || self.progress.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Until the log got on; for ever without one.
async fn changed(journal: Option<&mut Journal>) {
    let told = match journal {
        Some(journal) => journal.progress.changed().await.is_ok(),
        None => false,
    };
    // Where its work is gone, what it said last counts.
    if !told {
        std::future::pending::<()>().await;
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use prover_core::{
        AttemptId, BackendVersion, CallId, DeviceClass, Event, Lane, Requirements, TaskSpec, WorkerId,
    };

    use super::*;

    fn mk_task(number: usize) -> TaskSpec {
        TaskSpec {
            request_id: number.to_string().into(),
            task_type: "prove".into(),
            requirements: Requirements {
                lane: Lane::Device,
                device_class: DeviceClass::Cpu,
                host_memory_bytes: 1,
                vram_bytes: 0,
                backend: BackendVersion {
                    name: "emulated".into(),
                    version: "1.0.0".into(),
                },
            },
            depends_on: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            parameters: Arc::default(),
            cache_key: None,
            estimated_device_time: None,
            completes: Vec::new(),
            concludes_job: false,
            marker: false,
        }
    }

    fn mk_submission(tasks: usize) -> Command {
        Command::Call {
            worker: WorkerId(1),
            session: 1,
            event: Event::TasksSubmitted {
                call: CallId(1),
                attempt: AttemptId(1),
                tasks: (0..tasks).map(mk_task).collect(),
            },
        }
    }

    /// Commands by parts of a turn.
    fn parts(commands: Vec<Command>) -> Vec<usize> {
        let mut commands = commands.into_iter();
        let mut parts = Vec::new();
        while commands.len() > 0 {
            let mut count = 0;
            part(&mut commands, |_| count += 1);
            parts.push(count);
        }
        parts
    }

    #[test]
    fn a_part_of_a_turn_is_bounded_by_tasks_and_not_by_their_submissions() {
        let small = (0..300).map(|_| mk_submission(1));
        assert_eq!(parts(small.collect()), [256, 44]);
        let large = (0..5).map(|_| mk_submission(128));
        assert_eq!(parts(large.collect()), [2, 2, 1]);
        let mixed = [mk_submission(1_000), mk_submission(0), mk_submission(256)];
        assert_eq!(parts(Vec::from(mixed)), [1, 2]);
    }
}
