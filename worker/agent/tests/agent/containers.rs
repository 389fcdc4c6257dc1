//! Backends in containers of their own, run by supervisors: the same attempts, failures and ends as with children.

use std::path::PathBuf;

use prover_agent::{BackendPlace, Departure};
use prover_backend::supervisor::Sample;
use prover_wire::protocol::worker_message::Message as Said;
use prover_wire::protocol::{Drain, FailureClass};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::container::Container;
use crate::support::steps::Step;
use crate::support::{Bench, Session, mk_assign, mk_plan};

/// A bench whose backends run in containers, and how one is started.
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

    fn container(&self, slot: &str) -> Container {
        let socket = self.bench.path("run").join(format!("{slot}.sock"));
        Container::start(&socket, &self.program)
    }
}

async fn succeeds(session: &mut Session, attempt: u64, steps: &[Step]) {
    session.assign(mk_assign(attempt, steps)).await;
    session.started(attempt).await;
    session.succeeded(attempt).await;
    session.acknowledge(attempt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_and_planners_run_in_containers_that_start_before_and_after_the_agent() {
    let mut pod = Pod::mk().await;
    // A socket that an agent before has left.
    std::fs::write(pod.bench.path("run/cpu-0.sock"), "").unwrap();
    let control = pod.container("control");
    let agent = pod.bench.run();
    let device = pod.container("cpu-0");
    let mut session = pod.bench.coordinator.welcomed(1).await;
    succeeds(&mut session, 1, &[]).await;
    session.assign(mk_plan(2, &[])).await;
    session.started(2).await;
    session.succeeded(2).await;
    session.acknowledge(2).await;
    assert_eq!(agent.drained().await, Departure::Empty);
    device.was_shut_down().await;
    control.was_shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_container_fails_its_attempts_at_once_and_the_next_container_goes_on() {
    let mut pod = Pod::mk().await;
    let agent = pod.bench.run();
    let (device, control) = (pod.container("cpu-0"), pod.container("control"));
    let mut session = pod.bench.coordinator.welcomed(1).await;
    session.assign(mk_plan(1, &[pod.bench.step_wait("gate")])).await;
    session.started(1).await;
    session
        .assign(mk_assign(2, &[pod.bench.step_wait("never")]))
        .await;
    session.started(2).await;
    let ended = std::time::Instant::now();
    device.end().await;
    let failed = session.failed_with(2, FailureClass::ChildCrashed).await;
    assert_eq!(failed.reason, "ContainerEnded");
    assert!(ended.elapsed().as_secs() < 2, "{:?}", ended.elapsed());
    session.acknowledge(2).await;
    // Assigned while no container runs: it waits for the next one.
    session.assign(mk_assign(3, &[])).await;
    let device = pod.container("cpu-0");
    session.started(3).await;
    session.succeeded(3).await;
    session.acknowledge(3).await;
    // The planner in its own container has noticed nothing.
    pod.bench.open_gate("gate");
    session.succeeded(1).await;
    session.acknowledge(1).await;
    assert_eq!(agent.drained().await, Departure::Empty);
    device.was_shut_down().await;
    control.was_shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_for_memory_is_known_by_the_supervisors_samples() {
    let mut pod = Pod::mk().await;
    let agent = pod.bench.run();
    let device = pod.container("cpu-0");
    let mut session = pod.bench.coordinator.welcomed(1).await;
    let steps = [
        Step::ProcessId(pod.bench.path("pid")),
        pod.bench.step_wait("never"),
    ];
    session.assign(mk_assign(1, &steps)).await;
    session.started(1).await;
    let process = pod.bench.process_id("pid").await;
    device
        .tell(Sample {
            out_of_memory_kills: 4,
            peak_memory_bytes: 700 << 20,
            cpu_milliseconds: 10,
        })
        .await;
    kill_process(
        Pid::from_raw(i32::try_from(process).unwrap()).unwrap(),
        Signal::KILL,
    )
    .unwrap();
    let failed = session.failed_with(1, FailureClass::ChildOutOfMemory).await;
    assert!(failed.message.contains("700 MiB"), "{}", failed.message);
    session.acknowledge(1).await;
    // The same container runs the next process; the kill before is no evidence any more.
    session
        .assign(mk_assign(2, &[Step::Signal(Signal::KILL.as_raw())]))
        .await;
    session.started(2).await;
    session.failed_with(2, FailureClass::ChildCrashed).await;
    session.acknowledge(2).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_a_container_is_told_with_its_last_words_and_the_backend_is_started_again_at_once() {
    let mut pod = Pod::mk().await;
    let agent = pod.bench.run();
    let device = pod.container("cpu-0");
    let mut session = pod.bench.coordinator.welcomed(1).await;
    let steps = [Step::Print("these are my last words".to_owned()), Step::Exit(42)];
    session.assign(mk_assign(1, &steps)).await;
    session.started(1).await;
    let failed = session.failed_with(1, FailureClass::ChildCrashed).await;
    assert!(failed.message.contains("exit code 42"), "{}", failed.message);
    assert!(failed.message.contains("last words"), "{}", failed.message);
    session.acknowledge(1).await;
    succeeds(&mut session, 2, &[]).await;
    assert_eq!(*device.starts.borrow(), 2);
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_backend_in_a_container_is_killed_through_its_supervisor() {
    let mut pod = Pod::mk().await;
    pod.bench.environment("TEST_HANG_AFTER_MS", "1500");
    let agent = pod.bench.run();
    let _device = pod.container("cpu-0");
    let mut session = pod.bench.coordinator.welcomed(1).await;
    let steps = [Step::Signal(Signal::STOP.as_raw())];
    session.assign(mk_assign(1, &steps)).await;
    session.started(1).await;
    session.failed_with(1, FailureClass::ChildHung).await;
    session.acknowledge(1).await;
    succeeds(&mut session, 2, &[]).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn processor_time_and_memory_of_an_attempt_are_what_the_supervisor_says() {
    let mut pod = Pod::mk().await;
    let agent = pod.bench.run();
    let device = pod.container("cpu-0");
    let mut session = pod.bench.coordinator.welcomed(1).await;
    session.assign(mk_assign(1, &[pod.bench.step_wait("gate")])).await;
    session.started(1).await;
    let (peak_memory_bytes, cpu_milliseconds) = (5 << 20, 123_456);
    device
        .tell(Sample {
            out_of_memory_kills: 3,
            peak_memory_bytes,
            cpu_milliseconds,
        })
        .await;
    // On the same stream: what was said before this line has arrived with it.
    session.assign(mk_plan(2, &[])).await;
    let _control = pod.container("control");
    session.started(2).await;
    session.succeeded(2).await;
    session.acknowledge(2).await;
    pod.bench.open_gate("gate");
    let usage = session.succeeded(1).await.usage.unwrap();
    assert_eq!(usage.cpu_milliseconds, cpu_milliseconds);
    assert_eq!(usage.peak_memory_bytes, peak_memory_bytes);
    session.acknowledge(1).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_worker_in_a_pod_stays_idle_until_it_is_asked_to_leave() {
    let mut pod = Pod::mk().await;
    let agent = pod.bench.run();
    let device = pod.container("cpu-0");
    let mut session = pod.bench.coordinator.welcomed(1).await;
    session.assign(mk_assign(1, &[pod.bench.step_wait("gate")])).await;
    session.started(1).await;
    let reason = "scaled in".to_owned();
    session.send(Drain { reason }).await;
    let Said::Draining(draining) = session.next().await else {
        panic!("the drain should be told")
    };
    assert!(draining.reason.contains("scaled in"), "{draining:?}");
    pod.bench.open_gate("gate");
    session.succeeded(1).await;
    session.acknowledge(1).await;
    // A container that ended would be started again, and take work again.
    session.assign(mk_assign(2, &[])).await;
    assert!(session.recall_answered(2).await, "nothing new is taken");
    assert_eq!(agent.drained().await, Departure::Empty);
    device.was_shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_of_the_drain_time_what_runs_in_containers_is_handed_back_and_they_are_shut_down() {
    let mut pod = Pod::mk().await;
    pod.bench.config.drain = std::time::Duration::from_millis(300);
    let agent = pod.bench.run();
    let (device, control) = (pod.container("cpu-0"), pod.container("control"));
    let mut session = pod.bench.coordinator.welcomed(1).await;
    session
        .assign(mk_assign(1, &[pod.bench.step_wait("never")]))
        .await;
    session.started(1).await;
    agent.leave.send_replace(prover_agent::Leave::Drain);
    let Said::Draining(_) = session.next().await else {
        panic!("the drain should be told first")
    };
    session.failed_with(1, FailureClass::WorkerLeaving).await;
    session.acknowledge(1).await;
    let left = Departure::OutOfTime {
        stopped: 1,
        unacknowledged: 0,
    };
    assert_eq!(agent.ended().await.unwrap(), left);
    device.was_shut_down().await;
    control.was_shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_its_container_does_not_have_ends_the_agent_and_leaves_the_container_to_the_next() {
    let mut pod = Pod::mk().await;
    pod.program = PathBuf::from("/nowhere/backend");
    let agent = pod.bench.run();
    let device = pod.container("cpu-0");
    let error = agent.ended().await.unwrap_err();
    let message = error.to_string();
    assert!(message.contains("backend-cpu-0"), "{message}");
    assert!(message.contains("No such file"), "{message}");
    assert!(device.stays());
}
