//! Real proofs of SP1 through local mode, with processes killed meanwhile. Minutes of all cores each. Those that stand for a
//! scenario of sp1-cluster's own test suite bear its name; docs/sp1.md says where the others are shown.

use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prover_e2e::{Finished, Job, Kill, Manifest, await_until, binary, sample_program};
use rustix::process::Signal;
use serde_json::{Value, json};

/// One proof at a time: a prover takes up to 10 GB.
static PROVER: Mutex<()> = Mutex::new(());

/// Longest wait until some task of a proof is done.
const PROGRESS_LIMIT: Duration = Duration::from_secs(1200);

/// How soon a job that can't succeed must say so where no keys are needed for that.
const SOON: Duration = Duration::from_secs(60);

fn alone() -> MutexGuard<'static, ()> {
    PROVER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn manifest(name: &str, kind: &str, program: &str, max_cycles: u64) -> Manifest {
    Manifest::sp1(name, kind, &sample_program(&format!("sp1/{program}")))
        .spec("input", json!({"file": {"path": "input"}}))
        .spec("maxCycles", json!(max_cycles))
}

fn job_of(manifest: &Manifest, input: &[u8]) -> Job {
    Job::new(manifest.text()).file("input", input).workers(1)
}

fn job(name: &str, kind: &str, program: &str, input: &[u8], max_cycles: u64) -> Job {
    job_of(&manifest(name, kind, program, max_cycles), input)
}

/// Which Fibonacci number is proved: two shards, one of the program and one of its memory.
const NUMBER: u32 = 500;

fn fibonacci(name: &str, kind: &str) -> Job {
    job(name, kind, "fibonacci", &NUMBER.to_le_bytes(), 1_000_000)
}

/// A thousand permutations of Keccak: four shards of the smallest size, of the program, of its memory, and two of the precompile.
fn permutes(name: &str, kind: &str) -> Job {
    job(name, kind, "permutes", &[0; 1000], 1_000_000)
        .environment("SP1_BACKEND_ELEMENT_THRESHOLD", &(1_u64 << 26).to_string())
}

/// sp1-sdk's own verifier, in a program that has nothing of ours.
fn verify_with_sdk(done: &Finished, name: &str, program: &str) -> Output {
    Command::new(binary("prover-sp1-alone"))
        .arg("verify")
        .arg("--program")
        .arg(sample_program(&format!("sp1/{program}")))
        .arg("--proof")
        .arg(done.output(&format!("{name}.proof")))
        .output()
        .expect("prover-sp1-alone can be started")
}

fn expect_verified(done: &Finished, name: &str, program: &str) {
    let report = done.report();
    assert_eq!(
        (&report["proved"], &report["emulated"]),
        (&json!(true), &json!(false))
    );
    let output = verify_with_sdk(done, name, program);
    let accepted = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let id = report["execution"]["programId"].as_str().expect("a program id");
    assert!(accepted.contains(id), "{accepted} is not of {id}");
}

fn of_type<'a>(report: &'a Value, task_type: &str) -> Vec<&'a Value> {
    let tasks = report["tasks"].as_array().expect("tasks");
    tasks.iter().filter(|task| task["type"] == task_type).collect()
}

/// Shards that ran to their end on a device, whether their plan was in force at the end or not.
fn proved(report: &Value) -> usize {
    let shards = of_type(report, "prove-shard").into_iter();
    shards
        .filter(|task| task["state"] == "Succeeded" && task["fromCache"] == json!(false))
        .count()
}

#[test]
fn proof_mode_core() {
    let _alone = alone();
    let told = fibonacci("executed", "ExecuteOnly").run().expect_code(0);
    let gas = told.report()["execution"]["gas"].clone();
    assert!(gas.as_u64().is_some_and(|gas| gas > 0), "{gas}");
    let manifest = manifest("core", "Core", "fibonacci", 1_000_000).spec("reportGas", json!(true));
    let done = job_of(&manifest, &NUMBER.to_le_bytes()).run().expect_code(0);
    expect_verified(&done, "core", "fibonacci");
    let report = done.report();
    assert_eq!(report["execution"]["segments"], json!(2));
    assert_eq!(report["execution"]["gas"], gas, "executed beside the proof");
    assert_eq!(of_type(&report, "gas").len(), 1);
    // Of another program it is no proof.
    let other = verify_with_sdk(&done, "core", "loop");
    assert_eq!(other.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&other.stderr).contains("refused"));
}

#[test]
fn proof_mode_compressed() {
    let _alone = alone();
    let done = fibonacci("compressed", "Compressed").run().expect_code(0);
    expect_verified(&done, "compressed", "fibonacci");
    assert_eq!(of_type(&done.report(), "reduce").len(), 1);
}

#[test]
fn proof_mode_groth16_and_plonk_are_refused_within_seconds_where_circuits_are_missing() {
    let _alone = alone();
    for kind in ["Groth16", "Plonk"] {
        let started = Instant::now();
        let nowhere = "/nonexistent";
        let done = fibonacci("wrap", kind)
            .environment("SP1_GROTH16_CIRCUIT_PATH", nowhere)
            .environment("SP1_PLONK_CIRCUIT_PATH", nowhere)
            .run();
        assert_ne!(done.code(), 0);
        assert!(done.stderr.contains(kind), "{}", done.stderr);
        assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    }
}

#[test]
fn execute_only() {
    let _alone = alone();
    let done = fibonacci("executed", "ExecuteOnly").run().expect_code(0);
    let report = done.report();
    assert_eq!(report["execution"]["totalCycles"], json!(10_466));
    assert_eq!(report["execution"]["exitCode"], json!(0));
    // A byte is not the number that the program reads, so that it panics.
    let panics = job("panics", "ExecuteOnly", "fibonacci", &[0], 1_000_000)
        .run()
        .expect_code(2);
    assert_eq!(panics.report()["reason"], json!("GuestPanicked"));
    assert!(panics.stderr.contains("exit code 1"), "{}", panics.stderr);
}

#[test]
fn fatal_failure() {
    let _alone = alone();
    let limited = job("limited", "Core", "fibonacci", &500_u32.to_le_bytes(), 1000)
        .run()
        .expect_code(2);
    assert_eq!(limited.report()["reason"], json!("CycleLimitExceeded"));
    assert!(
        limited.stderr.to_lowercase().contains("cycle limit"),
        "{}",
        limited.stderr
    );
    let panics = job("panics", "Core", "fibonacci", &[0], 1_000_000)
        .run()
        .expect_code(2);
    assert_eq!(panics.report()["reason"], json!("GuestPanicked"));
    assert_eq!(proved(&panics.report()), 0, "nothing is proved about a panic");
}

#[test]
fn retryable_prove_shard() {
    let _alone = alone();
    let mut running = fibonacci("shard", "Core").start();
    running.await_running("Prove", 0, PROGRESS_LIMIT);
    let kill = Kill::of(&running, running.backends_of("cpu-0").iter());
    let done = running.wait().expect_code(0);
    expect_verified(&done, "shard", "fibonacci");
    kill.expect_nothing_finished_ran_again(&done.report(), 1..=2);
    assert_eq!(done.report()["replans"], json!(0));
}

#[test]
fn a_dead_controller_costs_no_shard_that_was_proved() {
    let _alone = alone();
    let mut running = permutes("controller", "Core").start();
    running.await_running("Prove", 2, PROGRESS_LIMIT);
    Kill::of(&running, running.backends_of("control").iter());
    let done = running.wait().expect_code(0);
    expect_verified(&done, "controller", "permutes");
    let report = done.report();
    assert_eq!(of_type(&report, "execute").len(), 2, "{report:#}");
    let cached = of_type(&report, "prove-shard")
        .into_iter()
        .filter(|task| task["fromCache"] == json!(true))
        .count();
    assert_eq!(cached, 2, "the shards that were proved: {report:#}");
    assert_eq!(proved(&report), 4, "{report:#}");
}

#[test]
fn an_executor_does_not_outlive_its_agent() {
    let _alone = alone();
    // Four cycles for each step: some seconds of execution.
    let steps = 100_000_000_u64;
    let limit = 1_000_000_000_000;
    let running = job("loops", "ExecuteOnly", "loop", &steps.to_le_bytes(), limit).start();
    let executor = await_until("the program is executed", SOON, || {
        let processes = running.processes();
        processes
            .into_iter()
            .find(|process| process.program.starts_with("sp1-native-runner"))
    });
    Kill::of(&running, running.agents().iter());
    await_until("the executor is gone", SOON, || {
        (!executor.is_alive()).then_some(())
    });
    running.signal(Signal::INT);
    let _ended = running.wait();
}

#[test]
fn worker_death_requeue() {
    let _alone = alone();
    let mut running = fibonacci("worker", "Core").start();
    running.await_running("Prove", 1, PROGRESS_LIMIT);
    Kill::of(&running, running.agents().iter());
    let done = running.wait().expect_code(0);
    expect_verified(&done, "worker", "fibonacci");
    let report = done.report();
    assert_eq!(report["workers"]["restarts"], json!(1));
    assert!(proved(&report) <= 2, "a finished shard was proved again");
}

#[test]
fn cancel_active() {
    let _alone = alone();
    let mut running = fibonacci("cancelled", "Core").start();
    running.await_running("Prove", 0, PROGRESS_LIMIT);
    let asked = Instant::now();
    running.signal(Signal::INT);
    // That nothing is left running is part of the end.
    let done = running.wait();
    assert_eq!(done.code(), 130);
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
}
