//! An agent in the test's own process, with a store in memory. Tasks of devices succeed at once: a shard leaves no deferred
//! events, and completes its marker.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use prover_backend::protocol::agent_service_server::{AgentService, AgentServiceServer};
use prover_backend::protocol::{backend_event::Event, *};
use prover_backend::{Backend, CallError};
use prover_backend_sp1::codec;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// How long a test waits for something that must come.
const PATIENCE: Duration = Duration::from_secs(120);

type Answer<T> = Result<Response<T>, Status>;
type Commands = mpsc::Sender<Result<AgentCommand, Status>>;

/// What the agent has seen, and how it behaves.
#[derive(Default)]
pub(crate) struct Seen {
    /// All tasks, in the order of submission, without repetitions.
    pub(crate) tasks: Vec<TaskSubmission>,
    /// The store.
    pub(crate) artifacts: BTreeMap<String, Vec<u8>>,
    /// Messages of the attempt's own channel.
    pub(crate) messages: Vec<Vec<u8>>,
    /// Names for which room was asked, and how many bytes.
    pub(crate) permits: BTreeMap<String, u64>,
    /// Markers that the backend completed by itself.
    pub(crate) completed_by_backend: BTreeSet<String>,
    /// Keys that the action cache answers.
    pub(crate) cache: BTreeSet<String>,
    /// So many calls to put an artifact are answered with `UNAVAILABLE` first.
    pub(crate) puts_away: u32,
    /// So many subscriptions break without an answer first.
    pub(crate) subscriptions_broken: u32,
    /// Reads of deferred events find nothing.
    pub(crate) deferred_lost: bool,
}

impl Seen {
    pub(crate) fn of_type(&self, task_type: &str) -> Vec<&TaskSubmission> {
        let of_type = |task: &&TaskSubmission| task.task_type == task_type && !task.marker;
        self.tasks.iter().filter(of_type).collect()
    }

    fn take(&mut self, task: &TaskSubmission) -> bool {
        let known = self
            .tasks
            .iter()
            .find(|other| other.request_id == task.request_id);
        if let Some(known) = known {
            assert_eq!(known, task, "the same request with another content");
        } else {
            self.tasks.push(task.clone());
        }
        // A shard that defers nothing leaves an empty map.
        if let Some(deferred) = task.outputs.get(1) {
            let nothing = codec::pack(&0_u64.to_le_bytes()).expect("packs");
            self.artifacts.insert(deferred.clone(), nothing);
        }
        !task.cache_key.is_empty() && self.cache.contains(&task.cache_key)
    }
}

struct Service {
    seen: Arc<Mutex<Seen>>,
    folder: PathBuf,
    sessions: mpsc::UnboundedSender<(Streaming<BackendEvent>, Commands)>,
}

/// The agent, with the backend connected to it as the child of the control lane.
pub(crate) struct FakeAgent {
    folder: tempfile::TempDir,
    seen: Arc<Mutex<Seen>>,
    events: Streaming<BackendEvent>,
    commands: Commands,
    attempts: u64,
}

impl FakeAgent {
    pub(crate) async fn start(backend: impl Backend) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&socket).expect("a socket");
        let (sender, mut sessions) = mpsc::unbounded_channel();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let service = Service {
            seen: Arc::clone(&seen),
            folder: folder.path().to_owned(),
            sessions: sender,
        };
        let server = tonic::transport::Server::builder().add_service(AgentServiceServer::new(service));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        tokio::spawn(async move { prover_backend::serve(Arc::new(backend), &socket).await });
        let (events, commands) = sessions.recv().await.expect("a session");
        let mut agent = Self {
            folder,
            seen,
            events,
            commands,
            attempts: 0,
        };
        let Event::Hello(_) = agent.event().await else {
            panic!("the first event is no hello")
        };
        let device = Device {
            id: "control".to_owned(),
            class: DeviceClass::Cpu.into(),
            ..Device::default()
        };
        let welcome = Welcome {
            protocol_version: 1,
            device: Some(device),
        };
        agent.send(welcome).await;
        agent
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panicked")
    }

    /// Forgets what was seen, but keeps what the action cache knows.
    pub(crate) fn forget(&self) -> Seen {
        let mut seen = self.seen();
        let cache = seen.cache.clone();
        std::mem::replace(
            &mut *seen,
            Seen {
                cache,
                ..Seen::default()
            },
        )
    }

    async fn send(&self, command: impl Into<AgentCommand>) {
        let sent = self.commands.send(Ok(command.into())).await;
        sent.expect("the backend is there");
    }

    async fn event(&mut self) -> Event {
        let event = tokio::time::timeout(PATIENCE, self.events.message()).await;
        let event = event.expect("an event in time").expect("a stream");
        event.expect("an event").event.expect("of some kind")
    }

    /// Runs an attempt to its end. `inputs` become files of its directory.
    pub(crate) async fn run(
        &mut self,
        run: RunAttempt,
        inputs: &[(&str, &[u8])],
    ) -> Result<AttemptCompleted, AttemptFailed> {
        self.attempts += 1;
        let directory = self.folder.path().join(format!("attempt-{}", self.attempts));
        std::fs::create_dir(&directory).expect("a folder");
        let inputs = inputs.iter().map(|(name, bytes)| {
            let path = directory.join(name);
            std::fs::write(&path, bytes).expect("written");
            InputFile {
                name: (*name).to_owned(),
                path: path.to_str().expect("UTF-8").to_owned(),
                size_bytes: bytes.len() as u64,
                sha256: hex::encode(Sha256::digest(bytes)),
            }
        });
        let run = RunAttempt {
            attempt_id: self.attempts,
            job_id: "job".to_owned(),
            inputs: inputs.collect(),
            directory: directory.to_str().expect("UTF-8").to_owned(),
            ..run
        };
        self.send(run).await;
        loop {
            match self.event().await {
                Event::Completed(completed) => return Ok(completed),
                Event::Failed(failed) => return Err(failed),
                _ => {}
            }
        }
    }
}

impl Service {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panicked")
    }

    fn stored(&self, name: &str) -> Result<Vec<u8>, Status> {
        let stored = self.seen().artifacts.get(name).cloned();
        stored.ok_or_else(|| CallError::NotFound(format!("artifact {name}")).into_status())
    }
}

fn info(name: String, bytes: &[u8]) -> ArtifactInfo {
    ArtifactInfo {
        name,
        size_bytes: bytes.len() as u64,
        sha256: hex::encode(Sha256::digest(bytes)),
    }
}

#[tonic::async_trait]
impl AgentService for Service {
    type SessionStream = ReceiverStream<Result<AgentCommand, Status>>;
    type SubscribeTasksStream = UnboundedReceiverStream<Result<TaskResult, Status>>;
    type ReadChannelStream = UnboundedReceiverStream<Result<ChannelMessage, Status>>;

    async fn session(&self, request: Request<Streaming<BackendEvent>>) -> Answer<Self::SessionStream> {
        let (commands, queue) = mpsc::channel(16);
        let _ = self.sessions.send((request.into_inner(), commands));
        Ok(Response::new(ReceiverStream::new(queue)))
    }

    async fn submit_tasks(&self, request: Request<SubmitTasksRequest>) -> Answer<SubmitTasksResponse> {
        let mut seen = self.seen();
        let mut response = SubmitTasksResponse::default();
        for task in request.into_inner().tasks {
            response.already_succeeded.push(seen.take(&task));
            response.task_ids.push(seen.tasks.len() as u64);
        }
        Ok(Response::new(response))
    }

    async fn subscribe_tasks(
        &self,
        request: Request<SubscribeTasksRequest>,
    ) -> Answer<Self::SubscribeTasksStream> {
        let (sender, queue) = mpsc::unbounded_channel();
        let mut seen = self.seen();
        if seen.subscriptions_broken > 0 {
            seen.subscriptions_broken -= 1;
            let _ = sender.send(Err(Status::unavailable("the coordinator is away")));
        } else {
            for request_id in request.into_inner().request_ids {
                let _ = sender.send(Ok(TaskResult {
                    request_id,
                    succeeded: true,
                    ..TaskResult::default()
                }));
            }
        }
        Ok(Response::new(UnboundedReceiverStream::new(queue)))
    }

    async fn put_artifact(&self, request: Request<PutArtifactRequest>) -> Answer<ArtifactInfo> {
        let PutArtifactRequest { name, path, .. } = request.into_inner();
        let bytes = std::fs::read(path).expect("the file is there");
        let mut seen = self.seen();
        if seen.puts_away > 0 {
            seen.puts_away -= 1;
            return Err(Status::unavailable("the store is away"));
        }
        // The first binding wins.
        let bound = seen.artifacts.entry(name.clone()).or_insert(bytes);
        Ok(Response::new(info(name, bound)))
    }

    async fn get_artifact(&self, request: Request<GetArtifactRequest>) -> Answer<GetArtifactResponse> {
        let name = request.into_inner().name;
        let deferred = self
            .seen()
            .tasks
            .iter()
            .any(|task| task.outputs.get(1) == Some(&name));
        if deferred && self.seen().deferred_lost {
            return Err(CallError::NotFound(name).into_status());
        }
        let bytes = self.stored(&name)?;
        let path = self.folder.join(format!("got-{name}"));
        std::fs::write(&path, &bytes).expect("written");
        Ok(Response::new(GetArtifactResponse {
            path: path.display().to_string(),
            info: Some(info(name, &bytes)),
        }))
    }

    async fn stat_artifact(&self, request: Request<StatArtifactRequest>) -> Answer<ArtifactInfo> {
        let name = request.into_inner().name;
        let bytes = self.stored(&name)?;
        Ok(Response::new(info(name, &bytes)))
    }

    async fn complete_marker(&self, request: Request<CompleteMarkerRequest>) -> Answer<Empty> {
        let marker = request.into_inner().request_id;
        self.seen().completed_by_backend.insert(marker);
        Ok(Response::new(Empty {}))
    }

    async fn send_channel_message(&self, request: Request<SendChannelMessageRequest>) -> Answer<Empty> {
        self.seen().messages.push(request.into_inner().payload);
        Ok(Response::new(Empty {}))
    }

    async fn read_channel(&self, _: Request<ReadChannelRequest>) -> Answer<Self::ReadChannelStream> {
        Err(Status::unimplemented("no controller runs here"))
    }

    async fn delete_artifacts(&self, request: Request<DeleteArtifactsRequest>) -> Answer<Empty> {
        let mut seen = self.seen();
        for name in request.into_inner().names {
            seen.artifacts.remove(&name);
        }
        Ok(Response::new(Empty {}))
    }

    async fn add_reference(&self, request: Request<ReferenceRequest>) -> Answer<Empty> {
        let ReferenceRequest { name, reference, .. } = request.into_inner();
        prover_backend::validate::name("reference", &reference).expect("a name that agents take");
        self.stored(&name)?;
        Ok(Response::new(Empty {}))
    }

    async fn remove_reference(&self, _: Request<ReferenceRequest>) -> Answer<RemoveReferenceResponse> {
        Ok(Response::new(RemoveReferenceResponse { dropped: true }))
    }

    async fn acquire_permit(&self, request: Request<AcquirePermitRequest>) -> Answer<Empty> {
        let AcquirePermitRequest { name, bytes, .. } = request.into_inner();
        self.seen().permits.insert(name, bytes);
        Ok(Response::new(Empty {}))
    }
}
