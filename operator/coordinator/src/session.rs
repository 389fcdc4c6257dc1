//! One stream of one worker: authentication, hello, and the loop that reads it.
//!
//! Owns what is refused before the scheduling core hears of it. Does not own the worker: a worker outlives its
//! streams, and the engine decides which stream is its current one.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use futures::Stream;
use prover_core::WorkerId;
use prover_wire::limits::MESSAGES_PER_BATCH;
use prover_wire::protocol as wire;
use prover_wire::protocol::coordinator_message::Message as Outbound;
use prover_wire::protocol::worker_message::Message as Inbound;
use prover_wire::protocol::worker_plane_server::WorkerPlane;
use prover_wire::{Batched, Batcher, Validate};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::command::{Command, Connected};
use crate::config::HELLO_TIMEOUT;
use crate::convert::{self, ConversionError, Hello};
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::role::Standing;
use crate::sign_in::SignIn;

/// Ends a stream from the coordinator's side, once, with a reason that its worker sees.
#[derive(Clone, Debug, Default)]
pub struct Closer {
    /// What the worker is told last.
    last: Arc<OnceLock<Result<wire::CoordinatorMessage, Status>>>,
    closed: CancellationToken,
}

impl Closer {
    /// Closes the stream; the first reason counts.
    pub fn close(&self, status: Status) {
        // Only the first reason counts: what follows is its consequence.
        let _ = self.last.set(Err(status));
        self.closed.cancel();
    }

    /// Closes the stream since another coordinator leads, at this HOST:PORT if it is known.
    pub fn hand_over(&self, leader: Option<&str>) {
        let _ = self.last.set(not_leader(leader));
        self.closed.cancel();
    }

    async fn closed(&self) {
        self.closed.cancelled().await;
    }

    fn last(&self) -> Result<wire::CoordinatorMessage, Status> {
        let last = self.last.get().cloned();
        last.unwrap_or_else(|| Err(Status::aborted("the stream was closed")))
    }

    /// Why the coordinator closed the stream; none while it is open.
    #[must_use]
    pub fn reason(&self) -> Option<Status> {
        self.told().map(|last| match last {
            Ok(_) => Status::unavailable("another coordinator leads"),
            Err(status) => status,
        })
    }

    /// What the worker is told last; none while the stream is open.
    #[must_use]
    pub fn told(&self) -> Option<Result<wire::CoordinatorMessage, Status>> {
        self.last.get().cloned()
    }
}

/// How a worker learns that another coordinator leads.
fn not_leader(leader: Option<&str>) -> Result<wire::CoordinatorMessage, Status> {
    match leader {
        Some(address) => Ok(envelope(Outbound::NotLeader(wire::NotLeader {
            address: address.to_owned(),
        }))),
        None => Err(Status::unavailable(
            "this coordinator does not lead, and does not know yet which one does: try again",
        )),
    }
}

/// The engine's side of a stream.
#[derive(Clone, Debug)]
pub struct SessionHandle {
    /// Never used twice: reports of an older stream of the same worker are told apart by it.
    pub id: u64,
    /// Messages to the worker. One that does not read them is disconnected.
    pub outbound: mpsc::Sender<wire::CoordinatorMessage>,
    /// Ends the stream.
    pub closer: Closer,
}

/// Wraps a message of the coordinator.
pub(crate) fn envelope(message: Outbound) -> wire::CoordinatorMessage {
    wire::CoordinatorMessage {
        message: Some(message),
    }
}

/// The service that workers connect to.
#[derive(Debug)]
pub(crate) struct WorkerPlaneService {
    pub(crate) sign_in: SignIn,
    pub(crate) standing: Standing,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) outbound_messages: usize,
    pub(crate) metrics: Metrics,
    pub(crate) next_session: AtomicU64,
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl WorkerPlane for WorkerPlaneService {
    type SessionStream = OutboundStream;

    async fn session(
        &self,
        request: Request<Streaming<wire::WorkerMessage>>,
    ) -> Result<Response<OutboundStream>, Status> {
        let identity = self.sign_in.worker(&request).await?;
        if !self.standing.leads() {
            self.metrics.session_refused("not_leader");
            let (_, messages) = mpsc::channel(1);
            let closer = Closer::default();
            closer.hand_over(self.standing.leader().as_deref());
            return Ok(Response::new(OutboundStream::new(
                messages,
                closer,
                Arc::default(),
            )));
        }
        let (outbound, messages) = mpsc::channel(self.outbound_messages);
        let closer = Closer::default();
        let batch_messages = Arc::new(AtomicUsize::new(0));
        let reader = Reader {
            inbound: request.into_inner(),
            identity,
            commands: self.commands.clone(),
            session: SessionHandle {
                id: self.next_session.fetch_add(1, Ordering::Relaxed),
                outbound,
                closer: closer.clone(),
            },
            batch_messages: Arc::clone(&batch_messages),
            metrics: self.metrics.clone(),
            stop: self.stop.clone(),
        };
        tokio::spawn(reader.run());
        Ok(Response::new(OutboundStream::new(
            messages,
            closer,
            batch_messages,
        )))
    }
}

/// What the engine sends, what waits at the same time in batches, until the engine closes the stream: then its reason
/// at once, whatever still waits.
#[derive(Debug)]
pub(crate) struct OutboundStream {
    messages: mpsc::Receiver<wire::CoordinatorMessage>,
    batcher: Batcher<wire::CoordinatorMessage>,
    /// Messages that the worker takes in one batch, once it has said so.
    batch_messages: Arc<AtomicUsize>,
    closer: Closer,
    /// Wakes the stream when it is closed; made once, since a message is sent every few microseconds.
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    over: bool,
}

impl OutboundStream {
    fn new(
        messages: mpsc::Receiver<wire::CoordinatorMessage>,
        closer: Closer,
        batch_messages: Arc<AtomicUsize>,
    ) -> OutboundStream {
        let closed = Box::pin(closer.closed.clone().cancelled_owned());
        OutboundStream {
            messages,
            batcher: Batcher::default(),
            batch_messages,
            closer,
            closed,
            over: false,
        }
    }
}

impl Stream for OutboundStream {
    type Item = Result<wire::CoordinatorMessage, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        // The reason is set before the token is cancelled, so it is there whenever the token is.
        if this.closer.last.get().is_none() {
            let first = match this.batcher.left() {
                Some(left) => Poll::Ready(Some(left)),
                None => this.messages.poll_recv(context),
            };
            if let Poll::Ready(first) = first {
                let most = this.batch_messages.load(Ordering::Relaxed);
                let messages = &mut this.messages;
                let message =
                    first.map(|first| this.batcher.gather(first, most, || messages.try_recv().ok()));
                return Poll::Ready(message.map(Ok));
            }
            if this.closed.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
        this.over = true;
        Poll::Ready(Some(this.closer.last()))
    }
}

/// A message that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The stream can't go on.
    #[error("{0}")]
    Message(ConversionError),
    /// A call alone: it is answered with the error.
    #[error("call {call_id}: {error}")]
    Call {
        /// The worker's own number of it.
        call_id: u64,
        /// What is wrong with it.
        error: ConversionError,
    },
}

/// The first message of a stream, checked; or the short name of what is wrong with it, and its words.
///
/// # Errors
/// It is malformed, or this identity may not be called so.
pub fn hello(message: wire::WorkerHello, identity: &Identity) -> Result<Hello, (&'static str, Status)> {
    let hello = convert::hello(message).map_err(|error| {
        let told = Status::invalid_argument(format!("the hello is refused: {error}"));
        (error.category(), told)
    })?;
    if identity.may_be_called(&hello.spec.name) {
        return Ok(hello);
    }
    let told = format!(
        "worker id {:?} is not the name of the pod whose token this is (nor that name, a colon and more): \
         start the agent with --worker-id $(POD_NAME)",
        hello.spec.name
    );
    Err(("foreign_worker_id", Status::permission_denied(told)))
}

/// Every later message of a stream, or of a batch in it, as the command that it is; none where it says nothing.
///
/// # Errors
/// It is malformed.
pub fn command_of(
    connected: &Connected,
    devices: &[Arc<str>],
    session: u64,
    message: wire::WorkerMessage,
) -> Result<Option<Command>, Refused> {
    message
        .validate()
        .map_err(|error| Refused::Message(error.into()))?;
    checked_command_of(connected, devices, session, message)
}

/// The same for a message whose fields and limits have been checked.
fn checked_command_of(
    connected: &Connected,
    devices: &[Arc<str>],
    session: u64,
    message: wire::WorkerMessage,
) -> Result<Option<Command>, Refused> {
    let worker = connected.worker;
    Ok(match message.message {
        Some(Inbound::Call(call)) => {
            let call_id = call.call_id;
            let event = convert::call(worker, &connected.backend, call)
                .map_err(|error| Refused::Call { call_id, error })?;
            Some(Command::Call {
                worker,
                session,
                event,
            })
        }
        Some(message) => {
            let report = convert::report(worker, devices, message).map_err(Refused::Message)?;
            Some(Command::Report {
                worker,
                session,
                report,
            })
        }
        None => None,
    })
}

/// Reads one stream until it ends.
struct Reader {
    inbound: Streaming<wire::WorkerMessage>,
    identity: Identity,
    commands: mpsc::Sender<Command>,
    session: SessionHandle,
    batch_messages: Arc<AtomicUsize>,
    metrics: Metrics,
    stop: CancellationToken,
}

impl Reader {
    async fn run(mut self) {
        let (connected, devices) = match self.open().await {
            Ok(opened) => opened,
            Err((category, status)) => {
                self.metrics.session_refused(category);
                tracing::warn!(reason = status.message(), "a worker's stream is refused");
                self.session.closer.close(status);
                return;
            }
        };
        let worker = connected.worker;
        let status = self.read(&connected, &devices).await;
        if let Some(status) = status {
            self.session.closer.close(status);
        }
        // Where the engine is gone, nobody needs to know.
        let _ = self
            .commands
            .send(Command::Disconnected {
                worker,
                session: self.session.id,
            })
            .await;
    }

    /// Waits for the hello and introduces the worker to the engine.
    async fn open(&mut self) -> Result<(Connected, Vec<Arc<str>>), (&'static str, Status)> {
        let first = tokio::select! {
            first = tokio::time::timeout(HELLO_TIMEOUT, self.inbound.message()) => first,
            () = self.stop.cancelled() => return Err(("stopped", stopping())),
        };
        let first = first
            .map_err(|_| {
                (
                    "no_hello",
                    Status::deadline_exceeded("no hello came in time: it must come first"),
                )
            })?
            .map_err(|status| ("broken_stream", status))?
            .and_then(|message| message.message);
        let Some(Inbound::Hello(message)) = first else {
            return Err((
                "no_hello",
                Status::invalid_argument("the first message of a stream must be a hello"),
            ));
        };
        let batch_messages = usize::try_from(message.batch_messages).unwrap_or(usize::MAX);
        let hello = hello(message, &self.identity)?;
        self.batch_messages
            .store(batch_messages.min(MESSAGES_PER_BATCH), Ordering::Relaxed);
        let devices = hello.device_ids.clone();
        let (reply, answer) = oneshot::channel();
        let command = Command::Connect {
            hello: Box::new(hello),
            identity: self.identity.clone(),
            session: self.session.clone(),
            reply,
        };
        self.commands
            .send(command)
            .await
            .map_err(|_| ("stopped", stopping()))?;
        let connected = answer.await.map_err(|_| ("stopped", stopping()))?;
        connected
            .map(|connected| (connected, devices))
            .map_err(|status| ("refused", status))
    }

    /// Answers with the reason to close the stream with, none where its other side or the engine closed it.
    async fn read(&mut self, connected: &Connected, devices: &[Arc<str>]) -> Option<Status> {
        // Made once, since a message comes every few microseconds.
        let stop = self.stop.clone();
        let mut stopped = pin!(stop.cancelled());
        let closer = self.session.closer.clone();
        let mut closed = pin!(closer.closed());
        loop {
            // A worker that never pauses can't keep its stream open: whether it was closed is asked after every message.
            let message = tokio::select! {
                biased;
                message = self.inbound.message() => message,
                () = &mut stopped => return Some(stopping()),
                () = &mut closed => return None,
            };
            if closer.last.get().is_some() {
                return None;
            }
            let message = match message {
                Ok(Some(message)) => message,
                Ok(None) => return None,
                Err(status) => {
                    // Too large or undecodable is the worker's fault and is told; a broken connection can't be.
                    tracing::debug!(worker = %connected.worker, reason = status.message(), "a stream broke");
                    let told = matches!(
                        status.code(),
                        Code::OutOfRange | Code::ResourceExhausted | Code::Internal
                    );
                    if told {
                        self.metrics.session_refused("undecodable");
                    }
                    return told.then_some(status);
                }
            };
            if let Err(status) = self.take(connected, devices, message).await {
                return Some(status);
            }
        }
    }

    /// Hands a message on, or all of a batch without anything of others in between.
    async fn take(
        &self,
        connected: &Connected,
        devices: &[Arc<str>],
        message: wire::WorkerMessage,
    ) -> Result<(), Status> {
        message.validate().map_err(|error| self.refuse(&error.into()))?;
        let messages = message.each();
        let mut commands = Vec::with_capacity(messages.len());
        let mut refused_calls = Vec::new();
        let mut end = Ok(());
        for message in messages {
            match checked_command_of(connected, devices, self.session.id, message) {
                Ok(command) => commands.extend(command),
                // A call that makes no sense is the backend's fault: its attempt is told, the stream lives on.
                Err(Refused::Call { call_id, error }) => refused_calls.push((call_id, error)),
                Err(Refused::Message(error)) => {
                    end = Err(self.refuse(&error));
                    break;
                }
            }
        }
        let places = self.commands.reserve_many(commands.len()).await;
        for (place, command) in places.map_err(|_| stopping())?.zip(commands) {
            place.send(command);
        }
        for (call_id, error) in refused_calls {
            self.metrics.message_refused(error.category());
            self.refuse_call(connected.worker, call_id, &error).await?;
        }
        end
    }

    fn refuse(&self, error: &ConversionError) -> Status {
        self.metrics.message_refused(error.category());
        Status::invalid_argument(format!("a message is refused: {error}"))
    }

    async fn refuse_call(
        &self,
        worker: WorkerId,
        call_id: u64,
        error: &convert::ConversionError,
    ) -> Result<(), Status> {
        tracing::warn!(%worker, call_id, %error, "a call of an attempt is refused");
        let answer = wire::Answer {
            call_id,
            error: prover_wire::limits::cut_text(&error.to_string()),
            error_kind: wire::ErrorKind::InvalidArgument.into(),
            ..wire::Answer::default()
        };
        // A stream that is closing needs no answer.
        let _ = self
            .session
            .outbound
            .send(envelope(Outbound::Answer(answer)))
            .await;
        Ok(())
    }
}

fn stopping() -> Status {
    Status::unavailable("the coordinator is shutting down")
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::*;

    fn mk_drain(number: usize) -> wire::CoordinatorMessage {
        envelope(Outbound::Drain(wire::Drain {
            reason: number.to_string(),
        }))
    }

    /// What a stream says of so many messages that wait for it, as lengths of what travels together.
    fn frames(waiting: usize, batch_messages: usize) -> Vec<usize> {
        let (sender, messages) = mpsc::channel(waiting);
        for number in 0..waiting {
            sender.try_send(mk_drain(number)).unwrap();
        }
        let most = Arc::new(AtomicUsize::new(batch_messages));
        let mut stream = OutboundStream::new(messages, Closer::default(), most);
        let (mut frames, mut each) = (Vec::new(), Vec::new());
        while let Some(message) = stream.next().now_or_never() {
            let messages = message.unwrap().unwrap().each();
            frames.push(messages.len());
            each.extend(messages);
        }
        assert_eq!(each, (0..waiting).map(mk_drain).collect::<Vec<_>>());
        frames
    }

    #[test]
    fn what_waits_for_a_worker_travels_together_where_it_takes_batches() {
        assert_eq!(frames(5, 0), [1; 5]);
        assert_eq!(frames(5, MESSAGES_PER_BATCH), [5]);
        assert_eq!(frames(5, 2), [2, 2, 1]);
        assert_eq!(frames(600, MESSAGES_PER_BATCH), [256, 256, 88]);
    }
}
