//! A coordinator over a folder, and workers that speak the real worker plane with a backend made up here.

#![allow(dead_code, reason = "each test binary uses another part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use prover_artifacts::ArtifactStore;
use prover_backend::protocol as backend;
use prover_coordinator::{
    CoordinatorConfig, CoordinatorHandle, JobHandle, JobView, Secret, SourceAccess, WorkerAuthentication,
    start,
};
use prover_crds::{Program, ProofJob, ProofJobSpec, ProofKind, ProofSpec, ProofSystem};
use prover_wire::Batched;
use prover_wire::limits::MESSAGES_PER_BATCH;
use prover_wire::protocol::coordinator_message::Message as FromCoordinator;
use prover_wire::protocol::worker_plane_client::WorkerPlaneClient;
use prover_wire::protocol::{self as wire, call};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status, Streaming};

pub(crate) const TOKEN: &str = "the right token";
/// How long anything may take that should come at once.
pub(crate) const SOON: Duration = Duration::from_secs(10);
const GIB: u64 = 1 << 30;

pub(crate) struct Fixture {
    pub(crate) coordinator: CoordinatorHandle,
    pub(crate) store: Arc<dyn ArtifactStore>,
    pub(crate) folder: Arc<tempfile::TempDir>,
    pub(crate) registry: prometheus::Registry,
}

pub(crate) fn mk_config() -> CoordinatorConfig {
    let address = "127.0.0.1:0".parse().unwrap();
    CoordinatorConfig::new(address, WorkerAuthentication::Token(Secret::new(TOKEN)))
}

pub(crate) async fn mk_fixture() -> Fixture {
    mk_fixture_with(|_| {}).await
}

pub(crate) async fn mk_fixture_with(change: impl FnOnce(&mut CoordinatorConfig)) -> Fixture {
    // One job with all its logs is what a failing test needs; the filter comes from the environment.
    let logs = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer();
    let _ = logs.try_init();
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let store_path = folder.path().join("store");
    std::fs::create_dir(&store_path).unwrap();
    let store = prover_artifacts::open(&format!("file://{}", store_path.display()))
        .await
        .unwrap();
    let mut config = mk_config();
    change(&mut config);
    let registry = config.registry.clone();
    let coordinator = start(config, Arc::clone(&store)).await.unwrap();
    Fixture {
        coordinator,
        store,
        folder,
        registry,
    }
}

impl Fixture {
    pub(crate) fn access(&self) -> SourceAccess {
        SourceAccess::Local {
            manifest_folder: self.folder.path().to_owned(),
        }
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.folder.path().join(name), bytes).unwrap();
    }

    pub(crate) async fn submit(&self, job: ProofJob) -> JobHandle {
        self.coordinator.submit(job, self.access()).await.unwrap()
    }

    pub(crate) async fn refuse(&self, job: ProofJob) -> prover_coordinator::AdmissionError {
        self.coordinator.submit(job, self.access()).await.unwrap_err()
    }

    /// Sum over all labels of a counter or gauge.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        family.map_or(0.0, |family| {
            let values = family.get_metric().iter();
            values
                .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
                .sum()
        })
    }

    /// Waits until this many workers have an open stream.
    pub(crate) async fn until_connected(&self, count: usize) {
        let mut cluster = self.coordinator.watch_cluster();
        let enough =
            cluster.wait_for(|view| view.workers.iter().filter(|worker| worker.connected).count() == count);
        tokio::time::timeout(SOON, enough).await.unwrap().unwrap();
    }
}

/// A clock that moves on by a millisecond whenever it is read, so that nothing takes no time.
#[derive(Debug, Default)]
pub(crate) struct ReadingClock(std::sync::atomic::AtomicU64);

impl prover_runtime::Clock for ReadingClock {
    fn now_milliseconds(&self) -> u64 {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst)
    }
}

/// A job of the emulated system with an inline program.
pub(crate) fn mk_job(name: &str) -> ProofJob {
    mk_job_of(name, ProofSystem::Emulated, ProofKind::Emulated)
}

pub(crate) fn mk_job_of(name: &str, system: ProofSystem, kind: ProofKind) -> ProofJob {
    let mut job = ProofJob::new(
        name,
        ProofJobSpec {
            // "R0BF" and some more, so that RISC Zero takes it too.
            program: Program {
                inline: Some("UjBCRgEAAAA=".to_owned()),
                ..Program::default()
            },
            proof: ProofSpec {
                system,
                kind,
                backend: None,
            },
            ..ProofJobSpec::default()
        },
    );
    job.metadata.uid = Some(format!("uid-{name}"));
    job
}

pub(crate) fn mk_file_job(name: &str, path: &str) -> ProofJob {
    let mut job = mk_job_of(name, ProofSystem::Risc0, ProofKind::Succinct);
    let file = Some(prover_crds::FileSource {
        path: path.to_owned(),
    });
    job.spec.program = Program {
        file,
        ..Program::default()
    };
    job
}

/// Waits for a view that the test is after.
pub(crate) async fn until(job: &JobHandle, what: &str, wanted: impl Fn(&JobView) -> bool) -> Arc<JobView> {
    let mut views = job.watch();
    let waited = tokio::time::timeout(SOON, views.wait_for(|view| wanted(view))).await;
    match waited {
        Ok(view) => view.unwrap().clone(),
        Err(_) => panic!("{what} did not come: {:#?}", job.view()),
    }
}

pub(crate) async fn finished(job: &JobHandle) -> Arc<JobView> {
    until(job, "the end of the job", |view| view.phase.is_terminal()).await
}

/// What the backend of a worker says of itself.
pub(crate) fn mk_description(system: &str, kind: &str, emulated: bool) -> backend::BackendDescription {
    let cpu = |gib: u64| backend::Resources {
        device_class: backend::DeviceClass::Cpu.into(),
        host_memory_bytes: gib * GIB,
        vram_bytes: 0,
    };
    let task_type = |name: &str, stage: &str, order, lane: backend::Lane| backend::TaskType {
        name: name.to_owned(),
        stage: stage.to_owned(),
        stage_order: order,
        cacheable: false,
        verifies: name == "verify",
        lane: lane.into(),
    };
    backend::BackendDescription {
        name: "made-up".to_owned(),
        version: "1.0.0".to_owned(),
        attempts_at_once: 1,
        proofs: vec![backend::ProofOffer {
            system: system.to_owned(),
            kind: kind.to_owned(),
            root_task_type: "plan".to_owned(),
            parent_chain: vec![cpu(1)],
            largest_leaf: Some(cpu(2)),
        }],
        task_types: vec![
            task_type("plan", "Execute", 1, backend::Lane::Control),
            task_type("prove", "Prove", 2, backend::Lane::Device),
            task_type("join", "Join", 3, backend::Lane::Device),
            task_type("verify", "Verify", 4, backend::Lane::Device),
        ],
        hang_after_ms: 0,
        emulated,
        withheld: Vec::new(),
    }
}

pub(crate) fn mk_hello(worker_id: &str, description: &backend::BackendDescription) -> wire::WorkerHello {
    wire::WorkerHello {
        protocol_version: prover_wire::PROTOCOL_VERSION,
        worker_id: worker_id.to_owned(),
        worker_group: "test".to_owned(),
        host_memory_bytes: 16 * GIB,
        devices: vec![wire::Device {
            id: "cpu-0".to_owned(),
            class: wire::DeviceClass::Cpu.into(),
            product: "test".to_owned(),
            vram_bytes: 0,
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
        batch_messages: MESSAGES_PER_BATCH as u32,
    }
}

/// One stream, opened with a token.
pub(crate) async fn open_stream(
    fixture: &Fixture,
    token: Option<&str>,
) -> Result<
    (
        mpsc::Sender<wire::WorkerMessage>,
        Streaming<wire::CoordinatorMessage>,
    ),
    Status,
> {
    let url = format!("http://{}", fixture.coordinator.address());
    let mut client = WorkerPlaneClient::connect(url)
        .await
        .unwrap()
        .max_encoding_message_size(64 << 20);
    let (sender, receiver) = mpsc::channel(1024);
    let mut request = Request::new(ReceiverStream::new(receiver));
    if let Some(token) = token {
        let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    let incoming = client.session(request).await?.into_inner();
    Ok((sender, incoming))
}

/// A worker that does what a test tells it to.
pub(crate) struct FakeWorker {
    pub(crate) id: String,
    pub(crate) outgoing: mpsc::Sender<wire::WorkerMessage>,
    pub(crate) incoming: Streaming<wire::CoordinatorMessage>,
    pub(crate) welcome: wire::Welcome,
    waiting: VecDeque<FromCoordinator>,
    next_call: u64,
}

impl FakeWorker {
    pub(crate) async fn connect(fixture: &Fixture, id: &str) -> FakeWorker {
        FakeWorker::connect_as(
            fixture,
            mk_hello(id, &mk_description("emulated", "Emulated", true)),
        )
        .await
    }

    pub(crate) async fn connect_risc0(fixture: &Fixture, id: &str) -> FakeWorker {
        FakeWorker::connect_as(fixture, mk_hello(id, &mk_description("risc0", "Succinct", false))).await
    }

    pub(crate) async fn connect_as(fixture: &Fixture, hello: wire::WorkerHello) -> FakeWorker {
        FakeWorker::try_connect(fixture, hello).await.unwrap()
    }

    pub(crate) async fn try_connect(
        fixture: &Fixture,
        hello: wire::WorkerHello,
    ) -> Result<FakeWorker, Status> {
        FakeWorker::try_connect_with(fixture, TOKEN, hello).await
    }

    pub(crate) async fn try_connect_with(
        fixture: &Fixture,
        token: &str,
        hello: wire::WorkerHello,
    ) -> Result<FakeWorker, Status> {
        let id = hello.worker_id.clone();
        let (outgoing, mut incoming) = open_stream(fixture, Some(token)).await?;
        outgoing.send(hello.into()).await.unwrap();
        let first = tokio::time::timeout(SOON, incoming.message()).await.unwrap()?;
        let Some(FromCoordinator::Welcome(welcome)) = first.and_then(|message| message.message) else {
            panic!("the first message was no welcome");
        };
        Ok(FakeWorker {
            id,
            outgoing,
            incoming,
            welcome,
            waiting: VecDeque::new(),
            next_call: 1,
        })
    }

    pub(crate) async fn send(&self, message: impl Into<wire::WorkerMessage>) {
        self.outgoing.send(message.into()).await.unwrap();
    }

    /// The next message, or the status with which the stream ended.
    pub(crate) async fn receive(&mut self) -> Result<FromCoordinator, Status> {
        if let Some(message) = self.waiting.pop_front() {
            return Ok(message);
        }
        self.next_frame().await?;
        self.receive_waiting()
    }

    fn receive_waiting(&mut self) -> Result<FromCoordinator, Status> {
        let message = self.waiting.pop_front();
        message.ok_or_else(|| Status::internal("an empty batch came"))
    }

    /// Takes the next message with all that travels with it, and tells how many they are.
    pub(crate) async fn next_frame(&mut self) -> Result<usize, Status> {
        let message = tokio::time::timeout(SOON, self.incoming.message()).await;
        let message = message.unwrap_or_else(|_| panic!("{}: nothing came", self.id))?;
        let message = message.ok_or_else(|| Status::unavailable("the stream ended"))?;
        assert!(prover_wire::Validate::validate(&message).is_ok(), "{message:?}");
        let messages = message.each();
        let count = messages.len();
        self.waiting
            .extend(messages.map(|message| message.message.unwrap()));
        Ok(count)
    }

    /// The next message that the test is after; others wait for their turn.
    pub(crate) async fn expect<T>(&mut self, pick: impl Fn(&FromCoordinator) -> Option<T>) -> T {
        let mut others = VecDeque::new();
        loop {
            let message = self.receive().await.unwrap();
            if let Some(found) = pick(&message) {
                others.append(&mut self.waiting);
                self.waiting = others;
                return found;
            }
            others.push_back(message);
        }
    }

    pub(crate) async fn expect_assign(&mut self) -> wire::Assign {
        self.expect(|message| match message {
            FromCoordinator::Assign(assign) => Some(assign.clone()),
            _ => None,
        })
        .await
    }

    pub(crate) async fn expect_assign_of(&mut self, task_type: &str) -> wire::Assign {
        self.expect(|message| match message {
            FromCoordinator::Assign(assign) if assign.task_type == task_type => Some(assign.clone()),
            _ => None,
        })
        .await
    }

    pub(crate) async fn expect_stop(&mut self, attempt_id: u64) -> wire::StopAttempt {
        self.expect(|message| match message {
            FromCoordinator::Stop(stop) if stop.attempt_id == attempt_id => Some(stop.clone()),
            _ => None,
        })
        .await
    }

    pub(crate) async fn expect_acknowledgement(&mut self, attempt_id: u64) -> bool {
        self.expect(|message| match message {
            FromCoordinator::Acknowledged(told) if told.attempt_id == attempt_id => Some(told.accepted),
            _ => None,
        })
        .await
    }

    /// How the stream ends.
    pub(crate) async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.receive().await {
                return status;
            }
        }
    }

    pub(crate) async fn call(&mut self, attempt_id: u64, call: call::Call) -> wire::Answer {
        let call_id = self.start_call(attempt_id, call).await;
        self.expect_answer(call_id).await
    }

    pub(crate) async fn start_call(&mut self, attempt_id: u64, call: call::Call) -> u64 {
        let call_id = self.next_call;
        self.next_call += 1;
        self.send(wire::Call {
            call_id,
            attempt_id,
            call: Some(call),
        })
        .await;
        call_id
    }

    pub(crate) async fn expect_answer(&mut self, call_id: u64) -> wire::Answer {
        self.expect(|message| match message {
            FromCoordinator::Answer(answer) if answer.call_id == call_id => Some(answer.clone()),
            _ => None,
        })
        .await
    }

    pub(crate) async fn submit(
        &mut self,
        attempt_id: u64,
        tasks: Vec<backend::TaskSubmission>,
    ) -> wire::Answer {
        let encoded = backend::SubmitTasksRequest { attempt_id, tasks }.encode_to_vec();
        self.call(attempt_id, call::Call::SubmitTasks(wire::SubmitTasks { encoded }))
            .await
    }

    pub(crate) async fn start(&self, assign: &wire::Assign) {
        self.send(wire::AttemptStarted {
            attempt_id: assign.attempt_id,
        })
        .await;
    }

    pub(crate) async fn succeed(&self, assign: &wire::Assign) {
        self.send(mk_success(assign)).await;
    }

    pub(crate) async fn fail(
        &self,
        assign: &wire::Assign,
        class: wire::FailureClass,
        reason: &str,
        message: &str,
    ) {
        self.send(wire::AttemptFailed {
            attempt_id: assign.attempt_id,
            class: class.into(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            execution: Vec::new(),
            usage: None,
        })
        .await;
    }

    /// Takes the planner's attempt and submits the graph of a small job: prove, join, verify.
    pub(crate) async fn plan(&mut self, segments: usize) -> wire::Assign {
        let assign = self.expect_assign_of("plan").await;
        self.start(&assign).await;
        let answer = self.submit(assign.attempt_id, mk_graph(segments)).await;
        assert_eq!(answer.error, "");
        assert_eq!(answer.task_ids.len(), segments + 2);
        self.succeed(&assign).await;
        assign
    }

    /// Does all that comes until the stream ends.
    pub(crate) async fn work(mut self, segments: usize) {
        while let Ok(message) = self.receive().await {
            match message {
                FromCoordinator::Assign(assign) if assign.task_type == "plan" => {
                    self.waiting.push_front(FromCoordinator::Assign(assign));
                    self.plan(segments).await;
                }
                FromCoordinator::Assign(assign) => {
                    self.start(&assign).await;
                    self.succeed(&assign).await;
                }
                FromCoordinator::Recall(recall) => {
                    let answer = wire::RecallAnswer {
                        attempt_id: recall.attempt_id,
                        given_back: false,
                    };
                    self.send(answer).await;
                }
                FromCoordinator::Stop(stop) => {
                    self.send(wire::AttemptStopped {
                        attempt_id: stop.attempt_id,
                    })
                    .await;
                }
                _ => {}
            }
        }
    }
}

pub(crate) fn mk_task(request_id: &str, task_type: &str, depends_on: Vec<String>) -> backend::TaskSubmission {
    backend::TaskSubmission {
        request_id: request_id.to_owned(),
        task_type: task_type.to_owned(),
        resources: Some(backend::Resources {
            device_class: backend::DeviceClass::Cpu.into(),
            host_memory_bytes: GIB,
            vram_bytes: 0,
        }),
        depends_on,
        inputs: Vec::new(),
        outputs: vec![request_id.to_owned()],
        parameters: Vec::new(),
        cache_key: String::new(),
        estimated_device_seconds: 1.0,
        concludes_job: false,
        marker: false,
    }
}

/// Segments, their join, and the verification that concludes the job.
pub(crate) fn mk_graph(segments: usize) -> Vec<backend::TaskSubmission> {
    let proves: Vec<String> = (0..segments).map(|index| format!("prove-{index}")).collect();
    let mut tasks: Vec<_> = proves
        .iter()
        .map(|name| mk_task(name, "prove", Vec::new()))
        .collect();
    tasks.push(mk_task("join", "join", proves));
    let mut verify = mk_task("verify", "verify", vec!["join".to_owned()]);
    verify.outputs = vec!["proof".to_owned(), "public-values".to_owned()];
    verify.concludes_job = true;
    tasks.push(verify);
    tasks
}

pub(crate) fn mk_artifact(assign: &wire::Assign, name: &str) -> wire::Artifact {
    let key = format!("{}/attempts/{}/{name}", assign.artifact_prefix, assign.attempt_id);
    prover_wire::artifact(name, key, [7; 32], 42)
}

/// A completion with all declared outputs, and the reports that its type calls for.
pub(crate) fn mk_success(assign: &wire::Assign) -> wire::AttemptSucceeded {
    let execution = backend::ExecutionReport {
        segments: 4,
        user_cycles: 200_000,
        total_cycles: 262_144,
        program_id: "ab".repeat(32),
        exit_code: 0,
        segment_po2: 16,
        gas: Some(300_000),
        public_values_sha256: "cd".repeat(32),
    };
    let proof = backend::ProofReport {
        proof: "proof".to_owned(),
        public_values: "public-values".to_owned(),
        program_id: "ab".repeat(32),
        proof_bytes: 42,
        verifier: "made up".to_owned(),
    };
    wire::AttemptSucceeded {
        attempt_id: assign.attempt_id,
        outputs: assign
            .outputs
            .iter()
            .map(|name| mk_artifact(assign, name))
            .collect(),
        result: assign.task_type.clone().into_bytes(),
        execution: if assign.task_type == "plan" {
            execution.encode_to_vec()
        } else {
            Vec::new()
        },
        proof: if assign.task_type == "verify" {
            proof.encode_to_vec()
        } else {
            Vec::new()
        },
        usage: Some(wire::Usage {
            device_milliseconds: 250,
            ..wire::Usage::default()
        }),
    }
}

pub(crate) fn store_path(fixture: &Fixture) -> std::path::PathBuf {
    fixture.folder.path().join("store")
}

pub(crate) fn exists(path: &Path) -> bool {
    path.exists()
}
