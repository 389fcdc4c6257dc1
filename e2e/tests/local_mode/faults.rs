//! Things that break while a job runs: it still completes, or fails for a reason that is told.

use std::time::Duration;

use prover_e2e::{Job, Kill, Model};
use serde_json::{Value, json};

/// Longest wait for progress; a job of these tests takes a few seconds.
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);
/// Segments of the jobs in which something is killed.
const SEGMENTS: u64 = 12;

/// A job that lasts long enough to be hit in the middle.
fn mk_slow_job(name: &str) -> Job {
    let model = Model::new(SEGMENTS)
        .duration("prove", 600)
        .duration("lift", 150)
        .duration("join", 150);
    Job::new(model.manifest(name).text())
}

fn task_of<'a>(report: &'a Value, request_id: &str) -> &'a Value {
    report["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|task| task["requestId"] == request_id)
        .unwrap()
}

#[test]
fn a_proof_that_misses_something_fails_at_once_with_what_is_missing() {
    let withheld = "CircuitsMissing: the circuits at /circuits are incomplete: .complete is missing";
    let done = Job::new(Model::new(2).manifest("withheld").text())
        .environment("PROVER_EMULATED_WITHHELD", withheld)
        .run()
        .expect_code(1);
    let report = done.report();
    assert_eq!(report["reason"], "CircuitsMissing");
    let message = report["message"].as_str().unwrap();
    assert!(message.contains(".complete is missing"), "{message}");
}

#[test]
fn a_killed_backend_costs_only_what_it_was_running() {
    let mut running = mk_slow_job("kill-backend").start();
    running.await_done("Prove", 3, PROGRESS_LIMIT);
    let kill = Kill::of(&running, running.backends().first().into_iter());
    let done = running.wait().expect_code(0);
    // What ran in the process: an attempt of the device, or the planner.
    kill.expect_nothing_finished_ran_again(&done.report(), 1..=1);
    assert_eq!(
        done.report()["workers"]["restarts"],
        0,
        "the worker itself must have lived on"
    );
}

#[test]
fn a_killed_agent_costs_only_what_it_was_running() {
    let mut running = mk_slow_job("kill-agent").start();
    running.await_done("Prove", 3, PROGRESS_LIMIT);
    let kill = Kill::of(&running, running.agents().first().into_iter());
    let done = running.wait().expect_code(0);
    // What ran on its device, what it had fetched ahead, and perhaps the planner.
    kill.expect_nothing_finished_ran_again(&done.report(), 1..=3);
    assert_eq!(done.report()["workers"]["restarts"], 1);
    assert!(done.stderr.contains("signal 9"), "{}", done.stderr);
}

#[test]
fn all_agents_killed_at_once_come_back() {
    let mut running = mk_slow_job("kill-agents").start();
    running.await_done("Prove", 3, PROGRESS_LIMIT);
    let kill = Kill::of(&running, running.agents().iter());
    let done = running.wait().expect_code(0);
    kill.expect_nothing_finished_ran_again(&done.report(), 1..=5);
    assert_eq!(done.report()["workers"]["restarts"], 2);
}

#[test]
fn a_backend_that_crashes_once_is_tried_again() {
    for effect in [
        json!("abort"),
        json!("segmentationFault"),
        json!("kill"),
        json!({"exit": 9}),
        json!("panic"),
    ] {
        let model = Model::new(4)
            .duration("prove", 20)
            .failure(json!({"task": "prove", "index": 2, "attempts": [1], "effect": effect}));
        let done = Job::new(model.manifest("crash").text()).run().expect_code(0);
        let report = done.report();
        assert_eq!(task_of(&report, "prove-2")["attempts"], 2, "{effect}");
        assert_eq!(report["attempts"]["failed"], 1, "{effect}");
    }
}

#[test]
fn a_backend_that_hangs_is_killed_and_tried_again() {
    let model =
        Model::new(3).failure(json!({"task": "prove", "index": 1, "attempts": [1], "effect": "hang"}));
    let done = Job::new(model.manifest("hang").text())
        .environment("PROVER_EMULATED_HANG_AFTER_MS", "1500")
        .run()
        .expect_code(0);
    assert_eq!(task_of(&done.report(), "prove-1")["attempts"], 2);
}

#[test]
fn out_of_memory_plans_the_job_again_with_smaller_segments() {
    let model = Model::new(3).failure(json!({"task": "prove", "belowReduction": 1, "effect": "outOfMemory"}));
    let done = Job::new(model.manifest("memory").text()).run().expect_code(0);
    let report = done.report();
    assert_eq!(report["replans"], 1);
    assert_eq!(
        report["execution"]["segments"], 6,
        "half the size means twice as many"
    );
}

#[test]
fn a_task_that_always_kills_its_backend_is_quarantined_and_fails_the_job() {
    let model = Model::new(4).failure(json!({"task": "prove", "index": 1, "effect": "abort"}));
    let done = Job::new(model.manifest("poison").text()).run().expect_code(1);
    let report = done.report();
    assert_eq!(report["outcome"], "Failed");
    assert_eq!(report["proved"], false);
    let attempts = task_of(&report, "prove-1")["attempts"].as_u64().unwrap();
    assert!(
        (2..=6).contains(&attempts),
        "{attempts} attempts of a poisonous task"
    );
    let message = report["message"].as_str().unwrap();
    assert!(message.contains("prove"), "{message}");
}

#[test]
fn a_fatal_failure_ends_the_job_at_once_with_the_provers_words() {
    let model = Model::new(4).failure(json!({"task": "lift", "index": 0, "effect": "fatal"}));
    let done = Job::new(model.manifest("fatal").text()).run().expect_code(1);
    let report = done.report();
    assert_eq!(task_of(&report, "lift-0")["attempts"], 1);
    assert!(
        report["message"].as_str().unwrap().contains("lift"),
        "{}",
        report["message"]
    );
    assert!(!done.output("fatal.proof").exists());
}

#[test]
fn a_task_that_fails_again_and_again_reaches_the_retry_limit() {
    let model = Model::new(2).failure(json!({"task": "prove", "index": 0, "effect": "retryable"}));
    let manifest = model.manifest("retries").spec("retryLimit", json!(1));
    let done = Job::new(manifest.text()).run().expect_code(1);
    assert_eq!(task_of(&done.report(), "prove-0")["attempts"], 2);
}

#[test]
fn a_job_that_takes_too_long_is_given_up() {
    let model = Model::new(2).duration("prove", 600_000);
    let done = Job::new(model.manifest("late").text())
        .arguments(["--timeout", "2s"])
        .run()
        .expect_code(1);
    assert_eq!(done.report()["reason"], "TimedOut");
    assert!(done.stderr.contains("--timeout"), "{}", done.stderr);
}
