//! The stream to the coordinator, on a thread of its own so that no work of the agent delays a heartbeat.
//!
//! Owns: connecting with the token of the moment, hello and welcome, heartbeats, the detection of a silent
//! coordinator, and opening the stream again. Does not own what is said: messages go to the agent's loop.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use prover_wire::protocol::coordinator_message::Message;
use prover_wire::protocol::worker_plane_client::WorkerPlaneClient;
use prover_wire::protocol::{CoordinatorMessage, Heartbeat, HeldAttempt, NotLeader, Welcome, WorkerMessage};
use prover_wire::{AUTHORIZATION, BEARER, Batched, Batcher, Validate, WireError, limits as wire_limits};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status, Streaming};

use crate::backoff::Backoff;
use crate::connect::{ConnectError, Connector};
use crate::error::AgentError;
use crate::event::{Event, Held, Outgoing};
use crate::host::Host;
use crate::limits::{
    CONNECT_TO_SILENT_WITHIN, CONNECT_WITHIN, LEADER_HOPS, QUEUED_MESSAGES, RECONNECT_FIRST,
    RECONNECT_LONGEST, SHORTEST_SILENCE, SILENCE_CONFIRMATION, SILENT_HEARTBEATS, TOKEN_BYTES,
    WELCOME_WITHIN,
};
use crate::metrics::Metrics;

/// What is known of the stream to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Nothing has been tried yet.
    NotYet,
    /// The coordinator of this epoch has welcomed the worker.
    Welcomed {
        /// The coordinator's epoch.
        epoch: u64,
    },
    /// The last try or stream failed; the next try follows.
    Failed {
        /// Short name of the failure.
        category: &'static str,
        /// For people.
        message: String,
    },
}

/// Why a stream could not be opened, or broke.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("could not read the token file {}: {source}. Give --token-file a file with the worker's token", path.display())]
    ReadToken { path: PathBuf, source: std::io::Error },
    #[error("the token file {} is empty or has characters that no token has", path.display())]
    MalformedToken { path: PathBuf },
    #[error(transparent)]
    Connect {
        #[from]
        source: ConnectError,
    },
    #[error("the coordinator at {address} does not lead, {leader} does")]
    NotLeader { address: String, leader: String },
    #[error("the coordinator at {address} refuses the token in {}: {problem}. Check that the file holds the token of this coordinator", path.display())]
    RefuseToken {
        address: String,
        path: PathBuf,
        problem: String,
    },
    #[error("the coordinator at {address} refuses the session: {problem}")]
    Refuse { address: String, problem: String },
    #[error("the coordinator at {address} did not welcome this worker: {problem}")]
    NoWelcome { address: String, problem: String },
    #[error(
        "the coordinator at {address} is of epoch {epoch}, but this worker has served epoch {highest}: it is stale"
    )]
    Stale {
        address: String,
        epoch: u64,
        highest: u64,
    },
    #[error("the coordinator said nothing for {:.1} s", silence.as_secs_f64())]
    Silent { silence: Duration },
    #[error("the coordinator closed the stream")]
    Closed,
    #[error("the stream to the coordinator broke: {problem}")]
    Broken { problem: String },
    #[error("the coordinator does not read: {QUEUED_MESSAGES} messages wait")]
    NotReading,
    #[error("a message of the coordinator is malformed: {source}")]
    Malformed {
        #[from]
        source: WireError,
    },
    #[error("the agent is ending")]
    Ending,
}

impl SessionError {
    fn category(&self) -> &'static str {
        match self {
            Self::ReadToken { .. } | Self::MalformedToken { .. } => "token",
            Self::Connect { source } => source.category(),
            Self::NotLeader { .. } => "not_leader",
            Self::RefuseToken { .. } => "token_refused",
            Self::Refuse { .. } => "refused",
            Self::NoWelcome { .. } => "no_welcome",
            Self::Stale { .. } => "stale",
            Self::Silent { .. } => "silent",
            Self::Closed => "closed",
            Self::Broken { .. } => "broken",
            Self::NotReading => "not_reading",
            Self::Malformed { .. } => "malformed",
            Self::Ending => "ending",
        }
    }
}

/// What the session's thread needs.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) connector: Connector,
    pub(crate) token_file: PathBuf,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) held: Held,
    pub(crate) host: Host,
    pub(crate) metrics: Metrics,
    pub(crate) connection: watch::Sender<Connection>,
    pub(crate) stop: CancellationToken,
    /// Names this process, whatever its id.
    pub(crate) process_nonce: u64,
}

/// An open stream before its welcome.
struct Opened {
    outgoing: mpsc::Sender<WorkerMessage>,
    incoming: Streaming<CoordinatorMessage>,
    welcome: Welcome,
    told: Vec<HeldAttempt>,
}

/// Which coordinators are asked, each once, before the next wait.
#[derive(Debug, Default)]
struct Round {
    /// Still to be asked, by host and port.
    places: VecDeque<String>,
    asked: Vec<String>,
    /// Redirections that were followed.
    hops: u32,
    /// Whose stream broke last, since nothing came over it any more: asked last.
    silent: Option<String>,
}

impl Round {
    /// A stream has ended.
    fn after(authority: &str, error: &SessionError) -> Round {
        let silent = matches!(error, SessionError::Silent { .. }).then(|| authority.to_owned());
        Round {
            silent,
            ..Round::default()
        }
    }

    fn is_over(&self) -> bool {
        self.places.is_empty()
    }

    /// Begins anew with the coordinators that are known by address, or with the one that is known by name.
    fn begin(&mut self, places: Vec<String>, first: &str) {
        self.hops = 0;
        self.asked.clear();
        self.places = places.into();
        if self.places.is_empty() {
            self.places.push_back(first.to_owned());
        }
        // A process that was stopped takes connections and answers none: meanwhile another one has begun to lead.
        if let Some(at) = self.places.iter().position(|place| self.is_silent(place)) {
            self.places.rotate_left(at + 1);
        }
    }

    fn is_silent(&self, authority: &str) -> bool {
        self.silent.as_deref() == Some(authority)
    }

    fn next(&mut self) -> String {
        let next = self.places.pop_front().unwrap_or_default();
        self.asked.push(next.clone());
        next
    }

    /// How long connecting may take: nobody waits long for one that fell silent where there are others.
    fn connect_within(&self, authority: &str) -> Duration {
        if self.is_silent(authority) && self.asked.len() > 1 {
            CONNECT_TO_SILENT_WITHIN
        } else {
            CONNECT_WITHIN
        }
    }

    /// Follows a redirection; false where that leads nowhere new in this round.
    fn send_on(&mut self, leader: &str) -> bool {
        if self.hops >= LEADER_HOPS
            || self.is_silent(leader)
            || self.asked.iter().any(|asked| asked == leader)
        {
            return false;
        }
        self.hops += 1;
        self.places.retain(|place| place != leader);
        self.places.push_front(leader.to_owned());
        true
    }
}

/// What goes to the coordinator: what waits at the same time in batches, where the coordinator takes them.
struct Outbox {
    queue: mpsc::Receiver<WorkerMessage>,
    batcher: Batcher<WorkerMessage>,
    /// Messages in one batch, once the welcome has told.
    batch_messages: Arc<AtomicUsize>,
}

impl Stream for Outbox {
    type Item = WorkerMessage;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<WorkerMessage>> {
        let this = self.get_mut();
        let first = match this.batcher.left() {
            Some(left) => Poll::Ready(Some(left)),
            None => this.queue.poll_recv(context),
        };
        first.map(|first| {
            let most = this.batch_messages.load(Ordering::Relaxed);
            let queue = &mut this.queue;
            first.map(|first| this.batcher.gather(first, most, || queue.try_recv().ok()))
        })
    }
}

impl Session {
    /// Starts the thread; it ends with `stop`.
    pub(crate) fn start(self) -> Result<std::thread::JoinHandle<()>, AgentError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| AgentError::StartThread {
                what: "the session's runtime",
                source,
            })?;
        std::thread::Builder::new()
            .name("session".to_owned())
            .spawn(move || runtime.block_on(self.run()))
            .map_err(|source| AgentError::StartThread {
                what: "the session's thread",
                source,
            })
    }

    async fn run(self) {
        let mut backoff = Backoff::new(RECONNECT_FIRST, RECONNECT_LONGEST);
        let mut highest_epoch = 0;
        let mut streams = 0;
        let mut round = Round::default();
        while !self.stop.is_cancelled() {
            streams += 1;
            if round.is_over() {
                round.begin(self.connector.places().await, self.connector.first());
            }
            let authority = round.next();
            let within = round.connect_within(&authority);
            let (error, welcomed) = self
                .one_stream(&authority, within, &mut highest_epoch, streams)
                .await;
            self.metrics.connected.set(0);
            self.metrics
                .sessions_ended
                .with_label_values(&[error.category()])
                .inc();
            if welcomed {
                backoff.reset();
                round = Round::after(&authority, &error);
                // The agent's loop ends only with the agent.
                let _ = self.events.send(Event::Disconnected).await;
            }
            if self.stop.is_cancelled() {
                return;
            }
            if let SessionError::NotLeader { leader, .. } = &error
                && round.send_on(leader)
            {
                tracing::info!("{error}: asking there");
                continue;
            }
            if !round.is_over() {
                tracing::info!("{error}: asking the next coordinator");
                continue;
            }
            let wait = backoff.next();
            tracing::warn!(category = error.category(), ?wait, "{error}");
            let failed = Connection::Failed {
                category: error.category(),
                message: error.to_string(),
            };
            self.connection.send_replace(failed);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Opens a stream and serves it to its end; tells whether it was welcomed.
    async fn one_stream(
        &self,
        authority: &str,
        connect_within: Duration,
        highest_epoch: &mut u64,
        stream: u64,
    ) -> (SessionError, bool) {
        let address = &self.connector.shown(authority);
        let opening = async {
            tokio::select! {
                opened = self.open(authority, address, connect_within, *highest_epoch, stream) => opened,
                () = self.stop.cancelled() => Err(SessionError::Ending),
            }
        };
        let opened = match opening.await {
            Ok(opened) => opened,
            Err(error) => return (error, false),
        };
        *highest_epoch = opened.welcome.epoch;
        self.metrics.connected.set(1);
        tracing::info!(
            address,
            epoch = opened.welcome.epoch,
            "welcomed by the coordinator"
        );
        (self.serve(address, opened).await, true)
    }

    async fn token(&self) -> Result<MetadataValue<Ascii>, SessionError> {
        let path = &self.token_file;
        let read = crate::files::read_bounded(path, TOKEN_BYTES).await;
        let token = read.map_err(|source| SessionError::ReadToken {
            path: path.clone(),
            source,
        })?;
        let malformed = || SessionError::MalformedToken { path: path.clone() };
        let token = std::str::from_utf8(&token).map_err(|_| malformed())?.trim();
        if token.is_empty() {
            return Err(malformed());
        }
        let mut value: MetadataValue<Ascii> = format!("{BEARER}{token}").parse().map_err(|_| malformed())?;
        value.set_sensitive(true);
        Ok(value)
    }

    async fn open(
        &self,
        authority: &str,
        address: &str,
        connect_within: Duration,
        highest_epoch: u64,
        stream: u64,
    ) -> Result<Opened, SessionError> {
        let token = self.token().await?;
        let channel = self.connector.connect(authority, connect_within).await?;
        let mut client = WorkerPlaneClient::new(channel)
            .max_decoding_message_size(wire_limits::MESSAGE_BYTES)
            .max_encoding_message_size(wire_limits::MESSAGE_BYTES);
        let (reply, hello) = oneshot::channel();
        self.events
            .send(Event::HelloWanted { reply })
            .await
            .map_err(|_| SessionError::Ending)?;
        let mut hello = hello.await.map_err(|_| SessionError::Ending)?;
        hello.highest_epoch = highest_epoch;
        hello.stream = stream;
        hello.process_nonce = self.process_nonce;
        let told = hello.held.clone();
        let (outgoing, queue) = mpsc::channel(QUEUED_MESSAGES);
        // Before the call: the coordinator may answer it only when it has seen the hello.
        outgoing
            .try_send(hello.into())
            .map_err(|_| SessionError::NotReading)?;
        let batch_messages = Arc::new(AtomicUsize::new(0));
        let outbox = Outbox {
            queue,
            batcher: Batcher::default(),
            batch_messages: Arc::clone(&batch_messages),
        };
        let mut request = Request::new(outbox);
        request.metadata_mut().insert(AUTHORIZATION, token);
        let unwelcome = |problem: String| SessionError::NoWelcome {
            address: address.to_owned(),
            problem,
        };
        let opening = async {
            let mut incoming = client
                .session(request)
                .await
                .map_err(|status| self.refusal(address, &status))?
                .into_inner();
            let first = incoming.message().await;
            let first = first.map_err(|status| self.refusal(address, &status))?;
            let first = first.ok_or_else(|| unwelcome("it closed the stream".to_owned()))?;
            first.validate()?;
            match first.message {
                Some(Message::Welcome(welcome)) => Ok((incoming, welcome)),
                Some(Message::NotLeader(other)) => Err(not_leader(address, other)),
                _ => Err(unwelcome("its first message was no welcome".to_owned())),
            }
        };
        let Ok(opened) = timeout(WELCOME_WITHIN, opening).await else {
            return Err(unwelcome(format!(
                "no answer within {} s",
                WELCOME_WITHIN.as_secs()
            )));
        };
        let (incoming, welcome) = opened?;
        let taken = usize::try_from(welcome.batch_messages).unwrap_or(usize::MAX);
        batch_messages.store(taken.min(wire_limits::MESSAGES_PER_BATCH), Ordering::Relaxed);
        if welcome.epoch < highest_epoch {
            return Err(SessionError::Stale {
                address: address.to_owned(),
                epoch: welcome.epoch,
                highest: highest_epoch,
            });
        }
        Ok(Opened {
            outgoing,
            incoming,
            welcome,
            told,
        })
    }

    fn refusal(&self, address: &str, status: &Status) -> SessionError {
        let (address, problem) = (address.to_owned(), status.message().to_owned());
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => SessionError::RefuseToken {
                address,
                path: self.token_file.clone(),
                problem,
            },
            code => SessionError::Refuse {
                address,
                problem: format!("{problem} ({code:?})"),
            },
        }
    }

    async fn serve(&self, address: &str, opened: Opened) -> SessionError {
        let Opened {
            outgoing,
            mut incoming,
            welcome,
            told,
        } = opened;
        let every = Duration::from_millis(welcome.heartbeat_interval_ms);
        let give_up = CancellationToken::new();
        let connected = Event::Connected {
            outgoing: Outgoing {
                queue: outgoing.clone(),
                give_up: give_up.clone(),
            },
            epoch: welcome.epoch,
            stop: welcome.stop,
            told,
        };
        if self.events.send(connected).await.is_err() {
            return SessionError::Ending;
        }
        self.connection
            .send_replace(Connection::Welcomed { epoch: welcome.epoch });
        let heard = std::cell::Cell::new(Instant::now());
        let reading = async {
            loop {
                let message = match incoming.message().await {
                    Ok(Some(message)) => message,
                    Ok(None) => return SessionError::Closed,
                    Err(status) => {
                        return SessionError::Broken {
                            problem: described(&status),
                        };
                    }
                };
                heard.set(Instant::now());
                if let Err(error) = self.take(address, welcome.epoch, message).await {
                    return error;
                }
                heard.set(Instant::now());
            }
        };
        // Side by side: a full queue of the agent must not hold up the heartbeats.
        tokio::select! {
            error = reading => error,
            error = self.beat(every, &outgoing) => error,
            error = silence(every, &heard) => error,
            () = give_up.cancelled() => SessionError::NotReading,
            () = self.stop.cancelled() => self.close(outgoing, &mut incoming).await,
        }
    }

    async fn take(&self, address: &str, epoch: u64, message: CoordinatorMessage) -> Result<(), SessionError> {
        message.validate()?;
        let messages: Vec<CoordinatorMessage> = message.each().collect();
        for message in &messages {
            if let Some(Message::Assign(assign)) = &message.message
                && assign.epoch >= epoch
            {
                // From now on heartbeats name it, however long the agent's loop takes to see it.
                self.held.insert(assign.attempt_id);
            }
        }
        for message in messages {
            self.take_one(address, epoch, message).await?;
        }
        Ok(())
    }

    async fn take_one(
        &self,
        address: &str,
        epoch: u64,
        message: CoordinatorMessage,
    ) -> Result<(), SessionError> {
        match message.message {
            None | Some(Message::Heartbeat(_)) => Ok(()),
            Some(Message::NotLeader(other)) => Err(not_leader(address, other)),
            // Of a coordinator that led before: nothing of it counts any more.
            Some(Message::Assign(assign)) if assign.epoch < epoch => Err(SessionError::Stale {
                address: address.to_owned(),
                epoch: assign.epoch,
                highest: epoch,
            }),
            Some(message) => {
                let event = Event::FromCoordinator(Box::new(message));
                self.events.send(event).await.map_err(|_| SessionError::Ending)
            }
        }
    }

    async fn beat(&self, every: Duration, outgoing: &mpsc::Sender<WorkerMessage>) -> SessionError {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for sequence in 1.. {
            ticks.tick().await;
            let heartbeat = Heartbeat {
                sequence,
                attempts: self.held.list(),
                host_memory_used_bytes: self.host.memory_used_bytes(),
            };
            if outgoing.try_send(heartbeat.into()).is_err() {
                return SessionError::NotReading;
            }
        }
        SessionError::Ending
    }

    /// Lets what waits to be sent go out before the connection is dropped.
    async fn close(
        &self,
        outgoing: mpsc::Sender<WorkerMessage>,
        incoming: &mut Streaming<CoordinatorMessage>,
    ) -> SessionError {
        // The agent's loop has dropped its own sender: the stream ends when all has been sent.
        drop(outgoing);
        let ended = async { while let Ok(Some(_)) = incoming.message().await {} };
        // A coordinator that keeps its half open has all the same received ours.
        let _ = timeout(crate::limits::SHUTDOWN_WITHIN, ended).await;
        SessionError::Ending
    }
}

/// Ends once the coordinator has said nothing for too long.
async fn silence(every: Duration, heard: &std::cell::Cell<Instant>) -> SessionError {
    let longest = (every * SILENT_HEARTBEATS).max(SHORTEST_SILENCE);
    loop {
        tokio::time::sleep_until(heard.get() + longest).await;
        // This process may have been stopped or starved: what came meanwhile is read first.
        tokio::time::sleep(SILENCE_CONFIRMATION).await;
        let silence = heard.get().elapsed();
        if silence > longest {
            return SessionError::Silent { silence };
        }
    }
}

fn not_leader(address: &str, other: NotLeader) -> SessionError {
    SessionError::NotLeader {
        address: address.to_owned(),
        leader: other.address,
    }
}

fn described(status: &Status) -> String {
    match status.message() {
        "" => format!("{:?}", status.code()),
        message => format!("{message} ({:?})", status.code()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESSES: [&str; 3] = ["10.0.0.1:7000", "10.0.0.2:7000", "10.0.0.3:7000"];

    fn begun(mut round: Round) -> Round {
        round.begin(ADDRESSES.map(str::to_owned).into(), "coordinator:7000");
        round
    }

    fn rest(mut round: Round) -> Vec<String> {
        std::iter::from_fn(|| (!round.is_over()).then(|| round.next())).collect()
    }

    #[test]
    fn one_that_fell_silent_is_asked_last_and_is_not_waited_for_long() {
        for (silent, order) in [(0, [1, 2, 0]), (1, [2, 0, 1]), (2, [0, 1, 2])] {
            let error = SessionError::Silent {
                silence: SHORTEST_SILENCE,
            };
            let mut round = begun(Round::after(ADDRESSES[silent], &error));
            for place in order {
                assert_eq!(round.next(), ADDRESSES[place]);
                let limit = if place == silent {
                    CONNECT_TO_SILENT_WITHIN
                } else {
                    CONNECT_WITHIN
                };
                assert_eq!(round.connect_within(ADDRESSES[place]), limit);
            }
            assert!(round.is_over());
        }
        let closed = Round::after(ADDRESSES[0], &SessionError::Closed);
        assert_eq!(rest(begun(closed)), ADDRESSES);
    }

    #[test]
    fn the_only_coordinator_is_waited_for_as_long_as_any_even_after_it_fell_silent() {
        let error = SessionError::Silent {
            silence: SHORTEST_SILENCE,
        };
        let mut round = Round::after("coordinator:7000", &error);
        round.begin(Vec::new(), "coordinator:7000");
        assert_eq!(round.next(), "coordinator:7000");
        assert_eq!(round.connect_within("coordinator:7000"), CONNECT_WITHIN);
        assert!(round.is_over());
    }

    #[test]
    fn a_redirection_is_followed_once_and_never_to_one_that_was_asked_or_fell_silent() {
        let mut round = begun(Round::default());
        assert_eq!(round.next(), ADDRESSES[0]);
        assert!(round.send_on(ADDRESSES[2]));
        assert_eq!(round.next(), ADDRESSES[2]);
        assert!(!round.send_on(ADDRESSES[0]), "it was asked");
        assert_eq!(rest(round), [ADDRESSES[1]]);
        let error = SessionError::Silent {
            silence: SHORTEST_SILENCE,
        };
        let mut round = begun(Round::after(ADDRESSES[2], &error));
        round.next();
        assert!(!round.send_on(ADDRESSES[2]), "its turn comes last");
        assert_eq!(rest(round), [ADDRESSES[1], ADDRESSES[2]]);
    }

    #[test]
    fn redirections_without_end_are_not_followed() {
        let mut round = begun(Round::default());
        round.next();
        let followed = (1..100).take_while(|host| {
            let there = round.send_on(&format!("10.0.1.{host}:7000"));
            round.next();
            there
        });
        assert_eq!(followed.count(), LEADER_HOPS as usize);
        // A leader that stepped down says who follows it: the round begins there.
        let mut round = Round::after(ADDRESSES[0], &SessionError::Closed);
        assert!(round.send_on(ADDRESSES[1]));
        assert_eq!(rest(round), [ADDRESSES[1]]);
    }
}
