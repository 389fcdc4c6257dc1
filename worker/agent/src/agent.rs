//! The agent's own loop. One event at a time, and nothing in it waits: what takes time runs elsewhere and comes
//! back as an event.

mod attempts;
mod children;
mod coordinator;
mod drain;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus::Registry;
use prover_artifacts::ArtifactStore;
use prover_backend::protocol::BackendDescription;
use prover_wire::Validate;
use prover_wire::protocol::WorkerMessage;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::attempt::Attempt;
use crate::calls::Calls;
use crate::config::{AgentConfig, BackendPlace};
use crate::error::AgentError;
use crate::event::{Event, Held, Outgoing};
use crate::host::Host;
use crate::launch::Starter;
use crate::limits::QUEUED_EVENTS;
use crate::metrics::Metrics;
use crate::session::{Connection, Session};
use crate::work_directory::WorkDirectory;
use children::Slot;
use drain::Draining;

/// Whether the agent is asked to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It stays.
    Stay,
    /// It finishes what runs, gives back the rest, and leaves.
    Drain,
}

/// How an agent left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Departure {
    /// Everything was finished or given back, and acknowledged.
    Empty,
    /// The drain time was over.
    OutOfTime {
        /// Attempts that were stopped; the coordinator runs them elsewhere.
        stopped: usize,
        /// Reports that the coordinator has not acknowledged; it judges them as lost.
        unacknowledged: usize,
    },
}

/// An agent that is ready to run.
#[derive(Debug)]
pub struct Agent {
    config: AgentConfig,
    store: Arc<dyn ArtifactStore>,
    host: Host,
    metrics: Metrics,
    work: WorkDirectory,
    starter: Starter,
    started: Instant,
    events: mpsc::Sender<Event>,
    /// Taken when the agent runs.
    queue: Option<mpsc::Receiver<Event>>,
    slots: Vec<Slot>,
    attempts: BTreeMap<u64, Attempt>,
    held: Held,
    calls: Calls,
    /// What all children are; known when the first of them is ready.
    backend: Option<Arc<BackendDescription>>,
    outgoing: Option<Outgoing>,
    /// Taken when the stream is first opened.
    session: Option<Session>,
    session_thread: Option<JoinHandle<()>>,
    connection: watch::Receiver<Connection>,
    draining: Option<Draining>,
    /// Ends everything that the agent has started, but for the session.
    stop: CancellationToken,
    /// The agent ends as it was asked to, and not by a fault: so do the containers beside it.
    leave: CancellationToken,
    session_stop: CancellationToken,
}

impl Agent {
    /// Takes the work directory, opens the store and registers metrics. Starts no child yet.
    ///
    /// # Errors
    /// An argument can't be used, or the store or the work directory can't.
    pub async fn new(config: AgentConfig, registry: &Registry) -> Result<Self, AgentError> {
        config.validate()?;
        let store = prover_artifacts::open(&config.store).await?;
        Self::with_store(config, store, registry)
    }

    /// The same over a store that is open already.
    ///
    /// # Errors
    /// As [`Agent::new`].
    pub fn with_store(
        config: AgentConfig,
        store: Arc<dyn ArtifactStore>,
        registry: &Registry,
    ) -> Result<Self, AgentError> {
        config.validate()?;
        let metrics = Metrics::register(registry)?;
        let work = WorkDirectory::take(&config.work_directory, config.work_directory_bytes)?;
        let (events, queue) = mpsc::channel(QUEUED_EVENTS);
        let (connection_sender, connection) = watch::channel(Connection::NotYet);
        let (held, host, session_stop) = (Held::default(), Host::detect(), CancellationToken::new());
        let session = Session {
            connector: config.connector().map_err(|error| AgentError::Configure {
                what: "--coordinator",
                problem: error.to_string(),
            })?,
            token_file: config.token_file.clone(),
            events: events.clone(),
            held: held.clone(),
            host: host.clone(),
            metrics: metrics.clone(),
            connection: connection_sender,
            stop: session_stop.clone(),
            process_nonce: RandomState::new().build_hasher().finish(),
        };
        let slots = Slot::of(&config);
        Ok(Self {
            starter: Starter::new()?,
            config,
            store,
            host,
            metrics,
            work,
            started: Instant::now(),
            events,
            queue: Some(queue),
            slots,
            attempts: BTreeMap::new(),
            held,
            calls: Calls::default(),
            backend: None,
            outgoing: None,
            session: Some(session),
            session_thread: None,
            connection,
            draining: None,
            stop: CancellationToken::new(),
            leave: CancellationToken::new(),
            session_stop,
        })
    }

    /// What is known of the stream to the coordinator, now and later.
    #[must_use]
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.connection.clone()
    }

    /// Runs until it is asked to leave and has left.
    ///
    /// # Errors
    /// No child can be started on any device, or a part of the agent fails.
    pub async fn run(mut self, mut leave: watch::Receiver<Leave>) -> Result<Departure, AgentError> {
        let mut events = self.queue.take().ok_or(AgentError::PartEnded { part: "queue" })?;
        let slots = match &self.config.backend {
            // The planner's child is started with its first attempt.
            BackendPlace::Command(_) => self.config.devices.into(),
            // Its container runs already: the first planner need not wait.
            BackendPlace::Sockets(_) => self.slots.len(),
        };
        for slot in 0..slots {
            self.start_keeper(slot)?;
        }
        let departure = self.serve(&mut events, &mut leave).await;
        if departure.is_ok() {
            self.leave.cancel();
        }
        self.end(events).await;
        departure
    }

    async fn serve(
        &mut self,
        events: &mut mpsc::Receiver<Event>,
        leave: &mut watch::Receiver<Leave>,
    ) -> Result<Departure, AgentError> {
        loop {
            if let Some(departure) = self.departure() {
                return Ok(departure);
            }
            if self.session.is_some() && self.children_are_settled()? {
                self.session_thread = self.session.take().map(Session::start).transpose()?;
            }
            if self.session_thread.as_ref().is_some_and(JoinHandle::is_finished) {
                return Err(AgentError::PartEnded { part: "session" });
            }
            let deadline = self.next_deadline();
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.apply(event),
                    None => return Err(AgentError::PartEnded { part: "queue" }),
                },
                asked = leave.wait_for(|leave| *leave == Leave::Drain), if !self.is_leaving() => {
                    // Whoever could ask it to stay is gone: so it leaves.
                    drop(asked);
                    self.start_drain("the worker was asked to leave", true);
                }
                () = tokio::time::sleep_until(deadline) => self.deadline_passed(),
            }
        }
    }

    fn is_leaving(&self) -> bool {
        self.draining.as_ref().is_some_and(|draining| draining.leaves)
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::HelloWanted { reply } => {
                if let Some(hello) = self.hello() {
                    // The session has given up meanwhile if nobody reads it.
                    let _ = reply.send(hello);
                }
            }
            Event::Connected {
                outgoing,
                epoch,
                stop,
                told,
            } => self.connected(outgoing, epoch, &stop, &told),
            Event::Disconnected => self.outgoing = None,
            Event::FromCoordinator(message) => self.coordinator_says(*message),
            Event::Child { slot, news } => self.child_news(slot, news),
            Event::Fetched { attempt, result } => self.fetched(attempt, result),
            Event::Uploaded {
                attempt,
                result,
                took,
            } => self.uploaded(attempt, result, took),
            Event::CallAgain { call } => {
                if let Some(call) = self.calls.get(call) {
                    self.send(call);
                }
            }
            Event::StopOverdue { attempt } => self.stop_overdue(attempt),
            Event::Called {
                slot,
                attempt,
                call,
                reply,
            } => self.called(slot, attempt, call, reply),
            Event::ViewWanted { slot, attempt, reply } => {
                // The child has given up meanwhile if nobody reads it.
                let _ = reply.send(self.view(slot, attempt));
            }
        }
        self.metrics
            .attempts_held
            .set(i64::try_from(self.attempts.len()).unwrap_or(i64::MAX));
        self.metrics
            .pending_calls
            .set(i64::try_from(self.calls.len()).unwrap_or(i64::MAX));
    }

    /// Sends a message if a stream is open. What must survive a broken stream is kept elsewhere and sent again.
    fn send(&mut self, message: impl Into<WorkerMessage>) {
        let message = message.into();
        if let Err(error) = message.validate() {
            // Would end the stream at the other side, again and again: a fault of ours, so it goes no further.
            tracing::error!(%error, "a message to the coordinator is malformed and is not sent");
            return;
        }
        let Some(outgoing) = &self.outgoing else { return };
        if outgoing.queue.try_send(message).is_err() {
            outgoing.give_up.cancel();
            self.outgoing = None;
        }
    }

    /// An event that comes after a while.
    fn later(&self, after: Duration, event: Event) {
        let events = self.events.clone();
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(after) => drop(events.send(event).await),
                () = stop.cancelled() => {}
            }
        });
    }

    /// Ends what the agent has started: its words to the coordinator, transfers, children.
    async fn end(&mut self, mut events: mpsc::Receiver<Event>) {
        self.outgoing = None;
        self.session_stop.cancel();
        self.stop.cancel();
        for attempt in self.attempts.values() {
            attempt.cancel.cancel();
        }
        let keepers: Vec<_> = self
            .slots
            .iter_mut()
            .filter_map(|slot| slot.keeper.take())
            .collect();
        let ended = futures::future::join_all(keepers);
        tokio::pin!(ended);
        // Keepers and session tell their last news: the queue must not fill up.
        loop {
            tokio::select! {
                _ = &mut ended => break,
                _ = events.recv() => {}
            }
        }
        drop(events);
        if let Some(thread) = self.session_thread.take() {
            // What was said last goes out before the process ends; the session bounds how long that may take.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}
