//! Backend processes in containers of their own, run by the supervisor that is the first process there.
//!
//! Owns the service that supervisors connect to, and the commands to them. A stream that breaks means that the
//! container has ended: the supervisor lives as long as its container.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::pin::Pin;
use std::process::ExitStatus;

use prover_backend::supervisor::supervisor_event::Event as Said;
use prover_backend::supervisor::supervisor_service_server::SupervisorService;
use prover_backend::supervisor::{
    Ended, Kill, PROTOCOL_VERSION, Shutdown, Start, SupervisorCommand, SupervisorEvent, supervisor_command,
};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::output::LastLines;
use super::runner::{Meter, ProcessEnd, Runner, Samples, Started};
use crate::limits::{CLOSE_WITHIN, DIALS_WITHIN, QUEUED_SUPERVISOR_MESSAGES, STARTED_WITHIN};

type Commands = mpsc::Sender<Result<SupervisorCommand, Status>>;

/// What a supervisor says of the life of its process.
#[derive(Debug)]
enum Life {
    Started { process: u32 },
    StartFailed { problem: String },
    Ended(ProcessEnd),
}

/// A connected supervisor.
#[derive(Debug)]
pub(crate) struct Link {
    commands: Commands,
    /// Ends with the stream, and so with the container.
    life: mpsc::Receiver<Life>,
    samples: Samples,
    lines: LastLines,
}

/// The service that the supervisor of one slot connects to.
#[derive(Clone, Debug)]
pub(crate) struct Supervision {
    pub(crate) device_id: String,
    pub(crate) linked: mpsc::Sender<Link>,
}

#[async_trait::async_trait]
impl SupervisorService for Supervision {
    type SuperviseStream = Pin<Box<dyn Stream<Item = Result<SupervisorCommand, Status>> + Send>>;

    async fn supervise(
        &self,
        request: Request<Streaming<SupervisorEvent>>,
    ) -> Result<Response<Self::SuperviseStream>, Status> {
        let mut events = request.into_inner();
        let Some(SupervisorEvent {
            event: Some(Said::Hello(hello)),
        }) = events.message().await?
        else {
            return Err(Status::invalid_argument(
                "the first event of a supervisor must be a hello",
            ));
        };
        if hello.protocol_version != PROTOCOL_VERSION {
            return Err(Status::failed_precondition(format!(
                "the supervisor speaks version {}, the agent {PROTOCOL_VERSION}: both come from the same worker image",
                hello.protocol_version
            )));
        }
        let (commands, queue) = mpsc::channel(QUEUED_SUPERVISOR_MESSAGES);
        let (life_sender, life) = mpsc::channel(QUEUED_SUPERVISOR_MESSAGES);
        let (samples, lines) = (Samples::begin(hello.out_of_memory_kills), LastLines::default());
        let link = Link {
            commands,
            life,
            samples: samples.clone(),
            lines: lines.clone(),
        };
        self.linked
            .try_send(link)
            .map_err(|_| Status::unavailable("another supervisor is connected: try again"))?;
        tracing::info!(
            device = self.device_id,
            memory_limit_bytes = hello.memory_limit_bytes,
            "the supervisor of the backend's container is connected"
        );
        let device_id = self.device_id.clone();
        tokio::spawn(pump(events, life_sender, samples, lines, device_id));
        Ok(Response::new(Box::pin(ReceiverStream::new(queue))))
    }
}

/// Reads what a supervisor says until its stream ends or nobody listens.
async fn pump(
    mut events: Streaming<SupervisorEvent>,
    life: mpsc::Sender<Life>,
    samples: Samples,
    lines: LastLines,
    device_id: String,
) {
    loop {
        let event = tokio::select! {
            event = events.message() => event,
            () = life.closed() => return,
        };
        let said = match event {
            Ok(Some(SupervisorEvent { event: Some(said) })) => said,
            // From a newer supervisor.
            Ok(Some(SupervisorEvent { event: None })) => continue,
            Ok(None) => return,
            Err(status) => {
                tracing::debug!(device = device_id, %status, "the stream of a supervisor broke");
                return;
            }
        };
        let told = match said {
            Said::Hello(_) => continue,
            Said::Output(output) => {
                // Only kept: it stands in the log of its own container.
                drop(lines.push_line(&output.line));
                continue;
            }
            Said::Sample(sample) => {
                samples.set(sample);
                continue;
            }
            Said::Started(started) => {
                samples.new_process();
                Life::Started {
                    process: started.process_id,
                }
            }
            Said::StartFailed(failed) => Life::StartFailed {
                problem: prover_wire::limits::cut_text(&failed.problem),
            },
            Said::Ended(ended) => Life::Ended(process_end(&ended)),
        };
        if life.send(told).await.is_err() {
            return;
        }
    }
}

fn process_end(ended: &Ended) -> ProcessEnd {
    match (ended.exit_code, ended.signal) {
        (_, Some(signal)) => ProcessEnd::Exit(ExitStatus::from_raw(signal & 0x7f)),
        // As `wait` encodes it.
        (Some(code), None) => ProcessEnd::Exit(ExitStatus::from_raw((code & 0xff) << 8)),
        (None, None) => ProcessEnd::Unknown,
    }
}

/// Runs processes through whatever supervisor is connected.
#[derive(Debug)]
pub(crate) struct SupervisedRunner {
    /// Container or slot, for messages.
    slot: String,
    environment: HashMap<String, String>,
    linked: mpsc::Receiver<Link>,
    link: Option<Link>,
    /// How the last process ended; none while one runs or may run.
    end: Option<ProcessEnd>,
}

impl SupervisedRunner {
    pub(crate) fn new(
        slot: String,
        environment: HashMap<String, String>,
        linked: mpsc::Receiver<Link>,
    ) -> Self {
        Self {
            slot,
            environment,
            linked,
            link: None,
            end: Some(ProcessEnd::Unknown),
        }
    }

    fn command(&self, command: supervisor_command::Command) -> bool {
        let command = SupervisorCommand {
            command: Some(command),
        };
        self.link
            .as_ref()
            .is_some_and(|link| link.commands.try_send(Ok(command)).is_ok())
    }
}

#[async_trait::async_trait]
impl Runner for SupervisedRunner {
    fn name(&self) -> String {
        format!("the backend in container backend-{}", self.slot)
    }

    async fn available(&mut self) {
        // A process that was killed and does not end: without its stream, the supervisor begins anew.
        if self.end.is_none() {
            self.link = None;
        }
        loop {
            // The newest counts: an older one is a container that has ended.
            while let Ok(link) = self.linked.try_recv() {
                self.link = Some(link);
            }
            let Some(link) = &mut self.link else {
                match self.linked.recv().await {
                    Some(link) => self.link = Some(link),
                    // The socket is closed: the agent ends.
                    None => std::future::pending().await,
                }
                continue;
            };
            match link.life.try_recv() {
                Err(mpsc::error::TryRecvError::Empty) => return,
                Err(mpsc::error::TryRecvError::Disconnected) => self.link = None,
                // Late news of the process before.
                Ok(_) => {}
            }
        }
    }

    fn missing(&self) -> String {
        format!(
            "no supervisor is connected on the socket of slot {0}: its container (backend-{0}) does not run. \
             `kubectl describe pod` tells why",
            self.slot
        )
    }

    async fn start(&mut self) -> Result<Started, String> {
        let name = self.name();
        self.end = None;
        let environment = self.environment.clone();
        if let Some(link) = &self.link {
            link.lines.clear();
        }
        if !self.command(supervisor_command::Command::Start(Start { environment })) {
            self.link = None;
            return Err(format!("could not start {name}: its supervisor is gone"));
        }
        let Some(link) = &mut self.link else {
            return Err(format!("could not start {name}: its supervisor is gone"));
        };
        let process = match timeout(STARTED_WITHIN, link.life.recv()).await {
            Ok(Some(Life::Started { process })) => process,
            Ok(Some(Life::StartFailed { problem })) => {
                self.end = Some(ProcessEnd::Unknown);
                return Err(format!("could not start {name}: {problem}"));
            }
            Ok(Some(Life::Ended(_))) => {
                self.end = Some(ProcessEnd::Unknown);
                return Err(format!(
                    "could not start {name}: its supervisor told an end first"
                ));
            }
            Ok(None) => {
                (self.link, self.end) = (None, Some(ProcessEnd::ContainerEnded));
                return Err(format!("could not start {name}: the container ended"));
            }
            Err(_) => {
                let seconds = STARTED_WITHIN.as_secs();
                return Err(format!(
                    "could not start {name}: its supervisor did not answer within {seconds} s"
                ));
            }
        };
        Ok(Started {
            process,
            meter: Meter::Samples(link.samples.clone()),
        })
    }

    async fn ended(&mut self) -> ProcessEnd {
        loop {
            if let Some(end) = self.end {
                return end;
            }
            let Some(link) = &mut self.link else {
                return ProcessEnd::ContainerEnded;
            };
            match link.life.recv().await {
                Some(Life::Ended(end)) => self.end = Some(end),
                Some(Life::Started { .. } | Life::StartFailed { .. }) => {}
                None => self.end = Some(ProcessEnd::ContainerEnded),
            }
        }
    }

    fn kill(&mut self) {
        if self.end.is_none() && !self.command(supervisor_command::Command::Kill(Kill {})) {
            // It does not read: without its stream, it kills what it runs.
            self.link = None;
        }
    }

    async fn last_words(&mut self) -> String {
        // Told before the end, on the same stream.
        self.link
            .as_ref()
            .map_or_else(String::new, |link| link.lines.text())
    }

    async fn close(&mut self) {
        while let Ok(link) = self.linked.try_recv() {
            self.link = Some(link);
        }
        if !self.command(supervisor_command::Command::Shutdown(Shutdown {})) {
            // One that is just dialling would never hear that its pod ends.
            let Ok(Some(link)) = timeout(DIALS_WITHIN, self.linked.recv()).await else {
                return;
            };
            self.link = Some(link);
            self.command(supervisor_command::Command::Shutdown(Shutdown {}));
        }
        let Some(link) = &mut self.link else { return };
        let ended = async { while link.life.recv().await.is_some() {} };
        if timeout(CLOSE_WITHIN, ended).await.is_err() {
            tracing::warn!(
                device = self.slot,
                "the supervisor of the backend's container does not end"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_as_the_kernel_would_tell_it() {
        let exit = process_end(&Ended {
            exit_code: Some(7),
            signal: None,
        });
        let ProcessEnd::Exit(status) = exit else {
            panic!("{exit:?}")
        };
        assert_eq!(status.code(), Some(7));
        let killed = process_end(&Ended {
            exit_code: None,
            signal: Some(9),
        });
        let ProcessEnd::Exit(status) = killed else {
            panic!("{killed:?}")
        };
        assert_eq!(status.signal(), Some(9));
        assert_eq!(process_end(&Ended::default()), ProcessEnd::Unknown);
    }
}
