//! The process of a worker: signals, exit codes, probes, and that nothing outlives it.

#![allow(clippy::unwrap_used)]

mod containers;
#[path = "../../agent/tests/support/mod.rs"]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use prover_agent::BackendPlace;
use prover_wire::protocol::Assign;
use prover_wire::protocol::worker_message::Message as Said;
use rustix::process::{Pid, Signal, kill_process};
use support::steps::Step;
use support::{Bench, Session, mk_assign, mk_plan, process_gone, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// A credential in the environment of every worker.
const SECRET: &str = "the-secret-of-the-store";

/// A worker process; killed with its test.
struct Worker {
    child: Child,
    log: PathBuf,
}

impl Worker {
    /// Starts a worker; `more` is added, or replaces what has the same name.
    fn start(bench: &Bench, more: &[&str]) -> Self {
        let config = &bench.config;
        let mut arguments = std::collections::BTreeMap::from([
            ("--coordinator", config.coordinator.clone()),
            ("--worker-id", config.worker_id.clone()),
            ("--token-file", config.token_file.display().to_string()),
            ("--store", config.store.clone()),
            ("--host-memory", "1000000000".to_owned()),
            ("--devices", "1".to_owned()),
            ("--work-directory", config.work_directory.display().to_string()),
            match &config.backend {
                BackendPlace::Command(program) => ("--backend-command", program.display().to_string()),
                BackendPlace::Sockets(folder) => ("--backend-sockets", folder.display().to_string()),
            },
        ]);
        arguments.extend(more.chunks(2).map(|pair| (pair[0], pair[1].to_owned())));
        let log = bench.path("worker.log");
        let child = Command::new(env!("CARGO_BIN_EXE_prover-worker"))
            .args(arguments.iter().flat_map(|(name, value)| [*name, value.as_str()]))
            .env("PROVER_LOG", "info")
            // None of a prover's business.
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("PROVER_TEST_PASSED_ON", "wanted")
            // Means something else to the prover than to a worker.
            .env("PROVER_DEVICES", "those of the prover")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn signal(&self, signal: Signal) {
        let process = Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap()).unwrap();
        kill_process(process, signal).unwrap();
    }

    async fn ended(&mut self) -> ExitStatus {
        within("the end of the worker", self.child.wait()).await.unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_sigterm_the_worker_finishes_what_runs_and_exits_with_0() {
    let mut bench = Bench::mk().await;
    let mut worker = Worker::start(&bench, &[]);
    let mut session = bench.coordinator.welcomed(1).await;
    session
        .assign(mk_assign(
            1,
            &[Step::ProcessId(bench.path("pid")), bench.step_wait("gate")],
        ))
        .await;
    session.started(1).await;
    let child = bench.process_id("pid").await;
    worker.signal(Signal::TERM);
    let Said::Draining(draining) = session.next().await else {
        panic!("the drain should be told first")
    };
    assert!(draining.seconds_left > 500, "{draining:?}");
    bench.open_gate("gate");
    session.succeeded(1).await;
    session.acknowledge(1).await;
    assert_eq!(worker.ended().await.code(), Some(0));
    process_gone(child).await;
    assert!(
        worker.log().contains("left with nothing undone"),
        "{}",
        worker.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_of_its_drain_time_the_worker_exits_with_0_and_says_what_is_undone() {
    let mut bench = Bench::mk().await;
    let mut worker = Worker::start(&bench, &["--drain-seconds", "1"]);
    let mut session = bench.coordinator.welcomed(1).await;
    session
        .assign(mk_assign(
            1,
            &[Step::ProcessId(bench.path("pid")), bench.step_wait("never")],
        ))
        .await;
    session.started(1).await;
    let child = bench.process_id("pid").await;
    worker.signal(Signal::TERM);
    let Said::Draining(_) = session.next().await else {
        panic!("the drain should be told first")
    };
    session
        .failed_with(1, prover_wire::protocol::FailureClass::WorkerLeaving)
        .await;
    // Never acknowledged: the worker leaves all the same.
    assert_eq!(worker.ended().await.code(), Some(0));
    process_gone(child).await;
    assert!(
        worker.log().contains("left after the drain time"),
        "{}",
        worker.log()
    );
}

/// Runs an attempt that tells the variables of its process.
async fn environment_of_a_backend(bench: &Bench, session: &mut Session) -> String {
    let assign = mk_assign(
        1,
        &[Step::Environment {
            output: "told".to_owned(),
        }],
    );
    session
        .assign(Assign {
            outputs: vec!["told".to_owned()],
            ..assign
        })
        .await;
    session.started(1).await;
    let succeeded = session.succeeded(1).await;
    bench.content(&succeeded.outputs[0]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn backends_get_neither_the_credentials_of_the_worker_nor_the_path_of_its_token() {
    let mut bench = Bench::mk().await;
    let mut worker = Worker::start(&bench, &["--backend-env", "PROVER_TEST_PASSED_ON"]);
    let mut session = bench.coordinator.welcomed(1).await;
    let told = environment_of_a_backend(&bench, &mut session).await;
    for part in [
        SECRET,
        "AWS_",
        "TOKEN",
        &bench.config.token_file.display().to_string(),
    ] {
        assert!(!told.contains(part), "{part} in {told}");
    }
    for part in ["PATH=", "PROVER_DEVICE=cpu-0", "PROVER_TEST_PASSED_ON=wanted"] {
        assert!(told.contains(part), "{part} not in {told}");
    }
    session.acknowledge(1).await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_variable_of_the_prover_may_have_the_name_of_an_argument_of_the_worker() {
    let mut bench = Bench::mk().await;
    let mut worker = Worker::start(&bench, &["--backend-env", "PROVER_DEVICES"]);
    let mut session = bench.coordinator.welcomed(1).await;
    let told = environment_of_a_backend(&bench, &mut session).await;
    assert!(told.contains("PROVER_DEVICES=those of the prover"), "{told}");
    session.acknowledge(1).await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_the_worker_at_once_with_its_children() {
    let mut bench = Bench::mk().await;
    let mut worker = Worker::start(&bench, &[]);
    let mut session = bench.coordinator.welcomed(1).await;
    session
        .assign(mk_assign(
            1,
            &[Step::ProcessId(bench.path("pid")), bench.step_wait("never")],
        ))
        .await;
    session.started(1).await;
    let child = bench.process_id("pid").await;
    worker.signal(Signal::TERM);
    let Said::Draining(_) = session.next().await else {
        panic!("the drain should be told first")
    };
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await.code(), Some(130));
    process_gone(child).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_leaves_no_child_behind() {
    let mut bench = Bench::mk().await;
    let mut worker = Worker::start(&bench, &[]);
    let session = bench.coordinator.welcomed(1).await;
    // One that can't notice by itself that its agent is gone, and one that can.
    let blocked = [
        Step::ProcessId(bench.path("device")),
        Step::Signal(Signal::STOP.as_raw()),
    ];
    session.assign(mk_assign(1, &blocked)).await;
    session
        .assign(mk_plan(
            2,
            &[Step::ProcessId(bench.path("control")), bench.step_wait("never")],
        ))
        .await;
    let children = [
        bench.process_id("device").await,
        bench.process_id("control").await,
    ];
    worker.signal(Signal::KILL);
    assert_eq!(worker.ended().await.signal(), Some(Signal::KILL.as_raw()));
    for child in children {
        process_gone(child).await;
    }
    // The same work directory serves the next worker, which holds nothing of the first.
    let mut next = Worker::start(&bench, &[]);
    let session = bench.coordinator.welcomed(1).await;
    assert!(session.hello.held.is_empty());
    next.signal(Signal::TERM);
    assert_eq!(next.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_takes_a_child_with_it_that_does_not_listen_to_anybody() {
    let mut bench = Bench::mk().await;
    // Never opens a session, so only the kernel can tell it that its agent is gone.
    let (script, part, process) = (bench.path("backend.sh"), bench.path("part"), bench.path("pid"));
    let (part, process) = (part.display(), process.display());
    let text = format!("#!/bin/sh\necho -n $$ > {part} && mv {part} {process}\nexec sleep 300\n");
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    bench.config.backend = BackendPlace::Command(script);
    let mut worker = Worker::start(&bench, &[]);
    let child = bench.process_id("pid").await;
    worker.signal(Signal::KILL);
    assert_eq!(worker.ended().await.signal(), Some(Signal::KILL.as_raw()));
    process_gone(child).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_and_metrics_are_served_and_readiness_does_not_wait_for_a_welcome() {
    let mut bench = Bench::mk().await;
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut worker = Worker::start(&bench, &["--metrics-address", &port.to_string()]);
    let session = bench.coordinator.session().await;
    assert!(fetch(port, "/healthz").await.contains("200 OK"));
    assert!(
        fetch(port, "/readyz").await.contains("200 OK"),
        "not welcomed yet"
    );
    assert!(fetch(port, "/metrics").await.contains("prover_agent_connected 0"));
    session.welcome(1, &[]).await;
    let connected = async { while !fetch(port, "/metrics").await.contains("prover_agent_connected 1") {} };
    within("the connection", connected).await;
    let metrics = fetch(port, "/metrics").await;
    assert!(
        metrics.contains("prover_agent_children_started_total{device=\"cpu-0\"} 1"),
        "{metrics}"
    );
    worker.signal(Signal::INT);
    assert_eq!(worker.ended().await.code(), Some(0));
}

async fn fetch(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer))
        .await
        .unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_arguments_end_the_worker_with_2_and_a_message_that_says_what_to_write() {
    let bench = Bench::mk().await;
    let no_folder = bench.config.token_file.display().to_string();
    let cases: [(&[&str], &str); 6] = [
        (&["--coordinator", "http://192.0.2.1:7000"], "in the clear"),
        (
            &["--coordinator", "https://192.0.2.1:7000"],
            "--coordinator-ca-file",
        ),
        (
            &["--backend-command", "/nowhere/backend"],
            "/nowhere/backend is no file",
        ),
        (
            &["--work-directory", &no_folder],
            "Give --work-directory a folder",
        ),
        (&["--devices", "0"], "--devices"),
        (&["--store", "ftp://somewhere"], "ftp://somewhere"),
    ];
    for (arguments, words) in cases {
        let mut worker = Worker::start(&bench, arguments);
        assert_eq!(
            worker.ended().await.code(),
            Some(2),
            "{arguments:?}: {}",
            worker.log()
        );
        assert!(worker.log().contains(words), "{arguments:?}: {}", worker.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_never_starts_ends_the_worker_with_1_and_the_backends_words() {
    let mut bench = Bench::mk().await;
    let script = bench.path("backend.sh");
    std::fs::write(&script, "#!/bin/sh\necho no such device >&2\nexit 4\n").unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    bench.config.backend = BackendPlace::Command(script);
    let mut worker = Worker::start(&bench, &[]);
    assert_eq!(worker.ended().await.code(), Some(1), "{}", worker.log());
    assert!(worker.log().contains("no such device"), "{}", worker.log());
}
