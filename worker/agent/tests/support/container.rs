//! A double of a backend's container: a supervisor in this process, which does as a test says.

use std::path::{Path, PathBuf};

use prover_backend::supervisor::supervisor_event::Event;
use prover_backend::supervisor::supervisor_service_client::SupervisorServiceClient;
use prover_backend::supervisor::{
    Ended, OutputLine, PROTOCOL_VERSION, Sample, Start, StartFailed, Started, SupervisorEvent,
    SupervisorHello, supervisor_command::Command,
};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use super::within;

/// A container with a supervisor and the backend that it runs.
pub(crate) struct Container {
    samples: mpsc::Sender<Sample>,
    /// How often a backend was started.
    pub(crate) starts: watch::Receiver<u32>,
    /// The agent has asked it to end.
    shut_down: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Container {
    /// Starts one that connects to a socket as soon as it is there.
    pub(crate) fn start(socket: &Path, program: &Path) -> Self {
        let (samples, to_tell) = mpsc::channel(8);
        let (started, starts) = watch::channel(0);
        let (ended, shut_down) = watch::channel(false);
        let inside = Inside {
            socket: socket.to_owned(),
            program: program.to_owned(),
            samples: to_tell,
            started,
            ended,
        };
        Self {
            samples,
            starts,
            shut_down,
            task: tokio::spawn(inside.run()),
        }
    }

    /// All in it ends at once, as when the kernel kills it as a group.
    pub(crate) async fn end(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub(crate) async fn tell(&self, sample: Sample) {
        self.samples.send(sample).await.unwrap();
    }

    /// It lives and nobody asked it to end.
    pub(crate) fn stays(&self) -> bool {
        !*self.shut_down.borrow()
    }

    pub(crate) async fn was_shut_down(mut self) {
        within(
            "the shutdown of a container",
            self.shut_down.wait_for(|shut_down| *shut_down),
        )
        .await
        .unwrap();
        within("the end of a container", self.task).await.unwrap();
    }
}

struct Inside {
    socket: PathBuf,
    program: PathBuf,
    samples: mpsc::Receiver<Sample>,
    started: watch::Sender<u32>,
    ended: watch::Sender<bool>,
}

impl Inside {
    async fn run(mut self) {
        let address = format!("unix://{}", self.socket.display());
        let channel = loop {
            match Endpoint::from_shared(address.clone()).unwrap().connect().await {
                Ok(channel) => break channel,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        };
        let (events, queue) = mpsc::channel(1_024);
        let tell = async |event: Event| {
            let _ = events.send(SupervisorEvent { event: Some(event) }).await;
        };
        tell(Event::Hello(SupervisorHello {
            protocol_version: PROTOCOL_VERSION,
            memory_limit_bytes: 0,
            // A container in which something was killed before.
            out_of_memory_kills: 3,
        }))
        .await;
        let mut client = SupervisorServiceClient::new(channel);
        let mut commands = client
            .supervise(ReceiverStream::new(queue))
            .await
            .unwrap()
            .into_inner();
        let mut child: Option<Child> = None;
        loop {
            let ended = async {
                match &mut child {
                    Some(child) => child.wait().await.unwrap(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = commands.message() => match command.ok().flatten().and_then(|command| command.command) {
                    Some(Command::Start(start)) => {
                        let started = match self.start_backend(&start, &events) {
                            Ok(started) => started,
                            Err(error) => {
                                tell(Event::StartFailed(StartFailed { problem: error.to_string() })).await;
                                continue;
                            }
                        };
                        let process_id = started.id().unwrap();
                        child = Some(started);
                        tell(Event::Started(Started { process_id })).await;
                        self.started.send_modify(|starts| *starts += 1);
                    }
                    Some(Command::Kill(_)) => child.as_mut().unwrap().start_kill().unwrap(),
                    Some(Command::Shutdown(_)) => {
                        self.ended.send_replace(true);
                        return;
                    }
                    // The agent is gone.
                    None => return,
                },
                status = ended => {
                    use std::os::unix::process::ExitStatusExt;
                    child = None;
                    while let Ok(sample) = self.samples.try_recv() {
                        tell(Event::Sample(sample)).await;
                    }
                    tell(Event::Ended(Ended { exit_code: status.code(), signal: status.signal() })).await;
                }
                Some(sample) = self.samples.recv() => tell(Event::Sample(sample)).await,
            }
        }
    }

    fn start_backend(&self, start: &Start, events: &mpsc::Sender<SupervisorEvent>) -> std::io::Result<Child> {
        let mut child = tokio::process::Command::new(&self.program)
            .envs(&start.environment)
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let events = events.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let event = Some(Event::Output(OutputLine { line }));
                let _ = events.send(SupervisorEvent { event }).await;
            }
        });
        Ok(child)
    }
}
