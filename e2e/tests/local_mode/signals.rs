//! The command is interrupted or killed: nothing of it stays behind.

use std::time::Duration;

use prover_e2e::{Job, Model, Running, await_until};
use rustix::process::Signal;

const PROGRESS_LIMIT: Duration = Duration::from_secs(60);

fn mk_running_job() -> Running {
    let model = Model::new(50).duration("prove", 300);
    let mut running = Job::new(model.manifest("long").text()).start();
    running.await_done("Prove", 2, PROGRESS_LIMIT);
    assert_eq!(
        running.agents().len(),
        2,
        "the test must be able to see what it looks for"
    );
    assert!(
        running.backends().len() >= 2,
        "one for each device, and perhaps one for the planner"
    );
    running
}

#[test]
fn an_interrupted_job_leaves_nothing_running() {
    for (signal, code, reason) in [
        (Signal::INT, 130, "Interrupted"),
        (Signal::TERM, 143, "Terminated"),
    ] {
        let running = mk_running_job();
        running.signal(signal);
        let done = running.wait().expect_code(code);
        let report = done.report();
        assert_eq!(
            (&report["outcome"], &report["reason"]),
            (&"Interrupted".into(), &reason.into())
        );
        assert_eq!(report["exitCode"], code);
        let left: Vec<_> = std::fs::read_dir(done.folder().join("tmp"))
            .unwrap()
            .flatten()
            .collect();
        assert!(left.is_empty(), "{left:?} was left behind");
    }
}

#[test]
fn a_killed_command_takes_its_workers_and_backends_with_it() {
    let running = mk_running_job();
    let processes = running.processes();
    assert!(
        processes.len() >= 5,
        "command, two workers and two backends: {processes:?}"
    );
    running.signal(Signal::KILL);
    await_until(
        "all processes are gone with their parent",
        Duration::from_secs(10),
        || running.processes().is_empty().then_some(()),
    );
}
