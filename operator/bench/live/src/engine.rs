//! W1 through the coordinator's engine alone: everything but streams and waiting. Workers that do nothing answer what
//! they find in the queues of their streams.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use prover_backend::protocol as backend;
use prover_bench::graph::{Node, join_tree};
use prover_bench::processor_time;
use prover_coordinator::engine::{
    Closer, Command, Connected, Engine, EngineParts, JobRequest, Metrics, SessionHandle, command_of, hello,
};
use prover_coordinator::{Identity, Milliseconds, Phase};
use prover_core::Limits;
use prover_runtime::SystemClock;
use prover_runtime::prometheus::Registry;
use prover_wire::protocol::coordinator_message::Message as FromCoordinator;
use prover_wire::protocol::{self as wire, call};
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::LiveError;
use crate::grpc::{TASKS_PER_CALL, submission};
use crate::service::proof_job;
use crate::session::mk_hello;

/// Messages that wait for one worker.
const OUTBOUND: usize = 4_096;
/// Commands of one turn, as the coordinator takes them.
const COMMANDS_PER_TURN: usize = 256;

/// What was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// Tasks by seconds of processor time.
    pub(crate) tasks_per_second: f64,
    /// Processor time of a task over its life in microseconds.
    pub(crate) microseconds_per_task: f64,
    /// Bytes of a task's records; nothing without a log.
    pub(crate) record_bytes: f64,
}

struct Worker {
    connected: Connected,
    devices: Vec<Arc<str>>,
    session: u64,
    messages: mpsc::Receiver<wire::CoordinatorMessage>,
}

struct Load {
    engine: Engine,
    workers: Vec<Worker>,
    nodes: Vec<Node>,
    /// Of the planner: its worker, its attempt, and the first task that it has not submitted.
    planner: Option<(usize, u64, usize)>,
    calls: u64,
    said: Vec<(usize, wire::WorkerMessage)>,
    record_bytes: usize,
}

impl Load {
    fn connect(&mut self, number: usize) -> Result<(), LiveError> {
        let refused = |words: String| LiveError::Refused { words };
        let message = mk_hello(number, wire::DeviceClass::Cpu, 0);
        let devices = message.devices.iter().map(|device| device.id.as_str().into());
        let devices = devices.collect();
        let checked =
            hello(message, &Identity::LocalWorker).map_err(|(_, status)| refused(status.to_string()))?;
        let (outbound, messages) = mpsc::channel(OUTBOUND);
        let session = number as u64 + 1;
        let (reply, mut answer) = oneshot::channel();
        self.engine.handle(Command::Connect {
            hello: Box::new(checked),
            identity: Identity::LocalWorker,
            session: SessionHandle {
                id: session,
                outbound,
                closer: Closer::default(),
            },
            reply,
        });
        let connected = match answer.try_recv() {
            Ok(Ok(connected)) => connected,
            Ok(Err(status)) => return Err(refused(status.to_string())),
            Err(_) => return Err(LiveError::Silence { what: "a welcome" }),
        };
        self.workers.push(Worker {
            connected,
            devices,
            session,
            messages,
        });
        Ok(())
    }

    fn plan(&mut self) {
        let Some((worker, attempt_id, first)) = self.planner else {
            return;
        };
        let last = (first + TASKS_PER_CALL).min(self.nodes.len());
        if first == last {
            self.planner = None;
            let done = wire::AttemptSucceeded {
                attempt_id,
                ..wire::AttemptSucceeded::default()
            };
            return self.said.push((worker, done.into()));
        }
        let tasks = (first..last).map(|place| submission(&self.nodes[place], place));
        let tasks = tasks.collect();
        let encoded = backend::SubmitTasksRequest { attempt_id, tasks }.encode_to_vec();
        self.planner = Some((worker, attempt_id, last));
        self.calls += 1;
        let call = wire::Call {
            call_id: self.calls,
            attempt_id,
            call: Some(call::Call::SubmitTasks(wire::SubmitTasks { encoded })),
        };
        self.said.push((worker, call.into()));
    }

    /// Lets all workers answer what they were told.
    fn listen(&mut self) -> Result<(), LiveError> {
        for at in 0..self.workers.len() {
            while let Ok(message) = self.workers[at].messages.try_recv() {
                match message.message {
                    Some(FromCoordinator::Assign(assign)) => {
                        let attempt_id = assign.attempt_id;
                        let started = wire::AttemptStarted { attempt_id };
                        self.said.push((at, started.into()));
                        if assign.task_type == "plan" {
                            self.planner = Some((at, attempt_id, 0));
                            self.plan();
                        } else {
                            let succeeded = wire::AttemptSucceeded {
                                attempt_id,
                                result: vec![0; 8],
                                ..wire::AttemptSucceeded::default()
                            };
                            self.said.push((at, succeeded.into()));
                        }
                    }
                    Some(FromCoordinator::Answer(answer)) if answer.error.is_empty() => self.plan(),
                    Some(FromCoordinator::Answer(answer)) => {
                        return Err(LiveError::Refused { words: answer.error });
                    }
                    Some(FromCoordinator::Recall(recall)) => {
                        let answer = wire::RecallAnswer {
                            attempt_id: recall.attempt_id,
                            given_back: false,
                        };
                        self.said.push((at, answer.into()));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<(), LiveError> {
        self.listen()?;
        let said = std::mem::take(&mut self.said);
        let mut said = said.into_iter();
        loop {
            for (at, message) in said.by_ref().take(COMMANDS_PER_TURN) {
                let Worker {
                    connected,
                    devices,
                    session,
                    ..
                } = &self.workers[at];
                let command = command_of(connected, devices, *session, message);
                let command = command.map_err(|error| LiveError::Refused {
                    words: error.to_string(),
                })?;
                if let Some(command) = command {
                    self.engine.handle(command);
                }
            }
            for group in self.engine.take_records() {
                self.record_bytes += group.iter().map(|record| record.encode().len()).sum::<usize>();
            }
            self.engine.committed(self.engine.recorded());
            // Ends the turn: what it has for workers goes to their streams.
            self.engine.run_timers();
            if said.len() == 0 {
                return Ok(());
            }
        }
    }

    fn run_job(&mut self, name: &str) -> Result<(), LiveError> {
        let request = JobRequest::unchecked(&proof_job(name), "", Vec::new())?;
        let uid: Arc<str> = format!("uid-{name}").into();
        let (reply, mut answer) = oneshot::channel();
        let request = Box::new(request);
        self.engine.handle(Command::Submit { request, reply });
        let view = match answer.try_recv() {
            Ok(Ok(view)) => view,
            Ok(Err(error)) => {
                return Err(LiveError::Refused {
                    words: error.to_string(),
                });
            }
            Err(_) => return Err(LiveError::Silence { what: "an answer" }),
        };
        loop {
            self.turn()?;
            let told = view.borrow();
            match told.phase {
                Phase::Succeeded => break,
                Phase::Queued | Phase::Running => {}
                phase => {
                    return Err(LiveError::JobFailed {
                        phase: phase.as_str(),
                        words: told.message.to_string(),
                    });
                }
            }
        }
        self.engine.handle(Command::Forget { uid });
        Ok(())
    }
}

/// Runs jobs of 2^`exponent` segments one after the other for at least so long.
pub(crate) fn engine(
    exponent: u32,
    workers: usize,
    least: Duration,
    record_facts: bool,
) -> Result<Found, LiveError> {
    let metrics = Metrics::register(&Registry::new()).map_err(|error| LiveError::Refused {
        words: error.to_string(),
    })?;
    let (cluster, _view) = watch::channel(Arc::default());
    let engine = Engine::new(EngineParts {
        limits: Limits {
            lease: Milliseconds(3_600_000),
            record_facts,
            ..Limits::default()
        },
        epoch: 1,
        heartbeat_interval: Duration::from_secs(1),
        clock: Arc::new(SystemClock::new()),
        metrics,
        cluster,
    });
    let mut load = Load {
        engine,
        workers: Vec::new(),
        nodes: join_tree(1 << exponent),
        planner: None,
        calls: 0,
        said: Vec::new(),
        record_bytes: 0,
    };
    for number in 0..workers {
        load.connect(number)?;
    }
    load.run_job("warm-up")?;
    load.record_bytes = 0;
    let (begun, before) = (Instant::now(), processor_time());
    let mut jobs = 0;
    while begun.elapsed() < least {
        load.run_job(&format!("job-{jobs}"))?;
        jobs += 1;
    }
    let used = processor_time() - before;
    let tasks = (jobs * load.nodes.len()) as f64;
    Ok(Found {
        tasks_per_second: tasks / used.as_secs_f64(),
        microseconds_per_task: used.as_secs_f64() * 1e6 / tasks,
        record_bytes: load.record_bytes as f64 / tasks,
    })
}
