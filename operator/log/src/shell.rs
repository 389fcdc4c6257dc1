//! Runs the machine over an artifact store: a task sends its requests and wakes it in time. Decides nothing.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prover_artifacts::{ArtifactStore, Condition, Key, Prefix, Retry, StoreError, StoreOptions};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::{AppendError, CheckpointError, LogError};
use crate::limits::Limits;
use crate::machine::{CheckpointContent, Machine};
use crate::metrics::Metrics;
use crate::model::{Index, Phase, Progress, Replayed, WriterId};
use crate::request::{Answer, Failure, Operation, Request, RequestId};

/// The options for a store of its own that a log wants: no retries inside one request, since the machine tries again
/// itself and tells so, and no longer wait for an answer than the machine waits.
pub fn store_options(mut options: StoreOptions, limits: &Limits) -> StoreOptions {
    options.retry.attempts = 1;
    options.retry.mismatch_attempts = 1;
    options.connect_timeout = options.connect_timeout.min(limits.request_timeout);
    options.read_timeout = options.read_timeout.min(limits.request_timeout);
    options
}

/// Reads a log on and takes it over.
#[derive(Debug)]
pub struct Follower {
    running: Arc<Running>,
}

/// What a take-over gives.
#[derive(Debug)]
pub struct TakenOver {
    /// Writes the log from now on.
    pub appender: Appender,
    /// The epoch, higher than all before.
    pub epoch: u64,
    /// What was read since the last `catch_up`.
    pub replayed: Vec<Replayed>,
}

/// Writes a log as its leader. Cloning it gives another handle of the same; dropping the last one (and the follower)
/// stops the work.
#[derive(Debug, Clone)]
pub struct Appender {
    running: Arc<Running>,
    epoch: u64,
}

/// The task that works for a log. It ends with its last handle.
struct Running {
    shared: Arc<Shared>,
    progress: watch::Receiver<Progress>,
    /// Changes after each step of the task.
    steps: watch::Receiver<u64>,
    task: AbortHandle,
}

/// What handles and task share.
struct Shared {
    state: Mutex<Guarded>,
    wake: Notify,
    limits: Limits,
    begin: Instant,
    store: Arc<dyn ArtifactStore>,
    prefix: Prefix,
}

struct Guarded {
    machine: Machine,
    /// When the task wakes by itself.
    wakes_at: Option<Duration>,
}

impl Follower {
    /// Opens the log below a prefix. A store that can't be written or ignores conditional creation is refused.
    pub async fn open(
        store: Arc<dyn ArtifactStore>,
        prefix: Prefix,
        limits: Limits,
    ) -> Result<Self, LogError> {
        let tried = store.probe().await;
        tried.map_err(|error| LogError::Store(Arc::new(error)))?;
        let writer = WriterId(uuid::Uuid::new_v4().as_u128());
        Ok(Self {
            running: Arc::new(Running::start(store, prefix, limits, writer)),
        })
    }

    /// Reads to the end of the log and answers what was read, from the newest checkpoint on the first time. While the
    /// store is away it tries on: `progress` tells so. Nothing is lost if the call is dropped.
    pub async fn catch_up(&mut self) -> Result<Vec<Replayed>, LogError> {
        let mut steps = self.running.steps.clone();
        self.running.with(Machine::catch_up);
        loop {
            steps.mark_unchanged();
            let reached = self.running.with(|machine| match machine.phase() {
                Phase::CaughtUp => Some(Ok(machine.take_replayed())),
                Phase::Reading => machine.take_refusal().map(Err),
                Phase::TakingOver => {
                    // A dropped take-over: reading on is what is asked for now.
                    machine.give_up_taking_over();
                    machine.catch_up();
                    None
                }
                Phase::Leading { .. } | Phase::Fenced { .. } => Some(Err(LogError::Spent)),
                Phase::Failed(error) => Some(Err(error.as_ref().clone())),
            });
            if let Some(result) = reached {
                return result;
            }
            steps.changed().await.map_err(|_| LogError::Stopped)?;
        }
    }

    /// Reads to the end, appends the next epoch and becomes the leader. A call that is dropped goes on in the next one.
    pub async fn take_over(&mut self) -> Result<TakenOver, LogError> {
        let mut steps = self.running.steps.clone();
        self.running.with(Machine::take_over);
        loop {
            steps.mark_unchanged();
            let reached = self.running.with(|machine| match machine.phase() {
                Phase::Leading { epoch } => Some(Ok((epoch, machine.take_replayed()))),
                Phase::Reading | Phase::CaughtUp => machine.take_refusal().map(Err),
                Phase::TakingOver => None,
                Phase::Fenced { .. } => Some(Err(LogError::Spent)),
                Phase::Failed(error) => Some(Err(error.as_ref().clone())),
            });
            match reached {
                Some(Ok((epoch, replayed))) => {
                    return Ok(TakenOver {
                        appender: Appender {
                            running: Arc::clone(&self.running),
                            epoch,
                        },
                        epoch,
                        replayed,
                    });
                }
                Some(Err(error)) => return Err(error),
                None => steps.changed().await.map_err(|_| LogError::Stopped)?,
            }
        }
    }

    /// How the reading does.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.running.progress.clone()
    }

    /// What this log did so far.
    pub fn metrics(&self) -> Metrics {
        self.running.shared.lock().machine.metrics().clone()
    }
}

impl Appender {
    /// Takes records for commit, in order; answers the index of the last one. All of them or none are taken; those of
    /// one call are committed together if they fit into one object. Never waits.
    pub fn append<R: AsRef<[u8]>>(&self, records: &[R]) -> Result<Index, AppendError> {
        let shared = &self.running.shared;
        let mut state = shared.lock();
        let result = state.machine.append(records);
        // Each turn of a busy coordinator appends: the task is only woken for what it would sleep through.
        let early = match (state.machine.wake_at(), state.wakes_at) {
            (Some(wanted), Some(planned)) => wanted < planned,
            (wanted, None) => wanted.is_some(),
            (None, _) => false,
        };
        drop(state);
        if early {
            shared.wake.notify_one();
        }
        result
    }

    /// Takes a checkpoint: records that say the same as everything before this epoch and all records up to `through`.
    /// It is written in the background; `Progress::checkpointed` tells when it is complete. Copies the records before
    /// it returns: for many of them call it where that may take its time.
    pub fn checkpoint<R: AsRef<[u8]>>(
        &self,
        records: impl IntoIterator<Item = R>,
        through: Index,
    ) -> Result<(), CheckpointError> {
        let content = CheckpointContent::new(records, &self.running.shared.limits)?;
        self.running.with(|machine| machine.checkpoint(content, through))
    }

    /// How far the log is; changes with every commit.
    pub fn committed(&self) -> watch::Receiver<Progress> {
        self.running.progress.clone()
    }

    /// The epoch of this leader.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How long the log is open: the clock of [`State::Retrying`](crate::State).
    pub fn elapsed(&self) -> Duration {
        self.running.shared.begin.elapsed()
    }

    /// What this log did so far.
    pub fn metrics(&self) -> Metrics {
        self.running.shared.lock().machine.metrics().clone()
    }
}

impl Running {
    fn start(store: Arc<dyn ArtifactStore>, prefix: Prefix, limits: Limits, writer: WriterId) -> Self {
        let machine = Machine::new(writer, limits.clone());
        let (progress, progress_receiver) = watch::channel(machine.progress());
        let (steps, steps_receiver) = watch::channel(0);
        let shared = Arc::new(Shared {
            state: Mutex::new(Guarded {
                machine,
                wakes_at: None,
            }),
            wake: Notify::new(),
            limits,
            begin: Instant::now(),
            store,
            prefix,
        });
        let task = tokio::spawn(Arc::clone(&shared).run(progress, steps));
        Self {
            shared,
            progress: progress_receiver,
            steps: steps_receiver,
            task: task.abort_handle(),
        }
    }

    /// Does something with the machine and lets its task see to what follows.
    fn with<T>(&self, change: impl FnOnce(&mut Machine) -> T) -> T {
        let result = change(&mut self.shared.lock().machine);
        self.shared.wake.notify_one();
        result
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        formatter
            .debug_struct("Running")
            .field("store", &self.shared.store.location())
            .field("prefix", &self.shared.prefix.as_str())
            .field("phase", &state.machine.phase())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Guarded> {
        // A machine that panicked is not used again: its task is gone and says so.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self: Arc<Self>, progress: watch::Sender<Progress>, steps: watch::Sender<u64>) {
        let mut sent = JoinSet::new();
        loop {
            let (requests, wakes_at) = self.step(&progress);
            steps.send_modify(|steps| *steps += 1);
            for request in requests {
                sent.spawn(Arc::clone(&self).send(request));
            }
            // Far away stands for never.
            let sleep = sleep_until(self.begin + wakes_at.unwrap_or(Duration::from_secs(3_600)));
            tokio::select! {
                () = self.wake.notified() => {}
                () = sleep => {}
                Some(answered) = sent.join_next() => self.take(answered),
            }
            while let Some(answered) = sent.try_join_next() {
                self.take(answered);
            }
        }
    }

    fn step(&self, progress: &watch::Sender<Progress>) -> (Vec<Request>, Option<Duration>) {
        let mut state = self.lock();
        let requests = state.machine.poll(self.begin.elapsed());
        let now = state.machine.progress();
        state.wakes_at = state.machine.wake_at();
        let wakes_at = state.wakes_at;
        drop(state);
        progress.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
        (requests, wakes_at)
    }

    fn take(&self, answered: Result<(RequestId, Answer), tokio::task::JoinError>) {
        match answered {
            Ok((id, answer)) => {
                let now = self.begin.elapsed();
                self.lock().machine.answer(id, answer, now);
            }
            // The machine takes a request without an answer as lost. A panic is a bug that must be seen.
            Err(failure) if failure.is_panic() => std::panic::resume_unwind(failure.into_panic()),
            Err(_) => {}
        }
    }

    async fn send(self: Arc<Self>, request: Request) -> (RequestId, Answer) {
        let answer = timeout(self.limits.request_timeout, self.perform(request.operation)).await;
        let answer = answer.unwrap_or_else(|_| {
            Ok(Answer::Failed(Failure {
                retry: true,
                damaged: false,
                category: "timeout",
                problem: format!("no answer within {:?}", self.limits.request_timeout),
            }))
        });
        (request.id, answer.unwrap_or_else(|error| failed(&error)))
    }

    async fn perform(&self, operation: Operation) -> Result<Answer, StoreError> {
        let key = |name: &str| self.prefix.key(name);
        match operation {
            Operation::Create { name, content } => {
                let created = self.create(&key(&name)?, content).await;
                match created {
                    Err(StoreError::AlreadyExists { .. }) => Ok(Answer::Exists),
                    other => other.map(|()| Answer::Created),
                }
            }
            Operation::Read { name, max_bytes } => {
                match self.store.get_bytes(&key(&name)?, None, max_bytes).await {
                    Err(StoreError::NotFound { .. }) => Ok(Answer::Absent),
                    other => other.map(Answer::Content),
                }
            }
            Operation::Delete { name } => {
                self.store.delete(&key(&name)?).await?;
                Ok(Answer::Deleted)
            }
            Operation::List { folder, limit } => {
                let folder = Prefix::new(format!("{}{folder}", self.prefix.as_str()))?;
                let listing = self.store.list(&folder, limit).await?;
                let relative = |key: &Key| key.as_str().strip_prefix(self.prefix.as_str()).map(str::to_owned);
                let names = listing.objects.iter().filter_map(|object| relative(&object.key));
                Ok(Answer::Listed {
                    names: names.collect(),
                    truncated: listing.truncated,
                })
            }
        }
    }

    async fn create(&self, key: &Key, content: Bytes) -> Result<(), StoreError> {
        self.store.put_bytes(key, content, Condition::CreateOnly).await?;
        Ok(())
    }
}

fn failed(error: &StoreError) -> Answer {
    Answer::Failed(Failure {
        retry: error.retry() != Retry::Never,
        damaged: matches!(error, StoreError::ChecksumMismatch { .. }),
        category: error.category(),
        problem: error.to_string(),
    })
}
