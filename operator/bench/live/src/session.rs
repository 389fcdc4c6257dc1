//! Workers that speak the real worker plane over connections of their own, and do what a benchmark tells them to.
//!
//! Owns their streams and calls. Does not run tasks: the benchmark does.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use prost::Message as _;
use prover_backend::protocol as backend;
use prover_wire::protocol::coordinator_message::Message as FromCoordinator;
use prover_wire::protocol::{self as wire, call};
use prover_wire::{Batched, Batcher};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::error::LiveError;

/// Bytes before each message of a stream.
const FRAME_HEADER: usize = 5;
/// Bytes that may be on their way to a worker.
const WINDOW_BYTES: u32 = 1 << 20;
/// The token that workers and coordinator share.
pub(crate) const TOKEN: &str = "benchmark";
/// Longest wait for anything that must come.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of memory that every worker has.
pub(crate) const WORKER_BYTES: u64 = 64 << 30;

/// What a worker does with what it is told.
pub(crate) trait Behaviour: Send + Sync + 'static {
    /// An attempt is given. It must answer without waiting, and may go on in a task of its own.
    fn assigned(self: Arc<Self>, link: Arc<Link>, assign: wire::Assign);
}

/// What all workers of the process heard, for what travels together.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) frames: AtomicU64,
    pub(crate) messages: AtomicU64,
}

pub(crate) static HEARD: Heard = Heard {
    frames: AtomicU64::new(0),
    messages: AtomicU64::new(0),
};

/// A worker's side of its stream.
pub(crate) struct Link {
    outgoing: Mutex<Outgoing>,
    /// Messages in one batch.
    most: usize,
    calls: Mutex<HashMap<u64, oneshot::Sender<wire::Answer>>>,
    next_call: AtomicU64,
}

struct Outgoing {
    stream: SendStream<Bytes>,
    /// What is to be said with the next frame.
    waiting: VecDeque<wire::WorkerMessage>,
    batcher: Batcher<wire::WorkerMessage>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// Says something with the next [`Link::flush`], which comes by itself when everything that has come is answered.
    pub(crate) fn say(&self, message: impl Into<wire::WorkerMessage>) {
        lock(&self.outgoing).waiting.push_back(message.into());
    }

    /// Sends what was said; what can't be sent any more is of no interest.
    pub(crate) fn flush(&self) {
        let outgoing = &mut *lock(&self.outgoing);
        let waiting = &mut outgoing.waiting;
        while let Some(first) = outgoing.batcher.left().or_else(|| waiting.pop_front()) {
            let message = outgoing.batcher.gather(first, self.most, || waiting.pop_front());
            let _ = outgoing.stream.send_data(frame(&message), false);
        }
    }

    /// Sends a message at once.
    pub(crate) fn send(&self, message: impl Into<wire::WorkerMessage>) {
        self.say(message);
        self.flush();
    }

    /// Submits tasks at once; what comes back waits until they are taken.
    pub(crate) fn submit(
        &self,
        attempt_id: u64,
        tasks: Vec<backend::TaskSubmission>,
    ) -> impl Future<Output = Result<(), LiveError>> + Send + use<> {
        let call_id = self.next_call.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        lock(&self.calls).insert(call_id, sender);
        let encoded = backend::SubmitTasksRequest { attempt_id, tasks }.encode_to_vec();
        self.send(wire::Call {
            call_id,
            attempt_id,
            call: Some(call::Call::SubmitTasks(wire::SubmitTasks { encoded })),
        });
        async move {
            match tokio::time::timeout(PATIENCE, answer).await {
                Ok(Ok(answer)) if answer.error.is_empty() => Ok(()),
                Ok(Ok(answer)) => Err(LiveError::Refused { words: answer.error }),
                Ok(Err(_)) | Err(_) => Err(LiveError::Silence { what: "an answer" }),
            }
        }
    }
}

/// An attempt began.
pub(crate) fn started(attempt_id: u64) -> wire::AttemptStarted {
    wire::AttemptStarted { attempt_id }
}

/// An attempt ended well.
pub(crate) fn succeeded(
    attempt_id: u64,
    result: Vec<u8>,
    outputs: Vec<wire::Artifact>,
) -> wire::AttemptSucceeded {
    wire::AttemptSucceeded {
        attempt_id,
        outputs,
        result,
        ..wire::AttemptSucceeded::default()
    }
}

/// A message as gRPC frames it: not compressed, its length, its bytes.
fn frame(message: &wire::WorkerMessage) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(FRAME_HEADER + length);
    bytes.put_u8(0);
    bytes.put_u32(length as u32);
    // The buffer grows as it needs.
    let _ = message.encode(&mut bytes);
    bytes.freeze()
}

/// The messages of a stream, as their bytes come.
struct Incoming {
    stream: RecvStream,
    bytes: BytesMut,
}

impl Incoming {
    /// What has come whole.
    fn take(&mut self) -> Result<Option<wire::CoordinatorMessage>, LiveError> {
        let Some(header) = self.bytes.first_chunk::<FRAME_HEADER>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if self.bytes.len() < FRAME_HEADER + length {
            return Ok(None);
        }
        self.bytes.advance(FRAME_HEADER);
        let message = self.bytes.split_to(length).freeze();
        let message = wire::CoordinatorMessage::decode(message);
        message
            .map(Some)
            .map_err(|_| LiveError::Silence { what: "a message" })
    }

    /// Waits for more; false where the stream has ended.
    async fn more(&mut self) -> Result<bool, LiveError> {
        let Some(bytes) = self.stream.data().await else {
            return Ok(false);
        };
        let bytes = bytes?;
        self.stream.flow_control().release_capacity(bytes.len())?;
        self.bytes.extend_from_slice(&bytes);
        Ok(true)
    }

    async fn next(&mut self) -> Result<Option<wire::CoordinatorMessage>, LiveError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            if !self.more().await? {
                return Ok(None);
            }
        }
    }
}

/// What the backend of all workers says of itself.
fn description() -> backend::BackendDescription {
    let resources = |gib: u64| backend::Resources {
        device_class: backend::DeviceClass::Cpu.into(),
        host_memory_bytes: gib << 30,
        vram_bytes: 0,
    };
    let task_type = |name: &str, lane: backend::Lane| backend::TaskType {
        name: name.to_owned(),
        stage: "Prove".to_owned(),
        stage_order: 1,
        cacheable: false,
        verifies: name == "verify",
        lane: lane.into(),
    };
    backend::BackendDescription {
        name: "benchmark".to_owned(),
        version: "1.0.0".to_owned(),
        attempts_at_once: 1,
        proofs: vec![backend::ProofOffer {
            system: "emulated".to_owned(),
            kind: "Emulated".to_owned(),
            root_task_type: "plan".to_owned(),
            parent_chain: vec![resources(1)],
            largest_leaf: Some(resources(1)),
        }],
        task_types: vec![
            task_type("plan", backend::Lane::Control),
            task_type("prove", backend::Lane::Device),
            task_type("join", backend::Lane::Device),
            task_type("verify", backend::Lane::Device),
        ],
        hang_after_ms: 0,
        emulated: true,
        withheld: Vec::new(),
    }
}

/// The hello of a worker with one device. `most`: messages that it takes in one batch.
pub(crate) fn mk_hello(number: usize, class: wire::DeviceClass, most: usize) -> wire::WorkerHello {
    let description = description();
    wire::WorkerHello {
        protocol_version: prover_wire::PROTOCOL_VERSION,
        worker_id: format!("worker-{number}"),
        worker_group: "benchmark".to_owned(),
        host_memory_bytes: WORKER_BYTES,
        devices: vec![wire::Device {
            id: "device-0".to_owned(),
            class: class.into(),
            product: "none".to_owned(),
            vram_bytes: if class == wire::DeviceClass::Gpu {
                24 << 30
            } else {
                0
            },
            attempts_at_once: 1,
        }],
        backend: Some(wire::BackendDescription {
            name: description.name.clone(),
            version: description.version.clone(),
            encoded: description.encode_to_vec(),
        }),
        held: Vec::new(),
        highest_epoch: 0,
        process_id: 1,
        stream: 0,
        process_nonce: 0,
        batch_messages: most as u32,
    }
}

/// A connection for the streams of some workers.
pub(crate) async fn dial(address: SocketAddr) -> Result<SendRequest<Bytes>, LiveError> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .handshake(stream)
        .await?;
    // It ends with the benchmark.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// Opens the stream of a worker with one device, and does what it is told until the stream ends. `most`: messages in
/// one batch.
pub(crate) async fn connect(
    connection: SendRequest<Bytes>,
    number: usize,
    most: usize,
    class: wire::DeviceClass,
    behaviour: Arc<dyn Behaviour>,
) -> Result<Arc<Link>, LiveError> {
    let request = http::Request::post("http://coordinator/proving.worker.v1.WorkerPlane/Session")
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .header(
            prover_wire::AUTHORIZATION,
            format!("{}{TOKEN}", prover_wire::BEARER),
        )
        .body(())
        .map_err(|_| LiveError::Silence { what: "a request" })?;
    let (response, stream) = connection.ready().await?.send_request(request, false)?;
    let link = Arc::new(Link {
        outgoing: Mutex::new(Outgoing {
            stream,
            waiting: VecDeque::new(),
            batcher: Batcher::default(),
        }),
        most,
        calls: Mutex::new(HashMap::new()),
        next_call: AtomicU64::new(1),
    });
    link.send(mk_hello(number, class, most));
    let mut incoming = Incoming {
        stream: response.await?.into_body(),
        bytes: BytesMut::new(),
    };
    let welcome = incoming.next().await?.and_then(|message| message.message);
    if !matches!(welcome, Some(FromCoordinator::Welcome(_))) {
        return Err(LiveError::Silence { what: "a welcome" });
    }
    let own = Arc::clone(&link);
    tokio::spawn(async move {
        // A stream that ends, ends with the benchmark.
        while let Ok(Some(message)) = incoming.next().await {
            let mut next = Some(message);
            while let Some(message) = next {
                let messages = message.each();
                HEARD.frames.fetch_add(1, Ordering::Relaxed);
                HEARD.messages.fetch_add(messages.len() as u64, Ordering::Relaxed);
                for message in messages {
                    if let Some(message) = message.message {
                        take(&own, &behaviour, message);
                    }
                }
                next = incoming.take().ok().flatten();
            }
            own.flush();
        }
    });
    Ok(link)
}

fn take(link: &Arc<Link>, behaviour: &Arc<dyn Behaviour>, message: FromCoordinator) {
    match message {
        FromCoordinator::Assign(assign) => Arc::clone(behaviour).assigned(Arc::clone(link), assign),
        FromCoordinator::Answer(answer) => {
            let call = lock(&link.calls).remove(&answer.call_id);
            if let Some(call) = call {
                // Whoever called may have given up.
                let _ = call.send(answer);
            }
        }
        FromCoordinator::Recall(recall) => link.say(wire::RecallAnswer {
            attempt_id: recall.attempt_id,
            given_back: false,
        }),
        FromCoordinator::Stop(stop) => link.say(wire::AttemptStopped {
            attempt_id: stop.attempt_id,
        }),
        _ => {}
    }
}
