//! What happens to the agent's own loop: everything that it decides by comes as one of these, one at a time.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prover_backend::CallError;
use prover_backend::protocol::{AgentCommand, BackendDescription, BackendEvent};
use prover_wire::protocol::{
    Answer, ChannelMessage, HeldAttempt, TaskResult, WorkerHello, WorkerMessage, call, coordinator_message,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::child::{ChildEnd, Meter};
use crate::transfer::{AttemptFolder, Fetched, TransferError, Uploaded};

/// Commands to one child.
pub(crate) type Commands = mpsc::Sender<Result<AgentCommand, tonic::Status>>;

/// Messages to the coordinator, while a stream is open.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) queue: mpsc::Sender<WorkerMessage>,
    /// Gives the stream up: a message could not be queued, so that what follows would have a gap.
    pub(crate) give_up: CancellationToken,
}

/// Everything that can happen.
#[derive(Debug)]
pub(crate) enum Event {
    /// A stream is about to be opened: what is there to say?
    HelloWanted { reply: oneshot::Sender<WorkerHello> },
    /// The coordinator has welcomed this worker.
    Connected {
        outgoing: Outgoing,
        epoch: u64,
        stop: Vec<u64>,
        told: Vec<HeldAttempt>,
    },
    /// The stream is closed.
    Disconnected,
    /// The coordinator says something.
    FromCoordinator(Box<coordinator_message::Message>),
    /// Something happened to the child of a slot.
    Child { slot: usize, news: ChildNews },
    /// All inputs of an attempt are there, or they can't be had.
    Fetched {
        attempt: u64,
        result: Result<Fetched, TransferError>,
    },
    /// All outputs of an attempt are in the store, or can't be put there.
    Uploaded {
        attempt: u64,
        result: Result<Uploaded, TransferError>,
        took: Duration,
    },
    /// A call that the coordinator could not take is to be sent again.
    CallAgain { call: u64 },
    /// A stopped attempt should have left its device by now.
    StopOverdue { attempt: u64 },
    /// An attempt calls.
    Called {
        slot: usize,
        attempt: u64,
        call: call::Call,
        reply: Reply,
    },
    /// A method of the service wants to know where an attempt lives.
    ViewWanted {
        slot: usize,
        attempt: u64,
        reply: oneshot::Sender<Result<AttemptView, CallError>>,
    },
}

/// Something happened to a child.
#[derive(Debug)]
pub(crate) enum ChildNews {
    /// It has said hello.
    Ready {
        meter: Meter,
        commands: Commands,
        description: Box<BackendDescription>,
    },
    /// It says something.
    Event(Box<BackendEvent>),
    /// It has ended and will be started again, unless the agent wanted the end.
    Ended(ChildEnd),
    /// It could not be started so often that its device counts as unusable. It is still tried again.
    Unstartable { problem: String },
    /// Nothing is there that could start it. Its device counts as unusable until something is.
    Absent { problem: String },
}

/// Where an attempt lives.
#[derive(Clone, Debug)]
pub(crate) struct AttemptView {
    pub(crate) folder: AttemptFolder,
    pub(crate) artifact_prefix: String,
    pub(crate) description: Arc<BackendDescription>,
    pub(crate) cancel: CancellationToken,
}

/// Where the answer to a call goes.
#[derive(Debug)]
pub(crate) enum Reply {
    /// One answer.
    Once(oneshot::Sender<Result<Answer, CallError>>),
    /// One result for each task.
    TaskResults(mpsc::Sender<Result<TaskResult, tonic::Status>>),
    /// Messages until the end of the channel.
    ChannelMessages(mpsc::Sender<Result<ChannelMessage, tonic::Status>>),
}

/// The attempts that the agent holds, for heartbeats: shared with the session's thread, which must never wait for
/// the agent's loop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held(Arc<Mutex<BTreeSet<u64>>>);

impl Held {
    pub(crate) fn insert(&self, attempt: u64) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(attempt);
    }

    pub(crate) fn remove(&self, attempt: u64) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&attempt);
    }

    pub(crate) fn list(&self) -> Vec<u64> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .copied()
            .collect()
    }
}
