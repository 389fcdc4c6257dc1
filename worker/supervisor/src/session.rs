//! One stream to the agent, and what is done at its word.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use prover_backend::supervisor::supervisor_event::Event;
use prover_backend::supervisor::supervisor_service_client::SupervisorServiceClient;
use prover_backend::supervisor::{
    Ended, PROTOCOL_VERSION, Sample, Start, StartFailed, Started, SupervisorEvent, SupervisorHello,
    supervisor_command,
};
use rustix::process::WaitStatus;
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::cgroup::ControlGroups;
use crate::limits::{FAREWELL_WITHIN, QUEUED_EVENTS, SAMPLE_EVERY, SEND_WITHIN};
use crate::output::Lines;
use crate::program::{Program, kill_everything, reap};

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionEnd {
    /// The container shall be gone.
    #[error("the agent asked for the end")]
    Shutdown,
    /// The agent is gone, or does not understand.
    #[error("{0}")]
    Broken(String),
}

fn broken(problem: impl Into<String>) -> SessionEnd {
    SessionEnd::Broken(problem.into())
}

/// The prover of this container.
#[derive(Debug)]
pub(crate) struct Supervisor {
    command: Vec<OsString>,
    socket: PathBuf,
    groups: ControlGroups,
    /// SIGCHLD.
    children: Signal,
    program: Option<Program>,
}

impl Supervisor {
    pub(crate) fn new(command: &[OsString], socket: &Path, children: Signal) -> Self {
        Self {
            command: command.to_vec(),
            socket: socket.to_owned(),
            groups: ControlGroups::detect(),
            children,
            program: None,
        }
    }

    /// Does what the agent says until it asks for the end or its stream breaks.
    pub(crate) async fn serve(&mut self, channel: Channel) -> SessionEnd {
        let (events, queue) = mpsc::channel(QUEUED_EVENTS);
        let stream = ReceiverStream::new(queue).map(|event| SupervisorEvent { event: Some(event) });
        let hello = Event::Hello(SupervisorHello {
            protocol_version: PROTOCOL_VERSION,
            memory_limit_bytes: self.groups.memory_limit_bytes(),
            out_of_memory_kills: self.groups.read().out_of_memory_kills,
        });
        if events.try_send(hello).is_err() {
            return broken("the queue to the agent is closed");
        }
        let mut client = SupervisorServiceClient::new(channel);
        let mut commands = match client.supervise(stream).await {
            Ok(response) => response.into_inner(),
            Err(status) => return broken(format!("the agent refused the session: {}", status.message())),
        };
        tracing::info!("connected to the agent");
        let end = match self.follow(&mut commands, &events).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        if matches!(end, SessionEnd::Shutdown) {
            self.say_farewell(events, &mut commands).await;
        }
        end
    }

    async fn follow(
        &mut self,
        commands: &mut Streaming<prover_backend::supervisor::SupervisorCommand>,
        events: &mpsc::Sender<Event>,
    ) -> Result<std::convert::Infallible, SessionEnd> {
        let mut samples = interval(SAMPLE_EVERY);
        samples.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = commands.message() => {
                    match command {
                        Ok(Some(command)) => self.obey(command.command, events).await?,
                        Ok(None) => return Err(broken("the agent closed the session")),
                        Err(status) => return Err(broken(format!("the session broke: {}", status.message()))),
                    }
                }
                _ = self.children.recv() => {
                    let process = self.program.as_ref().map(|program| program.process);
                    if let Some(status) = reap(process) {
                        self.tell_end(status, events).await?;
                    }
                }
                _ = samples.tick(), if self.program.is_some() => {
                    if let Some(sample) = self.sample() {
                        tell(events, sample).await?;
                    }
                }
            }
        }
    }

    async fn obey(
        &mut self,
        command: Option<supervisor_command::Command>,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), SessionEnd> {
        match command {
            Some(supervisor_command::Command::Start(start)) => {
                let event = self.start(&start, events);
                tell(events, event).await
            }
            Some(supervisor_command::Command::Kill(_)) => {
                if let Some(program) = &self.program {
                    program.kill();
                }
                Ok(())
            }
            Some(supervisor_command::Command::Shutdown(_)) => Err(SessionEnd::Shutdown),
            // From a newer agent.
            None => Ok(()),
        }
    }

    fn start(&mut self, start: &Start, events: &mpsc::Sender<Event>) -> Event {
        if let Some(program) = &self.program {
            let problem = format!("the prover runs already, as process {}", program.process);
            return Event::StartFailed(StartFailed { problem });
        }
        let lines = Lines::new(events.clone());
        let reading = self.groups.read();
        match Program::start(&self.command, &self.socket, &start.environment, reading, &lines) {
            Ok(program) => {
                let process_id = program.process.as_raw_nonzero().get().unsigned_abs();
                tracing::info!(process = process_id, "started the prover");
                self.program = Some(program);
                Event::Started(Started { process_id })
            }
            Err(problem) => {
                tracing::error!(%problem, "could not start the prover");
                Event::StartFailed(StartFailed { problem })
            }
        }
    }

    /// Nothing of it is left when the agent hears of its end: the next one finds the device free.
    async fn tell_end(&mut self, status: WaitStatus, events: &mpsc::Sender<Event>) -> Result<(), SessionEnd> {
        let process = self.program.as_ref().map(|program| program.process);
        kill_everything(process).await;
        if let Some(program) = &mut self.program {
            program.finish_output().await;
        }
        let sample = self.sample();
        self.program = None;
        let ended = Ended {
            exit_code: status.exit_status(),
            signal: status.terminating_signal(),
        };
        tracing::info!(
            exit_code = ended.exit_code,
            signal = ended.signal,
            "the prover has ended"
        );
        if let Some(sample) = sample {
            tell(events, sample).await?;
        }
        tell(events, Event::Ended(ended)).await
    }

    fn sample(&mut self) -> Option<Event> {
        let program = self.program.as_mut()?;
        let reading = self.groups.read();
        let (peak_memory_bytes, cpu_milliseconds) = program.figures.take(reading);
        Some(Event::Sample(Sample {
            out_of_memory_kills: reading.out_of_memory_kills,
            peak_memory_bytes,
            cpu_milliseconds,
        }))
    }

    async fn say_farewell(
        &mut self,
        events: mpsc::Sender<Event>,
        commands: &mut Streaming<prover_backend::supervisor::SupervisorCommand>,
    ) {
        if let Some(process) = self.program.as_ref().map(|program| program.process)
            && let Some(status) = kill_everything(Some(process)).await
        {
            // A last message is worth a try.
            let _ = timeout(FAREWELL_WITHIN, self.tell_end(status, &events)).await;
        }
        drop(events);
        let closed = async { while let Ok(Some(_)) = commands.message().await {} };
        let _ = timeout(FAREWELL_WITHIN, closed).await;
    }

    /// Kills what runs, with everything that it has started.
    pub(crate) async fn end_program(&mut self) {
        let process = self.program.as_ref().map(|program| program.process);
        kill_everything(process).await;
        if let Some(mut program) = self.program.take() {
            program.finish_output().await;
        }
    }
}

/// Queues what must not be lost.
async fn tell(events: &mpsc::Sender<Event>, event: Event) -> Result<(), SessionEnd> {
    match timeout(SEND_WITHIN, events.send(event)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(broken("the stream to the agent is closed")),
        Err(_) => Err(broken("the agent takes no messages")),
    }
}
