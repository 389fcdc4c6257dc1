//! The worker with the real supervisor of backends' containers. Here they are only processes: what a container adds,
//! the tests of the cluster see.

use std::path::PathBuf;
use std::process::Stdio;

use prover_agent::BackendPlace;
use rustix::process::Signal;
use tokio::process::{Child, Command};

use crate::Worker;
use crate::support::steps::Step;
use crate::support::{Bench, Session, mk_assign, process_gone, within};

/// The program of the supervisor, built beside the worker's.
fn supervisor_program() -> PathBuf {
    let worker = PathBuf::from(env!("CARGO_BIN_EXE_prover-worker"));
    let program = worker.with_file_name("prover-supervisor");
    assert!(
        program.is_file(),
        "{} is missing: run `cargo build -p prover-supervisor` first",
        program.display()
    );
    program
}

struct Pod {
    bench: Bench,
    program: PathBuf,
}

impl Pod {
    async fn mk() -> Self {
        let mut bench = Bench::mk().await;
        let program = bench.program().to_owned();
        let sockets = bench.path("run");
        std::fs::create_dir(&sockets).unwrap();
        bench.config.backend = BackendPlace::Sockets(sockets);
        Self { bench, program }
    }

    fn supervisor(&self, slot: &str) -> Child {
        Command::new(supervisor_program())
            .arg("--socket")
            .arg(self.bench.path("run").join(format!("{slot}.sock")))
            .arg("--")
            .arg(&self.program)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }
}

async fn succeeds(session: &mut Session, attempt: u64) {
    session.assign(mk_assign(attempt, &[])).await;
    session.started(attempt).await;
    session.succeeded(attempt).await;
    session.acknowledge(attempt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_leaves_ends_the_supervisors_and_one_that_is_killed_leaves_them_to_the_next() {
    let mut pod = Pod::mk().await;
    let (mut device, mut control) = (pod.supervisor("cpu-0"), pod.supervisor("control"));
    let mut first = Worker::start(&pod.bench, &[]);
    let mut session = pod.bench.coordinator.welcomed(1).await;
    let steps = [
        Step::ProcessId(pod.bench.path("pid")),
        pod.bench.step_wait("never"),
    ];
    session.assign(mk_assign(1, &steps)).await;
    session.started(1).await;
    let process = pod.bench.process_id("pid").await;
    first.signal(Signal::KILL);
    first.ended().await;
    process_gone(process).await;
    // The same supervisors serve the next agent of the pod.
    let mut next = Worker::start(&pod.bench, &[]);
    let mut session = pod.bench.coordinator.welcomed(1).await;
    succeeds(&mut session, 2).await;
    next.signal(Signal::TERM);
    assert_eq!(next.ended().await.code(), Some(0));
    for supervisor in [&mut device, &mut control] {
        let status = within("the end of a supervisor", supervisor.wait())
            .await
            .unwrap();
        assert_eq!(status.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_crashes_under_its_supervisor_is_told_with_its_last_words_and_started_again() {
    let mut pod = Pod::mk().await;
    let mut worker = Worker::start(&pod.bench, &[]);
    let _device = pod.supervisor("cpu-0");
    let mut session = pod.bench.coordinator.welcomed(1).await;
    let steps = [
        Step::Print("these are my last words".to_owned()),
        Step::Signal(Signal::SEGV.as_raw()),
    ];
    session.assign(mk_assign(1, &steps)).await;
    session.started(1).await;
    let failed = session
        .failed_with(1, prover_wire::protocol::FailureClass::ChildCrashed)
        .await;
    assert!(failed.message.contains("SIGSEGV"), "{}", failed.message);
    assert!(failed.message.contains("last words"), "{}", failed.message);
    session.acknowledge(1).await;
    succeeds(&mut session, 2).await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn processor_time_of_an_attempt_comes_from_the_supervisor() {
    let mut pod = Pod::mk().await;
    let mut worker = Worker::start(&pod.bench, &[]);
    let _device = pod.supervisor("cpu-0");
    let mut session = pod.bench.coordinator.welcomed(1).await;
    session.assign(mk_assign(1, &[Step::Burn(3_000)])).await;
    session.started(1).await;
    let usage = session.succeeded(1).await.usage.unwrap();
    assert!(usage.cpu_milliseconds > 500, "{usage:?}");
    assert!(usage.peak_memory_bytes > 1 << 20, "{usage:?}");
    session.acknowledge(1).await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.ended().await.code(), Some(0));
}
