//! Workers that speak the real worker plane over connections of their own, and do what a benchmark tells them to.
//!
//! Owns their streams and calls. Does not run tasks: the benchmark does.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message as _;
use prover_backend::protocol as backend;
use prover_wire::protocol::coordinator_message::Message as FromCoordinator;
use prover_wire::protocol::worker_plane_client::WorkerPlaneClient;
use prover_wire::protocol::{self as wire, call};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;

use crate::error::LiveError;

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

/// A worker's side of its stream.
#[derive(Debug)]
pub(crate) struct Link {
    outgoing: mpsc::UnboundedSender<wire::WorkerMessage>,
    calls: Mutex<HashMap<u64, oneshot::Sender<wire::Answer>>>,
    next_call: AtomicU64,
}

impl Link {
    /// Sends a message; one that can't be sent any more is of no interest.
    pub(crate) fn send(&self, message: impl Into<wire::WorkerMessage>) {
        let _ = self.outgoing.send(message.into());
    }

    /// An attempt began.
    pub(crate) fn started(&self, attempt_id: u64) {
        self.send(wire::AttemptStarted { attempt_id });
    }

    /// An attempt ended well.
    pub(crate) fn succeeded(&self, attempt_id: u64, result: Vec<u8>, outputs: Vec<wire::Artifact>) {
        self.send(wire::AttemptSucceeded {
            attempt_id,
            outputs,
            result,
            ..wire::AttemptSucceeded::default()
        });
    }

    /// Submits tasks and waits until they are taken.
    pub(crate) async fn submit(
        &self,
        attempt_id: u64,
        tasks: Vec<backend::TaskSubmission>,
    ) -> Result<(), LiveError> {
        let call_id = self.next_call.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(call_id, sender);
        let encoded = backend::SubmitTasksRequest { attempt_id, tasks }.encode_to_vec();
        self.send(wire::Call {
            call_id,
            attempt_id,
            call: Some(call::Call::SubmitTasks(wire::SubmitTasks { encoded })),
        });
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) if answer.error.is_empty() => Ok(()),
            Ok(Ok(answer)) => Err(LiveError::Refused { words: answer.error }),
            Ok(Err(_)) | Err(_) => Err(LiveError::Silence { what: "an answer" }),
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
    }
}

/// Connects a worker with one device on a connection of its own, and does what it is told until the stream ends.
pub(crate) async fn connect(
    address: SocketAddr,
    number: usize,
    class: wire::DeviceClass,
    behaviour: Arc<dyn Behaviour>,
) -> Result<Arc<Link>, LiveError> {
    let description = description();
    let hello = wire::WorkerHello {
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
    };
    let channel = Endpoint::from_shared(format!("http://{address}"))?
        .connect()
        .await?;
    let mut client = WorkerPlaneClient::new(channel).max_encoding_message_size(64 << 20);
    let (outgoing, messages) = mpsc::unbounded_channel();
    let mut request = Request::new(UnboundedReceiverStream::new(messages));
    let token = MetadataValue::try_from(format!("{}{TOKEN}", prover_wire::BEARER));
    let token = token.map_err(|_| LiveError::Silence { what: "a token" })?;
    request.metadata_mut().insert(prover_wire::AUTHORIZATION, token);
    let link = Arc::new(Link {
        outgoing,
        calls: Mutex::new(HashMap::new()),
        next_call: AtomicU64::new(1),
    });
    link.send(hello);
    let mut incoming = client.session(request).await?.into_inner();
    let welcome = incoming.message().await?.and_then(|message| message.message);
    if !matches!(welcome, Some(FromCoordinator::Welcome(_))) {
        return Err(LiveError::Silence { what: "a welcome" });
    }
    let own = Arc::clone(&link);
    tokio::spawn(async move {
        // A stream that ends, ends with the benchmark.
        while let Ok(Some(message)) = incoming.message().await {
            if let Some(message) = message.message {
                take(&own, &behaviour, message);
            }
        }
    });
    Ok(link)
}

fn take(link: &Arc<Link>, behaviour: &Arc<dyn Behaviour>, message: FromCoordinator) {
    match message {
        FromCoordinator::Assign(assign) => Arc::clone(behaviour).assigned(Arc::clone(link), assign),
        FromCoordinator::Answer(answer) => {
            let call = link
                .calls
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&answer.call_id);
            if let Some(call) = call {
                // Whoever called may have given up.
                let _ = call.send(answer);
            }
        }
        FromCoordinator::Recall(recall) => link.send(wire::RecallAnswer {
            attempt_id: recall.attempt_id,
            given_back: false,
        }),
        FromCoordinator::Stop(stop) => link.send(wire::AttemptStopped {
            attempt_id: stop.attempt_id,
        }),
        _ => {}
    }
}
