//! Real RISC Zero proofs through local mode, with processes killed meanwhile. Minutes of all cores each, so few.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prover_e2e::{Finished, Job, Kill, Manifest, bin_directory, binary, sample_program};
use serde_json::json;

/// One proof at a time: two would only take each other's cores and memory.
static PROVER: Mutex<()> = Mutex::new(());

/// Longest wait until some task of a proof is done.
const PROGRESS_LIMIT: Duration = Duration::from_secs(600);

/// Which number of Fibonacci's sequence is proved.
const N: u64 = 200;

fn alone() -> MutexGuard<'static, ()> {
    PROVER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// F([`N`]) in two of the smallest segments, whose proofs take a quarter of the time of segments of 2^16 cycles.
fn fibonacci(name: &str) -> Job {
    let manifest = Manifest::risc0(name, "Succinct", &sample_program("fibonacci"))
        .spec("input", json!({"file": {"path": "n"}}))
        .spec("segmentPo2", json!(14))
        .spec("maxCycles", json!(1_000_000));
    Job::new(manifest.text()).file("n", N.to_le_bytes())
}

/// The identity to verify against comes from the program itself, not from the report.
fn image_id(program: &str) -> String {
    let output = Command::new(binary("prover-backend-risc0"))
        .args(["image-id", "--program"])
        .arg(sample_program(program))
        .output()
        .expect("the backend can be started");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn verify(proof: &Path, image_id: &str, more: &[&str]) -> Output {
    Command::new(binary("kubectl-proof"))
        .arg("verify")
        .arg(proof)
        .args(["--image-id", image_id])
        .args(more)
        .env("PROVER_BACKENDS_DIRECTORY", bin_directory())
        .output()
        .expect("kubectl-proof can be started")
}

fn expect_verified(done: &Finished, name: &str) {
    let report = done.report();
    assert_eq!(
        (&report["proved"], &report["emulated"]),
        (&json!(true), &json!(false))
    );
    let output = verify(
        &done.output(&format!("{name}.proof")),
        &image_id("fibonacci"),
        &[],
    );
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_proof_is_made_and_accepted_and_a_damaged_or_foreign_one_refused() {
    let _alone = alone();
    let done = fibonacci("small").run().expect_code(0);
    expect_verified(&done, "small");
    let report = done.report();
    assert!(
        report["execution"]["segments"].as_u64().unwrap() >= 2,
        "{}",
        report["execution"]
    );
    assert_eq!(report["execution"]["programId"], json!(image_id("fibonacci")));
    assert!(report["timing"]["effectiveHz"].as_f64().unwrap() > 0.0);

    let public_values = std::fs::read(done.output("small.public-values")).unwrap();
    let (mut before, mut now) = (0_u64, 1_u64);
    for _ in 0..N {
        (before, now) = (now, before.wrapping_add(now));
    }
    assert_eq!(public_values, [N.to_le_bytes(), before.to_le_bytes()].concat());

    let proof = done.output("small.proof");
    let path = done.output("small.public-values");
    let good = verify(
        &proof,
        &image_id("fibonacci"),
        &[
            "--public-values",
            path.to_str().unwrap(),
            "--program",
            sample_program("fibonacci").to_str().unwrap(),
        ],
    );
    assert_eq!(
        good.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&good.stderr)
    );
    let other = done.output("other");
    std::fs::write(&other, b"others").unwrap();
    let differs = verify(
        &proof,
        &image_id("fibonacci"),
        &["--public-values", other.to_str().unwrap()],
    );
    assert_eq!(differs.status.code(), Some(1));
    assert_eq!(
        verify(&proof, &image_id("sha256"), &[]).status.code(),
        Some(1),
        "another program"
    );

    let bytes = std::fs::read(&proof).unwrap();
    for position in [bytes.len() / 4, bytes.len() / 2, bytes.len() - 40] {
        let mut damaged = bytes.clone();
        damaged[position] ^= 1;
        let path = done.output("damaged.proof");
        std::fs::write(&path, damaged).unwrap();
        let code = verify(&path, &image_id("fibonacci"), &[]).status.code();
        assert!(
            matches!(code, Some(1 | 2)),
            "a flipped bit at {position} gave {code:?}"
        );
    }
}

#[test]
fn killing_a_backend_and_an_agent_during_a_proof_loses_no_finished_task() {
    let _alone = alone();
    let mut running = fibonacci("killed").start();
    running.await_done("Prove", 1, PROGRESS_LIMIT);
    let first = Kill::of(&running, running.backends().first().into_iter());
    running.await_done("Lift", 1, PROGRESS_LIMIT);
    let second = Kill::of(&running, running.agents().first().into_iter()).after(&first);
    let done = running.wait().expect_code(0);
    expect_verified(&done, "killed");
    // Of each: what ran on the device, what was fetched ahead, and perhaps the planner.
    first.expect_nothing_finished_ran_again(&done.report(), 1..=4);
    // The agent may have been idle, since a task that lost its backend prefers another worker.
    second.expect_nothing_finished_ran_again(&done.report(), 0..=4);
    assert_eq!(done.report()["workers"]["restarts"], 1);
}
