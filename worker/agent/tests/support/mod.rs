//! A coordinator that does as a test says, and an agent under test.
//!
//! Every wait has a limit, after which the test fails with what it waited for.

#![allow(dead_code)]

pub(crate) mod container;
pub(crate) mod steps;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prover_agent::{Agent, AgentConfig, AgentError, BackendPlace, Connection, Departure, DeviceKind, Leave};
use prover_artifacts::{ArtifactStore, Condition, Key, ObjectInfo};
use prover_wire::limits::MESSAGES_PER_BATCH;
use prover_wire::protocol::worker_message::Message as Said;
use prover_wire::protocol::worker_plane_server::{WorkerPlane, WorkerPlaneServer};
use prover_wire::protocol::{
    Answer, Artifact, Assign, AttemptFailed, AttemptSucceeded, Call, CompletionAcknowledged,
    CoordinatorMessage, FailureClass, HeartbeatAnswer, Recall, StopAttempt, Welcome, WorkerHello,
    WorkerMessage,
};
use prover_wire::{AUTHORIZATION, BEARER, Batched, Validate};
use steps::Step;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Longest wait for anything. Generous: the machine may be busy proving.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// The token that the fake coordinator takes.
pub(crate) const TOKEN: &str = "the-token";
/// Prefix of all artifacts of the job of the tests.
pub(crate) const PREFIX: &str = "jobs/job-1";

/// Awaits something that must come.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come within {LIMIT:?}"))
}

/// Waits for a file.
pub(crate) async fn file(path: &Path) {
    let appears = async {
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(&format!("the file {}", path.display()), appears).await;
}

/// Waits until a process is gone: reaped, or a zombie that only its parent's end will reap.
pub(crate) async fn process_gone(process: u32) {
    let gone = async {
        loop {
            match std::fs::read_to_string(format!("/proc/{process}/stat")) {
                Err(_) => return,
                Ok(stat)
                    if stat
                        .rsplit_once(") ")
                        .is_some_and(|(_, rest)| rest.starts_with('Z')) =>
                {
                    return;
                }
                Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    within(&format!("the end of process {process}"), gone).await;
}

/// Program of the test backend: built as an example by `cargo test` beside the tests.
pub(crate) fn backend_program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let program = profile.join("examples").join(name);
    assert!(
        program.is_file(),
        "{} is missing: run `cargo test` without choosing targets, or `cargo build --examples` first",
        program.display()
    );
    program
}

// ---- the coordinator ----

/// A coordinator on a port of its own.
pub(crate) struct Coordinator {
    pub(crate) address: String,
    sessions: mpsc::Receiver<Session>,
}

struct Plane {
    sessions: mpsc::Sender<Session>,
}

/// A stream of a worker.
pub(crate) struct Session {
    pub(crate) hello: WorkerHello,
    to_worker: mpsc::Sender<Result<CoordinatorMessage, Status>>,
    from_worker: mpsc::UnboundedReceiver<WorkerMessage>,
    /// Attempts of the last heartbeat.
    pub(crate) heartbeat: watch::Receiver<Vec<u64>>,
    mute: watch::Sender<bool>,
    epoch: AtomicU64,
    beats: Arc<AtomicU64>,
}

#[tonic::async_trait]
impl WorkerPlane for Plane {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let token = request
            .metadata()
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        if token != Some(&format!("{BEARER}{TOKEN}")) {
            return Err(Status::unauthenticated(
                "the token is not the one of this coordinator",
            ));
        }
        let mut messages = request.into_inner();
        let Some(WorkerMessage {
            message: Some(Said::Hello(hello)),
        }) = messages.message().await?
        else {
            return Err(Status::invalid_argument("the first message must be a hello"));
        };
        hello.validate().expect("a well-formed hello");
        let (to_worker, outbound) = mpsc::channel(1_024);
        let (passed_on, from_worker) = mpsc::unbounded_channel();
        let (beaten, heartbeat) = watch::channel(Vec::new());
        let (mute, muted) = watch::channel(false);
        let beats = Arc::new(AtomicU64::new(0));
        let counted = beats.clone();
        let answers = to_worker.clone().downgrade();
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                message.validate().expect("a well-formed message");
                for message in message.each() {
                    if let Some(Said::Heartbeat(heartbeat)) = &message.message {
                        counted.fetch_add(1, Ordering::SeqCst);
                        beaten.send_replace(heartbeat.attempts.clone());
                        let answer = HeartbeatAnswer {
                            sequence: heartbeat.sequence,
                        };
                        if let Some(answers) = answers.upgrade().filter(|_| !*muted.borrow()) {
                            let _ = answers.send(Ok(answer.into())).await;
                        }
                    } else if passed_on.send(message).is_err() {
                        return;
                    }
                }
            }
        });
        let session = Session {
            hello,
            to_worker,
            from_worker,
            heartbeat,
            mute,
            epoch: AtomicU64::new(0),
            beats,
        };
        self.sessions
            .send(session)
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound))))
    }
}

impl Coordinator {
    pub(crate) async fn start() -> Self {
        Self::start_over(tonic::transport::Server::builder(), "http").await
    }

    pub(crate) async fn start_over(mut server: tonic::transport::Server, scheme: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("{scheme}://{}", listener.local_addr().unwrap());
        let (sender, sessions) = mpsc::channel(16);
        tokio::spawn(
            server
                .add_service(WorkerPlaneServer::new(Plane { sessions: sender }))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Self { address, sessions }
    }

    /// On a thread and runtime of its own, for tests that block the agent's.
    pub(crate) fn start_apart() -> Self {
        let (started, coordinator) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                started.send(Self::start().await).unwrap();
                std::future::pending::<()>().await;
            });
        });
        coordinator.recv().unwrap()
    }

    /// The next stream, not welcomed yet.
    pub(crate) async fn session(&mut self) -> Session {
        within("a session", self.sessions.recv())
            .await
            .expect("a session")
    }

    /// The next stream, welcomed.
    pub(crate) async fn welcomed(&mut self, epoch: u64) -> Session {
        let session = self.session().await;
        session.welcome(epoch, &[]).await;
        session
    }
}

impl Session {
    pub(crate) async fn welcome(&self, epoch: u64, stop: &[u64]) {
        self.epoch.store(epoch, Ordering::SeqCst);
        self.send(Welcome {
            epoch,
            heartbeat_interval_ms: 50,
            stop: stop.to_vec(),
            batch_messages: MESSAGES_PER_BATCH as u32,
        })
        .await;
    }

    pub(crate) async fn send(&self, message: impl Into<CoordinatorMessage>) {
        let message = message.into();
        message.validate().expect("a well-formed message");
        self.to_worker.send(Ok(message)).await.expect("an open stream");
    }

    /// Assigns in the epoch of its welcome.
    pub(crate) async fn assign(&self, assign: Assign) {
        let epoch = self.epoch.load(Ordering::SeqCst);
        self.send(Assign { epoch, ..assign }).await;
    }

    pub(crate) async fn acknowledge(&self, attempt_id: u64) {
        self.send(CompletionAcknowledged {
            attempt_id,
            accepted: true,
        })
        .await;
    }

    pub(crate) async fn recall(&self, attempt_id: u64) {
        self.send(Recall { attempt_id }).await;
    }

    pub(crate) async fn stop(&self, attempt_id: u64) {
        self.send(StopAttempt {
            attempt_id,
            reason: "the test says so".to_owned(),
        })
        .await;
    }

    pub(crate) async fn answer(&self, answer: Answer) {
        self.send(answer).await;
    }

    /// Heartbeats so far.
    pub(crate) fn beats(&self) -> u64 {
        self.beats.load(Ordering::SeqCst)
    }

    /// From now on heartbeats have no answer.
    pub(crate) fn fall_silent(&self) {
        self.mute.send_replace(true);
    }

    /// Breaks the stream.
    pub(crate) async fn break_off(self) {
        let _ = self
            .to_worker
            .send(Err(Status::unavailable("the test breaks the stream")))
            .await;
    }

    /// The next message that is no heartbeat.
    pub(crate) async fn next(&mut self) -> Said {
        within("a message of the worker", self.from_worker.recv())
            .await
            .expect("an open stream")
            .message
            .unwrap()
    }

    /// No message but heartbeats for a while that is long enough for one that was sent before.
    pub(crate) async fn nothing_more(&mut self) {
        if let Ok(message) = timeout(Duration::from_millis(300), self.from_worker.recv()).await {
            panic!("an unexpected message: {message:?}");
        }
    }

    pub(crate) async fn started(&mut self, attempt: u64) {
        match self.next().await {
            Said::Started(started) if started.attempt_id == attempt => {}
            other => panic!("attempt {attempt} should have started: {other:?}"),
        }
    }

    pub(crate) async fn succeeded(&mut self, attempt: u64) -> AttemptSucceeded {
        match self.next().await {
            Said::Succeeded(succeeded) if succeeded.attempt_id == attempt => succeeded,
            other => panic!("attempt {attempt} should have succeeded: {other:?}"),
        }
    }

    pub(crate) async fn failed(&mut self, attempt: u64) -> AttemptFailed {
        match self.next().await {
            Said::Failed(failed) if failed.attempt_id == attempt => failed,
            other => panic!("attempt {attempt} should have failed: {other:?}"),
        }
    }

    pub(crate) async fn failed_with(&mut self, attempt: u64, class: FailureClass) -> AttemptFailed {
        let failed = self.failed(attempt).await;
        assert_eq!(failed.class(), class, "{failed:?}");
        failed
    }

    pub(crate) async fn stopped(&mut self, attempt: u64) {
        match self.next().await {
            Said::Stopped(stopped) if stopped.attempt_id == attempt => {}
            other => panic!("attempt {attempt} should have been stopped: {other:?}"),
        }
    }

    pub(crate) async fn recall_answered(&mut self, attempt: u64) -> bool {
        match self.next().await {
            Said::RecallAnswer(answer) if answer.attempt_id == attempt => answer.given_back,
            other => panic!("the recall of attempt {attempt} should have been answered: {other:?}"),
        }
    }

    pub(crate) async fn called(&mut self) -> Call {
        match self.next().await {
            Said::Call(call) => call,
            other => panic!("a call should have come: {other:?}"),
        }
    }
}

// ---- the agent ----

/// Folders, store and configuration of one test.
pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) store: Arc<dyn ArtifactStore>,
    pub(crate) coordinator: Coordinator,
    pub(crate) config: AgentConfig,
}

/// An agent that runs in this process.
pub(crate) struct Running {
    pub(crate) leave: watch::Sender<Leave>,
    pub(crate) connection: watch::Receiver<Connection>,
    pub(crate) registry: prometheus::Registry,
    task: JoinHandle<Result<Departure, AgentError>>,
}

impl Bench {
    pub(crate) async fn mk() -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_env("PROVER_LOG"))
            .with_test_writer()
            .try_init();
        let folder = tempfile::tempdir().unwrap();
        let store_url = format!("file://{}/store", folder.path().display());
        let store = prover_artifacts::open(&store_url).await.unwrap();
        let coordinator = Coordinator::start().await;
        let token_file = folder.path().join("token");
        std::fs::write(&token_file, format!("{TOKEN}\n")).unwrap();
        let program = backend_program(concat!(env!("CARGO_PKG_NAME"), "-test-backend"));
        let config = AgentConfig {
            coordinator: coordinator.address.clone(),
            coordinator_ca_file: None,
            coordinator_server_name: None,
            insecure_coordinator: false,
            token_file,
            worker_id: "worker-1".to_owned(),
            worker_group: "group".to_owned(),
            store: store_url,
            work_directory: folder.path().join("work"),
            work_directory_bytes: None,
            launcher: vec![program.clone().into_os_string(), OsString::from("launch-child")],
            backend: BackendPlace::Command(program),
            passed_on: Vec::new(),
            environment: Vec::new(),
            devices: 1,
            device_kind: DeviceKind::Cpu,
            host_memory_bytes: 1 << 30,
            drain: Duration::from_secs(30),
        };
        Self {
            folder,
            store,
            coordinator,
            config,
        }
    }

    /// A path in the test's own folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes the file that a step waits for.
    pub(crate) fn open_gate(&self, name: &str) {
        std::fs::write(self.path(name), b"").unwrap();
    }

    /// The backend's program; local mode only.
    pub(crate) fn program(&self) -> &Path {
        match &self.config.backend {
            BackendPlace::Command(program) => program,
            BackendPlace::Sockets(_) => panic!("the backend runs elsewhere"),
        }
    }

    pub(crate) fn environment(&mut self, name: &str, value: &str) {
        self.config.environment.push((name.to_owned(), value.to_owned()));
    }

    pub(crate) fn run(&self) -> Running {
        self.run_over(self.store.clone())
    }

    pub(crate) fn run_over(&self, store: Arc<dyn ArtifactStore>) -> Running {
        let registry = prometheus::Registry::new();
        let agent = Agent::with_store(self.config.clone(), store, &registry).unwrap();
        let (leave, asked) = watch::channel(Leave::Stay);
        let connection = agent.connection();
        let task = tokio::spawn(agent.run(asked));
        Running {
            leave,
            connection,
            registry,
            task,
        }
    }

    /// Puts an artifact into the store, as the source of an input.
    pub(crate) async fn source(&self, name: &str, content: &str) -> Artifact {
        let key = Key::new(format!("{PREFIX}/sources/{name}")).unwrap();
        let content = bytes::Bytes::from(content.to_owned());
        let info = self
            .store
            .put_bytes(&key, content, Condition::CreateOnly)
            .await
            .unwrap();
        prover_wire::artifact(name, key.as_str(), *info.sha256.as_bytes(), info.size_bytes)
    }

    /// The content of an artifact as text.
    pub(crate) async fn content(&self, artifact: &Artifact) -> String {
        let key = Key::new(artifact.key.clone()).unwrap();
        let expected = ObjectInfo {
            size_bytes: artifact.size_bytes,
            sha256: artifact.sha256.parse().unwrap(),
        };
        let content = self
            .store
            .get_bytes(&key, Some(&expected), 1 << 20)
            .await
            .unwrap();
        String::from_utf8(content.to_vec()).unwrap()
    }

    pub(crate) fn step_wait(&self, gate: &str) -> Step {
        Step::WaitFor(self.path(gate))
    }

    /// Reads a process id that a step has written.
    pub(crate) async fn process_id(&self, name: &str) -> u32 {
        let path = self.path(name);
        file(&path).await;
        std::fs::read_to_string(path).unwrap().parse().unwrap()
    }
}

impl Running {
    /// Asks the agent to leave and waits until it has.
    pub(crate) async fn drained(self) -> Departure {
        self.leave.send_replace(Leave::Drain);
        self.ended().await.unwrap()
    }

    pub(crate) async fn ended(self) -> Result<Departure, AgentError> {
        within("the agent's end", self.task).await.unwrap()
    }
}

/// An assignment to the first device.
pub(crate) fn mk_assign(attempt_id: u64, steps: &[Step]) -> Assign {
    Assign {
        attempt_id,
        epoch: 1,
        job_id: "job-1".to_owned(),
        artifact_prefix: PREFIX.to_owned(),
        task_type: "work".to_owned(),
        device_id: "cpu-0".to_owned(),
        parameters: serde_json::to_vec(steps).unwrap(),
        attempt_number: 1,
        ..Assign::default()
    }
}

/// An assignment to the control lane.
pub(crate) fn mk_plan(attempt_id: u64, steps: &[Step]) -> Assign {
    Assign {
        task_type: "plan".to_owned(),
        device_id: String::new(),
        ..mk_assign(attempt_id, steps)
    }
}

pub(crate) fn write(name: &str, text: &str) -> Step {
    Step::Write {
        name: name.to_owned(),
        text: text.to_owned(),
    }
}
