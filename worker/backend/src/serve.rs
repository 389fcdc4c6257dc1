//! The process of a backend: its session with the agent, and the attempts that run in it.
//!
//! One loop owns everything: it takes commands, starts attempts as tasks of their own, sends their events and the
//! pulse. It does no work itself, so a pulse proves that the runtime is alive and nothing more.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{OnceCell, mpsc};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::attempt::{AgentClient, Attempt, Completed, OUTPUT_FOLDER};
use crate::backend::Backend;
use crate::error::TaskError;
use crate::limits::{
    CONNECT_PAUSE, CONNECT_WINDOW, MAX_CONTROL_ATTEMPTS, MAX_MESSAGE_BYTES, MAX_QUEUED_EVENTS,
    PULSES_PER_HANG_TIME, WELCOME_WITHIN,
};
use crate::protocol::agent_command::Command;
use crate::protocol::{
    AgentCommand, AttemptCompleted, AttemptStopped, BackendDescription, BackendEvent, Device, Hello, Lane,
    OutputFile, PROTOCOL_VERSION, Pulse, RunAttempt, StopAttempt, Welcome,
};
use crate::validate::{self, ValidationError};

/// How a session ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServeEnd {
    /// The agent asked for it.
    Shutdown,
}

/// Why a session ended badly. The process ends with it; a supervisor may start another one.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The backend describes itself wrongly.
    #[error("the backend's description breaks the protocol: {0}")]
    Description(#[source] ValidationError),
    /// No agent listens on the socket.
    #[error("no agent answers on {socket} within {} s: {source}. A backend is started by its agent (prover-worker)",
        CONNECT_WINDOW.as_secs())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The last try's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The agent refused the session.
    #[error("the agent refused the session: {0}")]
    Refused(#[source] Box<tonic::Status>),
    /// The agent did not welcome the backend, or wrongly.
    #[error("the agent did not open the session properly: {0}")]
    NoWelcome(String),
    /// The agent speaks another version.
    #[error(transparent)]
    Version(ValidationError),
    /// The agent has ended.
    #[error("the agent is gone ({0}): ending this process")]
    AgentGone(String),
}

impl ServeError {
    /// Label for metrics.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Description(_) => "description",
            Self::Connect { .. } => "connect",
            Self::Refused(_) => "refused",
            Self::NoWelcome(_) => "no_welcome",
            Self::Version(_) => "version",
            Self::AgentGone(_) => "agent_gone",
        }
    }

    /// Whether starting the process again may go well.
    #[must_use]
    pub fn retry(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. } | Self::NoWelcome(_) | Self::AgentGone(_)
        )
    }
}

/// Serves one agent until it asks to end or is gone.
pub async fn serve<B: Backend>(backend: Arc<B>, socket: &Path) -> Result<ServeEnd, ServeError> {
    let parent = rustix::process::getppid();
    let description = backend.describe();
    validate::description(&description).map_err(ServeError::Description)?;
    let mut client = connect(socket).await?;
    let (events, queue) = mpsc::channel(MAX_QUEUED_EVENTS);
    let hello = Hello {
        protocol_version: PROTOCOL_VERSION,
        backend: Some(description.clone()),
    };
    // Before the call: the agent may answer it only when it has seen the first event.
    let _ = events.send(hello.into()).await;
    let opening = async {
        let session = client.session(ReceiverStream::new(queue)).await;
        let mut commands = session
            .map_err(|status| ServeError::Refused(Box::new(status)))?
            .into_inner();
        let device = welcome(&mut commands).await?;
        Ok((commands, device))
    };
    let Ok(opened) = tokio::time::timeout(WELCOME_WITHIN, opening).await else {
        return Err(ServeError::NoWelcome(format!(
            "no welcome within {} s",
            WELCOME_WITHIN.as_secs()
        )));
    };
    let (commands, device) = opened?;
    tracing::info!(device = device.id, "serving");
    let prepared = Arc::new(OnceCell::new());
    let description = Arc::new(description);
    let mut session = Session {
        backend,
        description,
        device,
        client,
        events,
        prepared,
        attempts: HashMap::new(),
        tasks: JoinSet::new(),
        parent,
    };
    session.prepare_early();
    let end = session.run(commands).await;
    session.tasks.abort_all();
    end
}

async fn connect(socket: &Path) -> Result<AgentClient, ServeError> {
    let give_up = tokio::time::Instant::now() + CONNECT_WINDOW;
    loop {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_: tonic::transport::Uri| {
            let path = path.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(path).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        // The connector decides where to; the address only fills in the header.
        let endpoint = tonic::transport::Endpoint::from_static("http://agent.invalid");
        match endpoint.connect_with_connector(connector).await {
            Ok(channel) => {
                return Ok(AgentClient::new(channel)
                    .max_decoding_message_size(MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(MAX_MESSAGE_BYTES));
            }
            Err(error) if tokio::time::Instant::now() >= give_up => {
                return Err(ServeError::Connect {
                    socket: socket.to_owned(),
                    source: Box::new(error),
                });
            }
            Err(_) => tokio::time::sleep(CONNECT_PAUSE).await,
        }
    }
}

async fn welcome(commands: &mut Streaming<AgentCommand>) -> Result<Device, ServeError> {
    match commands.message().await {
        Ok(Some(AgentCommand {
            command:
                Some(Command::Welcome(Welcome {
                    protocol_version,
                    device,
                })),
        })) => {
            validate::protocol_version(protocol_version).map_err(ServeError::Version)?;
            device.ok_or_else(|| ServeError::NoWelcome("the welcome names no device".to_owned()))
        }
        Ok(Some(_)) => Err(ServeError::NoWelcome(
            "the first command was not a welcome".to_owned(),
        )),
        Ok(None) => Err(ServeError::NoWelcome("the agent closed the session".to_owned())),
        Err(status) => Err(ServeError::Refused(Box::new(status))),
    }
}

/// Whether an attempt has begun to run, or was taken back before. Decided once, by whoever comes first.
#[derive(Clone, Default)]
struct StartGate(Arc<AtomicU8>);

impl StartGate {
    const WAITING: u8 = 0;
    const STARTED: u8 = 1;
    const WITHDRAWN: u8 = 2;

    fn decide(&self, outcome: u8) -> bool {
        self.0
            .compare_exchange(Self::WAITING, outcome, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    fn has_started(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::STARTED
    }
}

struct Running {
    attempt: Attempt,
    gate: StartGate,
    lane: Lane,
    task: Id,
}

/// How an attempt ended; none where it was stopped.
type Outcome = Option<Result<Completed, TaskError>>;

struct Session<B> {
    backend: Arc<B>,
    description: Arc<BackendDescription>,
    device: Device,
    client: AgentClient,
    events: mpsc::Sender<BackendEvent>,
    prepared: Arc<OnceCell<()>>,
    attempts: HashMap<u64, Running>,
    tasks: JoinSet<(u64, Outcome)>,
    parent: Option<rustix::process::Pid>,
}

impl<B: Backend> Session<B> {
    // Keys are loaded before the first attempt comes. Its errors are told by the attempts that need it.
    fn prepare_early(&self) {
        let (backend, device, prepared) = (self.backend.clone(), self.device.clone(), self.prepared.clone());
        tokio::spawn(async move {
            if let Err(error) = prepare(&*backend, &device, &prepared).await {
                tracing::warn!(%error, "could not prepare: it is tried again for the next attempt");
            }
        });
    }

    async fn run(&mut self, mut commands: Streaming<AgentCommand>) -> Result<ServeEnd, ServeError> {
        let mut pulse = tokio::time::interval(self.pulse_interval());
        pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = commands.message() => match command {
                    Ok(Some(AgentCommand { command: Some(Command::Run(run)) })) => self.start(run).await?,
                    Ok(Some(AgentCommand { command: Some(Command::Stop(stop)) })) => self.stop(stop).await?,
                    Ok(Some(AgentCommand { command: Some(Command::Shutdown(_)) })) => return Ok(ServeEnd::Shutdown),
                    // Commands of a later release that this one does not know must be safe to ignore.
                    Ok(Some(_)) => tracing::warn!("an unknown command was ignored"),
                    Ok(None) => return Err(ServeError::AgentGone("it closed the session".to_owned())),
                    Err(status) => return Err(ServeError::AgentGone(status.message().to_owned())),
                },
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended).await?,
                _ = pulse.tick() => self.pulse()?,
            }
        }
    }

    fn pulse_interval(&self) -> Duration {
        self.description.hang_after() / PULSES_PER_HANG_TIME
    }

    fn pulse(&self) -> Result<(), ServeError> {
        if rustix::process::getppid() != self.parent {
            return Err(ServeError::AgentGone("the parent process has ended".to_owned()));
        }
        match self.events.try_send(Pulse {}.into()) {
            Err(mpsc::error::TrySendError::Closed(_)) => {
                Err(ServeError::AgentGone("it reads no events".to_owned()))
            }
            // Other events wait to be read, and they prove as much as a pulse.
            Err(mpsc::error::TrySendError::Full(_)) | Ok(()) => Ok(()),
        }
    }

    async fn send(&self, event: impl Into<BackendEvent>) -> Result<(), ServeError> {
        let sent = self.events.send(event.into()).await;
        sent.map_err(|_| ServeError::AgentGone("it reads no events".to_owned()))
    }

    async fn start(&mut self, run: RunAttempt) -> Result<(), ServeError> {
        let id = run.attempt_id;
        if self.attempts.contains_key(&id) {
            // A failure under this id would end the one that runs, so this can only be said in the log.
            tracing::error!(
                attempt = id,
                "the agent sent an attempt that runs already: ignored"
            );
            return Ok(());
        }
        let lane = match self.admit(&run) {
            Ok(lane) => lane,
            Err(error) => {
                tracing::warn!(attempt = id, %error, "refused");
                return self.send(error.into_event(id)).await;
            }
        };
        let gate = StartGate::default();
        let attempt = Attempt::new(
            run,
            self.device.clone(),
            self.description.clone(),
            self.client.clone(),
            self.events.clone(),
        );
        let work = run_attempt(
            self.backend.clone(),
            self.prepared.clone(),
            attempt.clone(),
            gate.clone(),
        );
        let task = self.tasks.spawn(async move { (id, work.await) }).id();
        self.attempts.insert(
            id,
            Running {
                attempt,
                gate,
                lane,
                task,
            },
        );
        Ok(())
    }

    fn admit(&self, run: &RunAttempt) -> Result<Lane, TaskError> {
        validate::run_attempt(run).map_err(|error| TaskError::fatal(error.category(), error.to_string()))?;
        let Some(task_type) = self.description.task_type(&run.task_type) else {
            let message = format!(
                "backend {} has no task type {:?}",
                self.description.name, run.task_type
            );
            return Err(TaskError::fatal("UnknownTaskType", message));
        };
        let lane = task_type.lane();
        let taken = self
            .attempts
            .values()
            .filter(|running| running.lane == lane)
            .count();
        let places = match lane {
            Lane::Control => MAX_CONTROL_ATTEMPTS,
            Lane::Device | Lane::Unspecified => self.description.attempts_at_once as usize,
        };
        if taken >= places {
            let message = format!(
                "this process already runs {taken} attempts of {}",
                lane.as_str_name()
            );
            return Err(TaskError::retryable("BackendBusy", message));
        }
        Ok(lane)
    }

    async fn stop(&mut self, stop: StopAttempt) -> Result<(), ServeError> {
        let Some(running) = self.attempts.get(&stop.attempt_id) else {
            // It has ended already, or never came: either way nothing of it runs.
            return self
                .send(AttemptStopped {
                    attempt_id: stop.attempt_id,
                    had_started: false,
                })
                .await;
        };
        let withdrawn = running.gate.decide(StartGate::WITHDRAWN);
        if withdrawn || !stop.only_if_not_started {
            running.attempt.cancellation().cancel();
        }
        Ok(())
    }

    async fn ended(&mut self, ended: Result<(Id, (u64, Outcome)), JoinError>) -> Result<(), ServeError> {
        let (id, outcome) = match ended {
            Ok((_, ended)) => ended,
            Err(error) => {
                let Some((&id, _)) = self
                    .attempts
                    .iter()
                    .find(|(_, running)| running.task == error.id())
                else {
                    return Ok(());
                };
                (id, Some(Err(panicked(error.into_panic().as_ref()))))
            }
        };
        // The slot is free before the agent hears of it, since it may send the next attempt at once.
        let Some(running) = self.attempts.remove(&id) else {
            return Ok(());
        };
        let had_started = running.gate.has_started();
        let completed = match outcome {
            None => {
                return self
                    .send(AttemptStopped {
                        attempt_id: id,
                        had_started,
                    })
                    .await;
            }
            Some(Ok(completed)) => self.check_completed(&running.attempt, completed),
            Some(Err(error)) => Err(error),
        };
        match completed {
            Ok(completed) => self.send(completed).await,
            Err(mut error) => {
                if !validate::is_reason(&error.reason) {
                    tracing::error!(
                        reason = error.reason,
                        "the backend's reason is not one CamelCase word"
                    );
                    "Unnamed".clone_into(&mut error.reason);
                }
                self.send(error.into_event(id)).await
            }
        }
    }

    fn check_completed(
        &self,
        attempt: &Attempt,
        completed: Completed,
    ) -> Result<AttemptCompleted, TaskError> {
        let broken = |error: ValidationError| TaskError::fatal(error.category(), error.to_string());
        let Completed {
            mut outputs,
            result,
            execution,
            proof,
            device_time,
        } = completed;
        let declared = attempt.outputs();
        for name in declared {
            outputs
                .entry(name.clone())
                .or_insert_with(|| attempt.output_path(name));
        }
        let outputs: Vec<OutputFile> = outputs
            .into_iter()
            .map(|(name, path)| OutputFile {
                name,
                path: path.to_string_lossy().into_owned(),
            })
            .collect();
        let files = validate::output_files(attempt.directory(), declared, &outputs).map_err(broken)?;
        let outputs = files
            .into_iter()
            .map(|(name, path)| OutputFile {
                name,
                path: path.to_string_lossy().into_owned(),
            })
            .collect();
        let device_milliseconds = u64::try_from(device_time.as_millis()).unwrap_or(u64::MAX);
        let message = AttemptCompleted {
            attempt_id: attempt.id(),
            outputs,
            result,
            execution,
            proof,
            device_milliseconds,
        };
        if let Some(task_type) = self.description.task_type(attempt.task_type()) {
            validate::completed(task_type, &message).map_err(broken)?;
        }
        Ok(message)
    }
}

async fn prepare<B: Backend>(backend: &B, device: &Device, prepared: &OnceCell<()>) -> Result<(), TaskError> {
    let preparing = || async {
        let work = AssertUnwindSafe(backend.prepare(device)).catch_unwind();
        work.await.unwrap_or_else(|panic| Err(panicked(panic.as_ref())))
    };
    prepared.get_or_try_init(preparing).await.map(|_| ())
}

async fn run_attempt<B: Backend>(
    backend: Arc<B>,
    prepared: Arc<OnceCell<()>>,
    attempt: Attempt,
    gate: StartGate,
) -> Outcome {
    let work = {
        let (backend, attempt) = (backend.clone(), attempt.clone());
        AssertUnwindSafe(async move {
            prepare(&*backend, attempt.device(), &prepared).await?;
            let outputs = attempt.directory().join(OUTPUT_FOLDER);
            let made = tokio::fs::create_dir_all(&outputs).await;
            made.map_err(|error| TaskError::file("make the folder for outputs", &outputs, &error))?;
            if !gate.decide(StartGate::STARTED) {
                // Withdrawn: the cancellation follows at once.
                std::future::pending::<()>().await;
            }
            backend.run(attempt).await
        })
        .catch_unwind()
    };
    let outcome = tokio::select! {
        biased;
        () = attempt.cancellation().cancelled() => None,
        result = work => Some(result.unwrap_or_else(|panic| Err(panicked(panic.as_ref())))),
    };
    // Blocking sections can't be interrupted, and they hold the device until they end.
    attempt.blocking_sections().close();
    attempt.blocking_sections().wait().await;
    // A call that was refused for a lost lease may have made the backend return before this task saw the
    // cancellation: the attempt counts as stopped all the same.
    if attempt.cancellation().is_cancelled() {
        None
    } else {
        outcome
    }
}

fn panicked(payload: &(dyn std::any::Any + Send)) -> TaskError {
    let words = payload
        .downcast_ref::<&str>()
        .map(|words| (*words).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    TaskError::retryable("BackendPanicked", format!("the backend panicked: {words}"))
}
