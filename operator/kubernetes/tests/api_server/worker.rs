//! A worker that speaks the real worker plane with a backend made up here. It proves nothing: all its jobs are
//! emulated.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use prover_artifacts::{ArtifactStore, Condition, Key};
use prover_backend::protocol as backend;
use prover_wire::protocol::coordinator_message::Message as FromCoordinator;
use prover_wire::protocol::worker_plane_client::WorkerPlaneClient;
use prover_wire::protocol::{self as wire, call};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const GIB: u64 = 1 << 30;
const HEARTBEAT: Duration = Duration::from_secs(1);

/// What a test lets a worker do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Permission {
    /// It takes attempts and starts them, but ends none.
    Start,
    /// It ends all but the check of a proof; the action cache may answer the second segment of each job.
    Segments,
    /// It ends what it has.
    Finish,
}

/// A worker; it goes with this.
pub(crate) struct Worker {
    task: JoinHandle<()>,
    permission: watch::Sender<Permission>,
    /// When the planner of each job was started first.
    starts: watch::Receiver<BTreeMap<String, Instant>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Worker {
    pub(crate) async fn start(
        address: SocketAddr,
        token: &str,
        name: &str,
        store: Arc<dyn ArtifactStore>,
    ) -> Worker {
        let (permission, permitted) = watch::channel(Permission::Finish);
        let mut client = WorkerPlaneClient::connect(format!("http://{address}"))
            .await
            .unwrap();
        let (outgoing, messages) = mpsc::channel(1024);
        let mut request = tonic::Request::new(ReceiverStream::new(messages));
        let bearer = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        outgoing.send(mk_hello(name).into()).await.unwrap();
        let incoming = client.session(request).await.unwrap().into_inner();
        let (told, starts) = watch::channel(BTreeMap::new());
        let session = Session {
            starts: told,
            outgoing,
            incoming,
            store,
            permitted,
            held: Vec::new(),
            next_call: 1,
        };
        Worker {
            task: tokio::spawn(session.work()),
            permission,
            starts,
        }
    }

    /// When the first task of a job began.
    pub(crate) async fn started(&self, job: &str) -> Instant {
        let mut starts = self.starts.clone();
        let known = starts.wait_for(|starts| starts.contains_key(job)).await.unwrap();
        known[job]
    }

    /// From now on.
    pub(crate) fn permit(&self, permission: Permission) {
        self.permission.send_replace(permission);
    }
}

fn mk_hello(name: &str) -> wire::WorkerHello {
    let description = mk_description();
    wire::WorkerHello {
        protocol_version: prover_wire::PROTOCOL_VERSION,
        worker_id: name.to_owned(),
        worker_group: "test".to_owned(),
        host_memory_bytes: 64 * GIB,
        devices: (0..8)
            .map(|index| wire::Device {
                id: format!("cpu-{index}"),
                class: wire::DeviceClass::Cpu.into(),
                product: "test".to_owned(),
                vram_bytes: 0,
                attempts_at_once: 1,
            })
            .collect(),
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
        batch_messages: 0,
    }
}

fn mk_description() -> backend::BackendDescription {
    let cpu = backend::Resources {
        device_class: backend::DeviceClass::Cpu.into(),
        host_memory_bytes: GIB / 8,
        vram_bytes: 0,
    };
    let task_type = |name: &str, stage: &str, order, lane: backend::Lane| backend::TaskType {
        name: name.to_owned(),
        stage: stage.to_owned(),
        stage_order: order,
        cacheable: name == "prove",
        verifies: name == "verify",
        lane: lane.into(),
    };
    backend::BackendDescription {
        name: "made-up".to_owned(),
        version: "1.0.0".to_owned(),
        attempts_at_once: 1,
        proofs: vec![backend::ProofOffer {
            system: "emulated".to_owned(),
            kind: "Emulated".to_owned(),
            root_task_type: "plan".to_owned(),
            parent_chain: vec![cpu],
            largest_leaf: Some(cpu),
        }],
        task_types: vec![
            task_type("plan", "Execute", 1, backend::Lane::Control),
            task_type("prove", "Prove", 2, backend::Lane::Device),
            task_type("verify", "Verify", 3, backend::Lane::Device),
        ],
        hang_after_ms: 0,
        emulated: true,
        withheld: Vec::new(),
    }
}

struct Session {
    starts: watch::Sender<BTreeMap<String, Instant>>,
    outgoing: mpsc::Sender<wire::WorkerMessage>,
    incoming: Streaming<wire::CoordinatorMessage>,
    store: Arc<dyn ArtifactStore>,
    permitted: watch::Receiver<Permission>,
    /// Attempts that were started and wait for the permission to end.
    held: Vec<wire::Assign>,
    next_call: u64,
}

impl Session {
    async fn work(mut self) {
        let mut beat = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                _ = beat.tick() => self.send(wire::Heartbeat {
                    sequence: 1,
                    attempts: self.held.iter().map(|held| held.attempt_id).collect(),
                    host_memory_used_bytes: 0,
                }).await,
                message = self.incoming.message() => match message {
                    Ok(Some(message)) => self.handle(message.message.unwrap()).await,
                    Ok(None) | Err(_) => return,
                },
                changed = self.permitted.changed() => if changed.is_err() { return },
            }
            let permission = *self.permitted.borrow();
            let ends = |held: &mut wire::Assign| match permission {
                Permission::Start => false,
                Permission::Segments => held.task_type != "verify",
                Permission::Finish => true,
            };
            let ended: Vec<_> = self.held.extract_if(.., ends).collect();
            for assign in ended {
                self.finish(&assign).await;
            }
        }
    }

    async fn send(&self, message: impl Into<wire::WorkerMessage>) {
        // A coordinator that has gone needs no answer.
        let _ = self.outgoing.send(message.into()).await;
    }

    async fn handle(&mut self, message: FromCoordinator) {
        match message {
            FromCoordinator::Assign(assign) => {
                let attempt_id = assign.attempt_id;
                self.starts.send_modify(|starts| {
                    starts.entry(assign.job_id.clone()).or_insert_with(Instant::now);
                });
                self.send(wire::AttemptStarted { attempt_id }).await;
                if assign.task_type == "plan" {
                    self.submit(attempt_id).await;
                }
                self.held.push(assign);
            }
            FromCoordinator::Stop(stop) => {
                let attempt_id = stop.attempt_id;
                self.held.retain(|held| held.attempt_id != attempt_id);
                self.send(wire::AttemptStopped { attempt_id }).await;
            }
            FromCoordinator::Recall(recall) => {
                let attempt_id = recall.attempt_id;
                self.send(wire::RecallAnswer {
                    attempt_id,
                    given_back: false,
                })
                .await;
            }
            _ => {}
        }
    }

    /// Two segments and the check of what they make.
    async fn submit(&mut self, attempt_id: u64) {
        let prove = |name: &str| mk_task(name, "prove", Vec::new());
        let mut second = prove("two");
        if *self.permitted.borrow() == Permission::Segments {
            second.cache_key = "the same for all jobs".to_owned();
        }
        let mut verify = mk_task("verify", "verify", vec!["one".to_owned(), "two".to_owned()]);
        verify.outputs = vec!["proof".to_owned(), "public-values".to_owned()];
        verify.concludes_job = true;
        let tasks = vec![prove("one"), second, verify];
        let encoded = backend::SubmitTasksRequest { attempt_id, tasks }.encode_to_vec();
        let call_id = self.next_call;
        self.next_call += 1;
        self.send(wire::Call {
            call_id,
            attempt_id,
            call: Some(call::Call::SubmitTasks(wire::SubmitTasks { encoded })),
        })
        .await;
    }

    async fn finish(&self, assign: &wire::Assign) {
        let mut outputs = Vec::new();
        for name in &assign.outputs {
            let key = format!("{}/attempts/{}/{name}", assign.artifact_prefix, assign.attempt_id);
            let bytes = bytes::Bytes::from(format!("{name} of {}", assign.job_id));
            let stored = self
                .store
                .put_bytes(&Key::new(key.clone()).unwrap(), bytes, Condition::CreateOnly)
                .await
                .unwrap();
            outputs.push(prover_wire::artifact(
                name,
                key,
                *stored.sha256.as_bytes(),
                stored.size_bytes,
            ));
        }
        let execution = backend::ExecutionReport {
            segments: 2,
            user_cycles: 100_000,
            total_cycles: 131_072,
            program_id: "ab".repeat(32),
            exit_code: 0,
            segment_po2: 16,
            ..backend::ExecutionReport::default()
        };
        let proof = backend::ProofReport {
            proof: "proof".to_owned(),
            public_values: "public-values".to_owned(),
            program_id: "ab".repeat(32),
            proof_bytes: 42,
            verifier: "made up".to_owned(),
        };
        let only = |task_type: &str, bytes: Vec<u8>| match assign.task_type == task_type {
            true => bytes,
            false => Vec::new(),
        };
        self.send(wire::AttemptSucceeded {
            attempt_id: assign.attempt_id,
            outputs,
            result: Vec::new(),
            execution: only("plan", execution.encode_to_vec()),
            proof: only("verify", proof.encode_to_vec()),
            usage: Some(wire::Usage {
                device_milliseconds: 3_600,
                ..wire::Usage::default()
            }),
        })
        .await;
    }
}

fn mk_task(request_id: &str, task_type: &str, depends_on: Vec<String>) -> backend::TaskSubmission {
    backend::TaskSubmission {
        request_id: request_id.to_owned(),
        task_type: task_type.to_owned(),
        resources: Some(backend::Resources {
            device_class: backend::DeviceClass::Cpu.into(),
            host_memory_bytes: GIB / 8,
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
