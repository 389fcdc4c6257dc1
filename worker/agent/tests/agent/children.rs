//! Children that crash, hang, or can't be started: their attempts fail with a class of their own, the worker lives.

use std::os::unix::fs::PermissionsExt;

use prover_agent::{AgentError, BackendPlace, Departure};
use prover_wire::protocol::worker_message::Message as Said;
use prover_wire::protocol::{Assign, FailureClass};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::steps::Step;
use crate::support::{Bench, Session, mk_assign, mk_plan, process_gone};

fn signal(process: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(process).unwrap()).unwrap(), signal).unwrap();
}

async fn the_next_attempt_succeeds(session: &mut Session, attempt: u64) {
    session.assign(mk_assign(attempt, &[])).await;
    session.started(attempt).await;
    session.succeeded(attempt).await;
    session.acknowledge(attempt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_child_fails_its_attempt_as_crashed_and_the_next_one_runs_on_a_new_child() {
    let mut bench = Bench::mk().await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    let steps = [Step::ProcessId(bench.path("pid")), bench.step_wait("never")];
    session.assign(mk_assign(1, &steps)).await;
    session.started(1).await;
    let process = bench.process_id("pid").await;
    signal(process, Signal::KILL);
    let failed = session.failed_with(1, FailureClass::ChildCrashed).await;
    assert!(
        failed.message.contains("SIGKILL from outside"),
        "{}",
        failed.message
    );
    session.acknowledge(1).await;
    session
        .assign(mk_assign(2, &[Step::ProcessId(bench.path("second"))]))
        .await;
    session.started(2).await;
    session.succeeded(2).await;
    session.acknowledge(2).await;
    assert_ne!(bench.process_id("second").await, process);
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_is_told_with_signal_or_exit_code_and_the_childs_last_words() {
    let mut bench = Bench::mk().await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    let cases = [
        (Step::Exit(42), "BackendCrashed", "exit code 42"),
        (Step::Signal(Signal::SEGV.as_raw()), "BackendCrashed", "SIGSEGV"),
        (
            Step::Signal(Signal::ILL.as_raw()),
            "BackendBuiltForAnotherCpu",
            "built for another CPU",
        ),
    ];
    for (attempt, (step, reason, words)) in (1..).zip(cases) {
        session
            .assign(mk_assign(
                attempt,
                &[Step::Print("these are my last words".to_owned()), step],
            ))
            .await;
        session.started(attempt).await;
        let failed = session.failed_with(attempt, FailureClass::ChildCrashed).await;
        assert_eq!(failed.reason, reason);
        assert!(failed.message.contains(words), "{}", failed.message);
        assert!(
            failed.message.contains("these are my last words"),
            "{}",
            failed.message
        );
        session.acknowledge(attempt).await;
    }
    the_next_attempt_succeeds(&mut session, 9).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_child_is_killed_and_its_attempt_fails_as_hung() {
    let mut bench = Bench::mk().await;
    bench.environment("TEST_HANG_AFTER_MS", "1500");
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    let steps = [
        Step::ProcessId(bench.path("pid")),
        Step::Signal(Signal::STOP.as_raw()),
    ];
    session.assign(mk_assign(1, &steps)).await;
    session.started(1).await;
    let failed = session.failed_with(1, FailureClass::ChildHung).await;
    assert!(failed.message.contains("was silent for"), "{}", failed.message);
    process_gone(bench.process_id("pid").await).await;
    session.acknowledge(1).await;
    the_next_attempt_succeeds(&mut session, 2).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_on_the_device_leaves_the_planner_alone() {
    let mut bench = Bench::mk().await;
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    session.assign(mk_plan(1, &[bench.step_wait("gate")])).await;
    session.started(1).await;
    session.assign(mk_assign(2, &[Step::Exit(1)])).await;
    session.started(2).await;
    session.failed_with(2, FailureClass::ChildCrashed).await;
    bench.open_gate("gate");
    session.succeeded(1).await;
    session.acknowledge(1).await;
    session.acknowledge(2).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_never_starts_ends_the_agent_with_the_backends_last_words() {
    let mut bench = Bench::mk().await;
    bench.environment("TEST_REFUSE_TO_START", "1");
    let error = bench.run().ended().await.unwrap_err();
    assert!(matches!(error, AgentError::StartBackend { .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("exit code 9"), "{message}");
    assert!(message.contains("was told not to start"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_child_does_not_start_again_is_unusable_until_it_does() {
    let mut bench = Bench::mk().await;
    // A program that starts the backend only as long as a file is there.
    let switch = bench.path("may-start");
    std::fs::write(&switch, "").unwrap();
    let script = bench.path("backend.sh");
    let program = bench.program().display().to_string();
    let text = format!(
        "#!/bin/sh\n[ -e {} ] || {{ echo switched off >&2; exit 5; }}\nexec {program}\n",
        switch.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    bench.config.backend = BackendPlace::Command(script);
    let agent = bench.run();
    let mut session = bench.coordinator.welcomed(1).await;
    std::fs::remove_file(&switch).unwrap();
    session
        .assign(mk_assign(1, &[bench.step_wait("gate"), Step::Exit(1)]))
        .await;
    session.started(1).await;
    session
        .assign(Assign {
            prefetch: true,
            ..mk_assign(7, &[])
        })
        .await;
    session.recall(99).await;
    assert!(!session.recall_answered(99).await);
    bench.open_gate("gate");
    session.failed_with(1, FailureClass::ChildCrashed).await;
    session.acknowledge(1).await;
    let Said::DeviceChanged(change) = session.next().await else {
        panic!("the device should be unusable")
    };
    assert!(!change.usable);
    assert!(change.reason.contains("switched off"), "{}", change.reason);
    assert!(session.recall_answered(7).await, "what waited is given back");
    session.assign(mk_assign(2, &[])).await;
    let failed = session.failed_with(2, FailureClass::Retryable).await;
    assert_eq!(failed.reason, "DeviceUnusable");
    session.acknowledge(2).await;
    std::fs::write(&switch, "").unwrap();
    let Said::DeviceChanged(change) = session.next().await else {
        panic!("the device should be usable")
    };
    assert!(change.usable);
    the_next_attempt_succeeds(&mut session, 3).await;
    assert_eq!(agent.drained().await, Departure::Empty);
}
