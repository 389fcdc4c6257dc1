//! An agent in the test's own process: the server of the protocol on a Unix socket in a temporary folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures::Stream;
use prover_backend::protocol::agent_service_server::{AgentService, AgentServiceServer};
use prover_backend::protocol::{self, *};
use prover_backend::{CallError, ServeEnd, ServeError};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// How long a test waits for something that must come.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

type Answer<T> = Result<Response<T>, Status>;
type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The tasks that a subscriber still waits for, and where it is answered.
type Subscription = (
    BTreeSet<String>,
    mpsc::UnboundedSender<Result<TaskResult, Status>>,
);

#[derive(Default)]
pub(crate) struct Shared {
    /// All tasks submitted, with the size of each request.
    pub(crate) submissions: Vec<Vec<TaskSubmission>>,
    /// What calls are answered with instead.
    pub(crate) refuse_calls: Option<CallError>,
    /// Who follows which tasks.
    pub(crate) subscriptions: Vec<Subscription>,
    pub(crate) finished: BTreeMap<String, bool>,
    pub(crate) known: BTreeSet<String>,
    pub(crate) artifacts: BTreeMap<String, PathBuf>,
}

impl Shared {
    /// Makes a task terminal and tells those who follow it.
    pub(crate) fn finish_task(&mut self, request_id: &str, succeeded: bool) {
        self.finished.insert(request_id.to_owned(), succeeded);
        self.subscriptions.retain_mut(|(waiting, sender)| {
            if waiting.remove(request_id) {
                let _ = sender.send(Ok(task_result(request_id, succeeded)));
            }
            !waiting.is_empty()
        });
    }
}

fn task_result(request_id: &str, succeeded: bool) -> TaskResult {
    let failure = if succeeded {
        String::new()
    } else {
        "it broke".to_owned()
    };
    TaskResult {
        request_id: request_id.to_owned(),
        succeeded,
        result: vec![],
        failure,
    }
}

struct Service {
    shared: Arc<Mutex<Shared>>,
    sessions: mpsc::UnboundedSender<Session>,
}

/// The agent's end of one backend process.
pub(crate) struct Session {
    events: Streaming<BackendEvent>,
    commands: mpsc::Sender<Result<AgentCommand, Status>>,
}

impl Session {
    pub(crate) async fn send(&self, command: impl Into<AgentCommand>) {
        self.commands
            .send(Ok(command.into()))
            .await
            .expect("the backend is there");
    }

    /// The next event that is not a pulse.
    pub(crate) async fn event(&mut self) -> backend_event::Event {
        let event = async {
            loop {
                let event = self.any_event().await.expect("an event");
                if !matches!(event, backend_event::Event::Pulse(_)) {
                    return event;
                }
            }
        };
        tokio::time::timeout(PATIENCE, event)
            .await
            .expect("an event besides pulses in time")
    }

    /// The next event; `None` when the backend has gone.
    pub(crate) async fn any_event(&mut self) -> Option<backend_event::Event> {
        let event = tokio::time::timeout(PATIENCE, self.events.message())
            .await
            .expect("an event in time");
        event.ok().flatten().and_then(|event| event.event)
    }
}

pub(crate) struct FakeAgent {
    folder: tempfile::TempDir,
    pub(crate) shared: Arc<Mutex<Shared>>,
    sessions: mpsc::UnboundedReceiver<Session>,
    server: tokio::task::JoinHandle<()>,
}

impl FakeAgent {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let listener = tokio::net::UnixListener::bind(folder.path().join("socket")).expect("a socket");
        let (sender, sessions) = mpsc::unbounded_channel();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let service = Service {
            shared: shared.clone(),
            sessions: sender,
        };
        let service = AgentServiceServer::new(service)
            .max_decoding_message_size(prover_backend::limits::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(prover_backend::limits::MAX_MESSAGE_BYTES);
        let server = tonic::transport::Server::builder().add_service(service);
        let server = server.serve_with_incoming(UnixListenerStream::new(listener));
        let server = tokio::spawn(async move { server.await.expect("the server runs") });
        Self {
            folder,
            shared,
            sessions,
            server,
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Serves a backend from a task of this process.
    pub(crate) fn serve<B: prover_backend::Backend>(
        &self,
        backend: B,
    ) -> tokio::task::JoinHandle<Result<ServeEnd, ServeError>> {
        let socket = self.socket();
        tokio::spawn(async move { prover_backend::serve(Arc::new(backend), &socket).await })
    }

    /// Waits for a backend's session.
    pub(crate) async fn session(&mut self) -> Session {
        tokio::time::timeout(PATIENCE, self.sessions.recv())
            .await
            .expect("a session in time")
            .expect("a session")
    }

    /// Waits for a backend and welcomes it.
    pub(crate) async fn welcomed(&mut self) -> (Session, Hello) {
        let mut session = self.session().await;
        let backend_event::Event::Hello(hello) = session.event().await else {
            panic!("the first event is no hello")
        };
        session.send(welcome(protocol::PROTOCOL_VERSION)).await;
        (session, hello)
    }

    /// An attempt with a directory of its own.
    pub(crate) fn attempt(&self, attempt_id: u64, task_type: &str, outputs: &[&str]) -> RunAttempt {
        let directory = self.folder.path().join(format!("attempt-{attempt_id}"));
        std::fs::create_dir(&directory).expect("a folder");
        RunAttempt {
            attempt_id,
            job_id: "job".to_owned(),
            task_type: task_type.to_owned(),
            directory: directory.to_str().expect("UTF-8").to_owned(),
            outputs: outputs.iter().map(|name| (*name).to_owned()).collect(),
            attempt_number: 1,
            ..RunAttempt::default()
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().expect("nobody panicked")
    }

    /// Waits until something is true of what the agent has seen.
    pub(crate) async fn wait_until(&self, mut condition: impl FnMut(&mut Shared) -> bool) {
        let waiting = async {
            while !condition(&mut self.shared()) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .expect("it came true in time");
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub(crate) fn welcome(protocol_version: u32) -> Welcome {
    let device = Device {
        id: "cpu-0".to_owned(),
        class: DeviceClass::Cpu.into(),
        ..Device::default()
    };
    Welcome {
        protocol_version,
        device: Some(device),
    }
}

impl Service {
    fn answer<T>(&self, answer: impl FnOnce(&mut Shared) -> Result<T, CallError>) -> Answer<T> {
        let mut shared = self.shared.lock().expect("nobody panicked");
        if let Some(refusal) = shared.refuse_calls.clone() {
            return Err(refusal.into_status());
        }
        answer(&mut shared)
            .map(Response::new)
            .map_err(CallError::into_status)
    }
}

#[tonic::async_trait]
impl AgentService for Service {
    type SessionStream = ReceiverStream<Result<AgentCommand, Status>>;
    type SubscribeTasksStream = UnboundedReceiverStream<Result<TaskResult, Status>>;
    type ReadChannelStream = BoxStream<ChannelMessage>;

    async fn session(&self, request: Request<Streaming<BackendEvent>>) -> Answer<Self::SessionStream> {
        let (commands, queue) = mpsc::channel(64);
        let _ = self.sessions.send(Session {
            events: request.into_inner(),
            commands,
        });
        Ok(Response::new(ReceiverStream::new(queue)))
    }

    async fn submit_tasks(&self, request: Request<SubmitTasksRequest>) -> Answer<SubmitTasksResponse> {
        let tasks = request.into_inner().tasks;
        self.answer(|shared| {
            let already_succeeded = tasks
                .iter()
                .map(|task| shared.finished.get(&task.request_id) == Some(&true))
                .collect();
            let task_ids = (1..).take(tasks.len()).collect();
            shared
                .known
                .extend(tasks.iter().map(|task| task.request_id.clone()));
            shared.submissions.push(tasks);
            Ok(SubmitTasksResponse {
                task_ids,
                already_succeeded,
            })
        })
    }

    async fn complete_marker(&self, _: Request<CompleteMarkerRequest>) -> Answer<Empty> {
        self.answer(|_| Ok(Empty {}))
    }

    async fn subscribe_tasks(
        &self,
        request: Request<SubscribeTasksRequest>,
    ) -> Answer<Self::SubscribeTasksStream> {
        self.answer(|shared| {
            let mut waiting: BTreeSet<String> = request.into_inner().request_ids.into_iter().collect();
            if let Some(unknown) = waiting
                .iter()
                .find(|request_id| !shared.known.contains(*request_id))
            {
                return Err(CallError::NotFound(format!("task {unknown}")));
            }
            let (sender, queue) = mpsc::unbounded_channel();
            waiting.retain(|request_id| match shared.finished.get(request_id) {
                Some(succeeded) => {
                    let _ = sender.send(Ok(task_result(request_id, *succeeded)));
                    false
                }
                None => true,
            });
            if !waiting.is_empty() {
                shared.subscriptions.push((waiting, sender));
            }
            Ok(UnboundedReceiverStream::new(queue))
        })
    }

    async fn send_channel_message(&self, _: Request<SendChannelMessageRequest>) -> Answer<Empty> {
        self.answer(|_| Ok(Empty {}))
    }

    async fn read_channel(&self, request: Request<ReadChannelRequest>) -> Answer<Self::ReadChannelStream> {
        let start = request.into_inner().start_offset;
        let messages = (start..3).map(|offset| {
            Ok(ChannelMessage {
                offset,
                payload: vec![offset as u8],
                end_of_channel: offset == 2,
            })
        });
        let messages: Vec<_> = messages.collect();
        self.answer(|_| {
            Ok(Box::pin(tokio_stream::iter(messages).map(|message| message)) as Self::ReadChannelStream)
        })
    }

    async fn put_artifact(&self, request: Request<PutArtifactRequest>) -> Answer<ArtifactInfo> {
        let PutArtifactRequest { name, path, .. } = request.into_inner();
        self.answer(|shared| {
            let size_bytes = std::fs::metadata(&path)
                .map_err(|error| CallError::NotFound(error.to_string()))?
                .len();
            shared.artifacts.insert(name.clone(), path.into());
            Ok(ArtifactInfo {
                name,
                size_bytes,
                sha256: String::new(),
            })
        })
    }

    async fn get_artifact(&self, request: Request<GetArtifactRequest>) -> Answer<GetArtifactResponse> {
        let name = request.into_inner().name;
        self.answer(|shared| match shared.artifacts.get(&name) {
            Some(path) => Ok(GetArtifactResponse {
                path: path.display().to_string(),
                info: None,
            }),
            None => Err(CallError::NotFound(format!("artifact {name}"))),
        })
    }

    async fn stat_artifact(&self, request: Request<StatArtifactRequest>) -> Answer<ArtifactInfo> {
        let name = request.into_inner().name;
        self.answer(|shared| match shared.artifacts.contains_key(&name) {
            true => Ok(ArtifactInfo {
                name,
                ..ArtifactInfo::default()
            }),
            false => Err(CallError::NotFound(format!("artifact {name}"))),
        })
    }

    async fn delete_artifacts(&self, _: Request<DeleteArtifactsRequest>) -> Answer<Empty> {
        self.answer(|_| Ok(Empty {}))
    }

    async fn add_reference(&self, _: Request<ReferenceRequest>) -> Answer<Empty> {
        self.answer(|_| Ok(Empty {}))
    }

    async fn remove_reference(&self, _: Request<ReferenceRequest>) -> Answer<RemoveReferenceResponse> {
        self.answer(|_| Ok(RemoveReferenceResponse { dropped: true }))
    }

    async fn acquire_permit(&self, _: Request<AcquirePermitRequest>) -> Answer<Empty> {
        self.answer(|_| Ok(Empty {}))
    }
}
