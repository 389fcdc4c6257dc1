//! An agent in the test's own process, with a store in memory, whose tasks finish when the test says so.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::Stream;
use prover_backend::CallError;
use prover_backend::protocol::agent_service_server::{AgentService, AgentServiceServer};
use prover_backend::protocol::{backend_event::Event, *};
use prover_backend_risc0::Risc0;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// How long a test waits for something that must come.
const PATIENCE: Duration = Duration::from_secs(60);

type Answer<T> = Result<Response<T>, Status>;
type Subscription = (
    BTreeSet<String>,
    mpsc::UnboundedSender<Result<TaskResult, Status>>,
);

type Commands = mpsc::Sender<Result<AgentCommand, Status>>;

/// What the agent has seen.
#[derive(Default)]
pub(crate) struct Seen {
    /// All tasks, in the order of submission, without repetitions.
    pub(crate) tasks: Vec<TaskSubmission>,
    /// Names given to each `PutArtifact`.
    pub(crate) puts: Vec<String>,
    /// The store.
    pub(crate) artifacts: BTreeMap<String, Vec<u8>>,
    /// Tasks that are finished.
    pub(crate) finished: BTreeSet<String>,
    /// Most tasks that were unfinished at one time.
    pub(crate) most_unfinished: usize,
    /// Tasks finish as soon as somebody waits for them.
    pub(crate) finish_at_once: bool,
    subscriptions: Vec<Subscription>,
}

impl Seen {
    fn unfinished(&self) -> usize {
        self.tasks
            .iter()
            .filter(|task| !self.finished.contains(&task.request_id))
            .count()
    }

    /// Finishes all tasks, and from now on each one that somebody waits for.
    pub(crate) fn finish_all(&mut self) {
        self.finish_at_once = true;
        for (waiting, sender) in std::mem::take(&mut self.subscriptions) {
            answer_all(&mut self.finished, waiting, &sender);
        }
    }

    pub(crate) fn count(&self, task_type: &str) -> usize {
        self.tasks
            .iter()
            .filter(|task| task.task_type == task_type)
            .count()
    }
}

fn answer_all(
    finished: &mut BTreeSet<String>,
    waiting: BTreeSet<String>,
    sender: &mpsc::UnboundedSender<Result<TaskResult, Status>>,
) {
    for request_id in waiting {
        finished.insert(request_id.clone());
        let _ = sender.send(Ok(TaskResult {
            request_id,
            succeeded: true,
            ..TaskResult::default()
        }));
    }
}

struct Service {
    seen: Arc<Mutex<Seen>>,
    waited: Arc<Notify>,
    sessions: mpsc::UnboundedSender<(Streaming<BackendEvent>, Commands)>,
}

/// The agent, with the backend connected to it.
pub(crate) struct FakeAgent {
    folder: tempfile::TempDir,
    seen: Arc<Mutex<Seen>>,
    waited: Arc<Notify>,
    events: Streaming<BackendEvent>,
    commands: Commands,
    attempts: u64,
}

impl FakeAgent {
    /// Starts the agent and a backend.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&socket).expect("a socket");
        let (sender, mut sessions) = mpsc::unbounded_channel();
        let (seen, waited) = (Arc::new(Mutex::new(Seen::default())), Arc::new(Notify::new()));
        let service = Service {
            seen: Arc::clone(&seen),
            waited: Arc::clone(&waited),
            sessions: sender,
        };
        let server = tonic::transport::Server::builder().add_service(AgentServiceServer::new(service));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        tokio::spawn(async move { prover_backend::serve(Arc::new(Risc0), &socket).await });
        let (events, commands) = sessions.recv().await.expect("a session");
        let mut agent = Self {
            folder,
            seen,
            waited,
            events,
            commands,
            attempts: 0,
        };
        let Event::Hello(_) = agent.event().await else {
            panic!("the first event is no hello")
        };
        let device = Device {
            id: "cpu-0".to_owned(),
            class: DeviceClass::Cpu.into(),
            ..Device::default()
        };
        agent
            .send(Welcome {
                protocol_version: 1,
                device: Some(device),
            })
            .await;
        agent
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panicked")
    }

    async fn send(&self, command: impl Into<AgentCommand>) {
        self.commands
            .send(Ok(command.into()))
            .await
            .expect("the backend is there");
    }

    async fn event(&mut self) -> Event {
        let event = tokio::time::timeout(PATIENCE, self.events.message())
            .await
            .expect("an event in time");
        event
            .expect("a stream")
            .expect("an event")
            .event
            .expect("of some kind")
    }

    /// Starts an attempt. `inputs` become files of its directory.
    pub(crate) async fn begin(&mut self, run: RunAttempt, inputs: &[(&str, &[u8])]) {
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
        let inputs = inputs.collect();
        let directory = directory.to_str().expect("UTF-8").to_owned();
        self.send(RunAttempt {
            attempt_id: self.attempts,
            job_id: "job".to_owned(),
            directory,
            inputs,
            ..run
        })
        .await;
    }

    /// Waits until the planner waits for a task.
    pub(crate) async fn planner_waits(&self) {
        tokio::time::timeout(PATIENCE, self.waited.notified())
            .await
            .expect("it waits in time");
    }

    /// How the attempt ended.
    pub(crate) async fn end(&mut self) -> Result<AttemptCompleted, AttemptFailed> {
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
}

fn info(name: String, bytes: &[u8]) -> ArtifactInfo {
    ArtifactInfo {
        name,
        size_bytes: bytes.len() as u64,
        sha256: hex::encode(Sha256::digest(bytes)),
    }
}

fn not_found(name: &str) -> Status {
    CallError::NotFound(format!("artifact {name}")).into_status()
}

#[tonic::async_trait]
impl AgentService for Service {
    type SessionStream = ReceiverStream<Result<AgentCommand, Status>>;
    type SubscribeTasksStream = UnboundedReceiverStream<Result<TaskResult, Status>>;
    type ReadChannelStream = Pin<Box<dyn Stream<Item = Result<ChannelMessage, Status>> + Send>>;

    async fn session(&self, request: Request<Streaming<BackendEvent>>) -> Answer<Self::SessionStream> {
        let (commands, queue) = mpsc::channel(16);
        let _ = self.sessions.send((request.into_inner(), commands));
        Ok(Response::new(ReceiverStream::new(queue)))
    }

    async fn submit_tasks(&self, request: Request<SubmitTasksRequest>) -> Answer<SubmitTasksResponse> {
        let mut seen = self.seen();
        let (mut task_ids, mut already_succeeded) = (vec![], vec![]);
        for task in request.into_inner().tasks {
            already_succeeded.push(seen.finished.contains(&task.request_id));
            let known = seen
                .tasks
                .iter()
                .position(|other| other.request_id == task.request_id);
            task_ids.push(known.unwrap_or(seen.tasks.len()) as u64);
            match known {
                Some(index) => assert_eq!(seen.tasks[index], task, "the same request with another content"),
                None => seen.tasks.push(task),
            }
        }
        seen.most_unfinished = seen.most_unfinished.max(seen.unfinished());
        Ok(Response::new(SubmitTasksResponse {
            task_ids,
            already_succeeded,
        }))
    }

    async fn subscribe_tasks(
        &self,
        request: Request<SubscribeTasksRequest>,
    ) -> Answer<Self::SubscribeTasksStream> {
        let (sender, queue) = mpsc::unbounded_channel();
        let waiting: BTreeSet<String> = request.into_inner().request_ids.into_iter().collect();
        let mut seen = self.seen();
        if seen.finish_at_once {
            answer_all(&mut seen.finished, waiting, &sender);
        } else {
            seen.subscriptions.push((waiting, sender));
            self.waited.notify_one();
        }
        Ok(Response::new(UnboundedReceiverStream::new(queue)))
    }

    async fn put_artifact(&self, request: Request<PutArtifactRequest>) -> Answer<ArtifactInfo> {
        let PutArtifactRequest { name, path, .. } = request.into_inner();
        let bytes = std::fs::read(path).expect("the file is there");
        let mut seen = self.seen();
        seen.puts.push(name.clone());
        // The first binding wins.
        let bound = seen.artifacts.entry(name.clone()).or_insert(bytes);
        Ok(Response::new(info(name, bound)))
    }

    async fn get_artifact(&self, request: Request<GetArtifactRequest>) -> Answer<GetArtifactResponse> {
        let name = request.into_inner().name;
        let bytes = self
            .seen()
            .artifacts
            .get(&name)
            .cloned()
            .ok_or_else(|| not_found(&name))?;
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), &bytes).expect("written");
        let (_, path) = file.keep().expect("kept");
        Ok(Response::new(GetArtifactResponse {
            path: path.display().to_string(),
            info: Some(info(name, &bytes)),
        }))
    }

    async fn stat_artifact(&self, request: Request<StatArtifactRequest>) -> Answer<ArtifactInfo> {
        let name = request.into_inner().name;
        let bytes = self
            .seen()
            .artifacts
            .get(&name)
            .cloned()
            .ok_or_else(|| not_found(&name))?;
        Ok(Response::new(info(name, &bytes)))
    }

    async fn complete_marker(&self, _: Request<CompleteMarkerRequest>) -> Answer<Empty> {
        Err(Status::unimplemented("the risc0 backend has no markers"))
    }

    async fn send_channel_message(&self, _: Request<SendChannelMessageRequest>) -> Answer<Empty> {
        Err(Status::unimplemented("the risc0 backend has no channels"))
    }

    async fn read_channel(&self, _: Request<ReadChannelRequest>) -> Answer<Self::ReadChannelStream> {
        Err(Status::unimplemented("the risc0 backend has no channels"))
    }

    async fn delete_artifacts(&self, _: Request<DeleteArtifactsRequest>) -> Answer<Empty> {
        Err(Status::unimplemented("the risc0 backend deletes nothing"))
    }

    async fn add_reference(&self, _: Request<ReferenceRequest>) -> Answer<Empty> {
        Err(Status::unimplemented("the risc0 backend has no references"))
    }

    async fn remove_reference(&self, _: Request<ReferenceRequest>) -> Answer<RemoveReferenceResponse> {
        Err(Status::unimplemented("the risc0 backend has no references"))
    }

    async fn acquire_permit(&self, _: Request<AcquirePermitRequest>) -> Answer<Empty> {
        Err(Status::unimplemented("the risc0 backend asks for no permits"))
    }
}
