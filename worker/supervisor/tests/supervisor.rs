//! The supervisor as a process, against an agent that is played.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use prover_backend::supervisor::supervisor_command::Command;
use prover_backend::supervisor::supervisor_event::Event;
use prover_backend::supervisor::supervisor_service_server::{SupervisorService, SupervisorServiceServer};
use prover_backend::supervisor::{
    Ended, Kill, PROTOCOL_VERSION, Sample, Shutdown, Start, SupervisorCommand, SupervisorEvent,
};
use rustix::process::{Pid, Signal};
use tokio::net::UnixListener;
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Longest wait for anything.
const WITHIN: Duration = Duration::from_secs(20);

/// A stream of the supervisor, as the agent has it.
struct Link {
    commands: mpsc::Sender<Result<SupervisorCommand, Status>>,
    events: Streaming<SupervisorEvent>,
}

struct Service(mpsc::Sender<Link>);

#[tonic::async_trait]
impl SupervisorService for Service {
    type SuperviseStream = ReceiverStream<Result<SupervisorCommand, Status>>;

    async fn supervise(
        &self,
        request: Request<Streaming<SupervisorEvent>>,
    ) -> Result<Response<Self::SuperviseStream>, Status> {
        let (commands, queue) = mpsc::channel(16);
        let events = request.into_inner();
        self.0
            .send(Link { commands, events })
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(queue)))
    }
}

/// An agent on a socket.
struct Agent {
    links: mpsc::Receiver<Link>,
    server: JoinHandle<()>,
}

impl Agent {
    fn listen(socket: &Path) -> Agent {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let (sender, links) = mpsc::channel(4);
        let server = tonic::transport::Server::builder()
            .add_service(SupervisorServiceServer::new(Service(sender)))
            .serve_with_incoming(UnixListenerStream::new(listener));
        let server = tokio::spawn(async move { server.await.unwrap() });
        Agent { links, server }
    }

    /// The next session, after its hello.
    async fn session(&mut self) -> Session {
        let link = within("a session", self.links.recv()).await.unwrap();
        let mut session = Session {
            link,
            lines: Vec::new(),
            last_sample: None,
        };
        let Event::Hello(hello) = session.event().await else {
            panic!("the first event is no hello")
        };
        assert_eq!(hello.protocol_version, PROTOCOL_VERSION);
        session
    }
}

struct Session {
    link: Link,
    lines: Vec<String>,
    last_sample: Option<Sample>,
}

impl Session {
    async fn send(&self, command: Command) {
        let command = SupervisorCommand {
            command: Some(command),
        };
        self.link.commands.send(Ok(command)).await.unwrap();
    }

    async fn event(&mut self) -> Event {
        let event = within("an event", self.link.events.message()).await;
        event.unwrap().expect("the stream ended").event.unwrap()
    }

    /// The next event that is neither a line nor a sample, which are kept.
    async fn life(&mut self) -> Event {
        loop {
            match self.event().await {
                Event::Output(output) => self.lines.push(output.line),
                Event::Sample(sample) => self.last_sample = Some(sample),
                other => return other,
            }
        }
    }

    async fn start(&mut self) -> u32 {
        self.start_with(&[]).await
    }

    async fn start_with(&mut self, environment: &[(&str, &str)]) -> u32 {
        let environment: HashMap<String, String> = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        self.send(Command::Start(Start { environment })).await;
        match self.life().await {
            Event::Started(started) => started.process_id,
            other => panic!("expected a start, got {other:?}"),
        }
    }

    async fn ended(&mut self) -> Ended {
        match self.life().await {
            Event::Ended(ended) => ended,
            other => panic!("expected an end, got {other:?}"),
        }
    }

    /// Waits until the prover has printed a line.
    async fn line(&mut self, wanted: &str) {
        while !self.lines.iter().any(|line| line == wanted) {
            match self.event().await {
                Event::Output(output) => self.lines.push(output.line),
                Event::Sample(sample) => self.last_sample = Some(sample),
                other => panic!("expected the line {wanted}, got {other:?}"),
            }
        }
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WITHIN, future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come within {WITHIN:?}"))
}

/// A supervisor that runs a script of the shell.
struct Stage {
    folder: tempfile::TempDir,
    agent: Agent,
    supervisor: Child,
}

impl Stage {
    fn socket_in(folder: &tempfile::TempDir) -> PathBuf {
        folder.path().join("cpu-0.sock")
    }

    fn spawn(folder: &tempfile::TempDir, command: &[&str]) -> Child {
        Stage::spawn_by(
            tokio::process::Command::new(env!("CARGO_BIN_EXE_prover-supervisor")),
            folder,
            command,
        )
    }

    fn spawn_by(
        mut supervisor: tokio::process::Command,
        folder: &tempfile::TempDir,
        command: &[&str],
    ) -> Child {
        supervisor
            .arg("--socket")
            .arg(Stage::socket_in(folder))
            .arg("--")
            .args(command)
            .current_dir(folder.path())
            .env("FROM_CONTAINER", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    fn command(command: &[&str]) -> Stage {
        let folder = tempfile::tempdir().unwrap();
        let agent = Agent::listen(&Stage::socket_in(&folder));
        let supervisor = Stage::spawn(&folder, command);
        Stage {
            folder,
            agent,
            supervisor,
        }
    }

    fn script(script: &str) -> Stage {
        Stage::command(&["/bin/sh", "-c", script])
    }

    fn process(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.supervisor.id().unwrap()).unwrap()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.process(), signal).unwrap();
    }

    fn read_process(&self, file: &str) -> Option<Pid> {
        let text = std::fs::read_to_string(self.folder.path().join(file)).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }
}

/// Whether a process runs or is a zombie.
fn exists(process: Pid) -> bool {
    rustix::process::test_kill_process(process).is_ok()
}

fn exit(code: i32) -> Ended {
    Ended {
        exit_code: Some(code),
        signal: None,
    }
}

fn signalled(signal: i32) -> Ended {
    Ended {
        exit_code: None,
        signal: Some(signal),
    }
}

#[tokio::test]
async fn output_exit_code_and_environment_are_as_the_agent_wants_them() {
    let mut stage = Stage::script(
        "echo \"$PROVER_AGENT_SOCKET $FROM_CONTAINER $FROM_AGENT\"; echo to-stderr >&2; printf unfinished; exit 7",
    );
    let mut session = stage.agent.session().await;
    session.start_with(&[("FROM_AGENT", "2")]).await;
    assert_eq!(session.ended().await, exit(7));
    let socket = Stage::socket_in(&stage.folder);
    session.lines.sort();
    let mut expected = [
        format!("{} 1 2", socket.display()),
        "to-stderr".to_owned(),
        "unfinished".to_owned(),
    ];
    expected.sort();
    assert_eq!(session.lines, expected);
    assert!(session.last_sample.is_some(), "figures come before the end");
    session.send(Command::Shutdown(Shutdown {})).await;
    let output = within("the end", stage.supervisor.wait_with_output())
        .await
        .unwrap();
    assert!(output.status.success());
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(
        stdout.ends_with("unfinished"),
        "kubectl logs shows it too: {stdout}"
    );
    assert!(String::from_utf8(output.stderr).unwrap().contains("to-stderr"));
}

#[tokio::test]
async fn a_crash_is_told_with_its_signal_and_the_next_start_follows_at_once() {
    let mut stage = Stage::script("kill -SEGV $$");
    let mut session = stage.agent.session().await;
    let mut processes = Vec::new();
    for _ in 0..5 {
        processes.push(session.start().await);
        assert_eq!(session.ended().await, signalled(11));
    }
    processes.dedup();
    assert_eq!(processes.len(), 5);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told_and_does_not_end_the_supervisor() {
    let mut stage = Stage::command(&["/nowhere/prover"]);
    let mut session = stage.agent.session().await;
    for _ in 0..2 {
        session
            .send(Command::Start(Start {
                environment: HashMap::new(),
            }))
            .await;
        let Event::StartFailed(failed) = session.life().await else {
            panic!("it did not fail")
        };
        assert!(failed.problem.contains("/nowhere/prover"), "{}", failed.problem);
    }
}

#[tokio::test]
async fn a_second_start_while_it_runs_is_refused() {
    let mut stage = Stage::script("echo up; exec sleep 600");
    let mut session = stage.agent.session().await;
    session.start().await;
    session.line("up").await;
    session
        .send(Command::Start(Start {
            environment: HashMap::new(),
        }))
        .await;
    assert!(matches!(session.life().await, Event::StartFailed(_)));
    session.send(Command::Kill(Kill {})).await;
    assert_eq!(session.ended().await, signalled(9));
}

#[tokio::test]
async fn a_kill_reaches_grandchildren_and_those_that_left_the_group() {
    let mut stage = Stage::script(
        "sleep 600 & echo $! >grandchild; setsid sh -c 'echo $$ >escaped; exec sleep 600' & \
         while [ ! -s escaped ]; do :; done; echo up; wait",
    );
    let mut session = stage.agent.session().await;
    session.start().await;
    session.line("up").await;
    let (grandchild, escaped) = (
        stage.read_process("grandchild").unwrap(),
        stage.read_process("escaped").unwrap(),
    );
    assert!(exists(grandchild) && exists(escaped));
    session.send(Command::Kill(Kill {})).await;
    assert_eq!(session.ended().await, signalled(9));
    assert!(!exists(grandchild), "a member of the group lives on");
    assert!(!exists(escaped), "a process that left the group lives on");
}

#[tokio::test]
async fn what_an_ended_prover_leaves_behind_is_gone_before_its_end_is_told() {
    let mut stage = Stage::script("setsid sleep 600 & echo $! >left; exit 3");
    let mut session = stage.agent.session().await;
    session.start().await;
    assert_eq!(session.ended().await, exit(3));
    assert!(!exists(stage.read_process("left").unwrap()));
}

#[tokio::test]
async fn orphans_are_reaped_while_the_prover_runs() {
    // The subshell ends at once, its child becomes ours and ends when it is told to.
    let mut stage = Stage::script(
        "mkfifo go; (sh -c 'echo $$ >orphan; read -r line <go' &); while [ ! -s orphan ]; do :; done; \
         echo up; echo x >go; exec sleep 600",
    );
    let mut session = stage.agent.session().await;
    let prover = session.start().await;
    session.line("up").await;
    let orphan = stage.read_process("orphan").unwrap();
    within("the reaping of the orphan", async {
        while exists(orphan) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(exists(Pid::from_raw(i32::try_from(prover).unwrap()).unwrap()));
    session.send(Command::Kill(Kill {})).await;
    assert_eq!(session.ended().await, signalled(9));
}

#[tokio::test]
async fn a_broken_stream_kills_the_prover_and_the_next_agent_is_found() {
    let mut stage = Stage::script("echo up; exec sleep 600");
    let mut session = stage.agent.session().await;
    let prover = session.start().await;
    session.line("up").await;
    let prover = Pid::from_raw(i32::try_from(prover).unwrap()).unwrap();
    // As if the agent's container had been killed.
    stage.agent.server.abort();
    drop(session);
    within("the end of the prover", async {
        while exists(prover) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut next = Agent::listen(&Stage::socket_in(&stage.folder));
    let mut session = next.session().await;
    session.start().await;
    session.line("up").await;
}

#[tokio::test]
async fn an_agent_that_comes_late_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut supervisor = Stage::spawn(&folder, &["/bin/true"]);
    let mut log = tokio::io::BufReader::new(supervisor.stderr.take().unwrap());
    let mut line = String::new();
    within(
        "the first failure",
        tokio::io::AsyncBufReadExt::read_line(&mut log, &mut line),
    )
    .await
    .unwrap();
    assert!(line.contains("waiting for the agent"), "{line}");
    let mut agent = Agent::listen(&Stage::socket_in(&folder));
    let mut session = agent.session().await;
    session.start().await;
    assert_eq!(session.ended().await, exit(0));
}

#[tokio::test]
async fn huge_output_is_cut_and_never_loses_the_end() {
    // 64 MiB without a line break, then more lines than the queue holds.
    let mut stage = Stage::script("head -c 67108864 /dev/zero | tr '\\0' x; echo; seq 1 20000; exit 5");
    tokio::spawn(drain(stage.supervisor.stdout.take().unwrap()));
    let mut session = stage.agent.session().await;
    session.start().await;
    assert_eq!(session.ended().await, exit(5));
    let longest = session.lines.iter().map(String::len).max().unwrap();
    assert!(longest <= 4096, "a line of {longest} bytes");
    assert_eq!(session.lines.last().unwrap(), "20000");
}

async fn drain(mut output: impl tokio::io::AsyncRead + Unpin) {
    let _ = tokio::io::copy(&mut output, &mut tokio::io::sink()).await;
}

#[tokio::test]
async fn the_first_termination_changes_nothing_and_the_second_ends_everything() {
    let mut stage = Stage::script("echo $$ >prover; echo up; exec sleep 600");
    let mut session = stage.agent.session().await;
    session.start().await;
    session.line("up").await;
    stage.signal(Signal::TERM);
    // It still does what the agent says.
    session.send(Command::Kill(Kill {})).await;
    assert_eq!(session.ended().await, signalled(9));
    session.start().await;
    session.lines.clear();
    session.line("up").await;
    let prover = stage.read_process("prover").unwrap();
    stage.signal(Signal::TERM);
    let status = within("the end", stage.supervisor.wait()).await.unwrap();
    assert!(status.success());
    assert!(!exists(prover));
}

#[tokio::test]
async fn shutdown_kills_the_prover_tells_its_end_and_ends() {
    let mut stage = Stage::script("trap '' TERM; echo up; while :; do sleep 1; done");
    let mut session = stage.agent.session().await;
    session.start().await;
    session.line("up").await;
    session.send(Command::Shutdown(Shutdown {})).await;
    assert_eq!(session.ended().await, signalled(9));
    let status = within("the end", stage.supervisor.wait()).await.unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn processor_time_is_counted_since_the_start() {
    let mut stage = Stage::script("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done");
    let mut session = stage.agent.session().await;
    session.start().await;
    assert_eq!(session.ended().await, exit(0));
    let first = session.last_sample.take().unwrap();
    if first.peak_memory_bytes > 0 {
        assert!(first.cpu_milliseconds > 0, "{first:?}");
    }
}

#[tokio::test]
async fn as_the_first_process_of_a_container_it_outlives_every_termination_and_ends_at_the_agents_word() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = Agent::listen(&Stage::socket_in(&folder));
    // A process namespace of its own, as a container has it. `--kill-child`: a failed test leaves nothing.
    let mut namespace = tokio::process::Command::new("unshare");
    namespace
        .args([
            "--user",
            "--map-root-user",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
        ])
        .arg(env!("CARGO_BIN_EXE_prover-supervisor"));
    let script = "(setsid sleep 600 &); echo up $$; exec sleep 600";
    let mut unshare = Stage::spawn_by(namespace, &folder, &["/bin/sh", "-c", script]);
    let mut session = agent.session().await;
    let prover = session.start().await;
    session.line(&format!("up {prover}")).await;
    let supervisor = children_of(unshare.id().unwrap());
    assert_eq!(supervisor.len(), 1);
    for _ in 0..3 {
        rustix::process::kill_process(supervisor[0], Signal::TERM).unwrap();
        rustix::process::kill_process(supervisor[0], Signal::INT).unwrap();
    }
    session.send(Command::Kill(Kill {})).await;
    assert_eq!(session.ended().await, signalled(9));
    let own = u32::try_from(supervisor[0].as_raw_nonzero().get()).unwrap();
    assert!(children_of(own).is_empty(), "the orphan is gone too, and reaped");
    session.start().await;
    session.send(Command::Shutdown(Shutdown {})).await;
    let status = within("the end", unshare.wait()).await.unwrap();
    assert!(status.success(), "{status:?}");
}

/// Processes, zombies among them, whose parent is this one.
fn children_of(process: u32) -> Vec<Pid> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|child| {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            stat.rsplit_once(')')
                .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok())
                == Some(process)
        })
        .filter_map(Pid::from_raw)
        .collect()
}
