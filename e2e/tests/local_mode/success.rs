//! Jobs that succeed: what is reported and written, and in which shape.

use prover_e2e::{Job, Manifest, Model, sample_program, workspace};
use serde_json::{Value, json};

/// Tasks of an emulated job: the plan, a prove and a lift for each segment, the joins, finalize, verify.
fn tasks_of(segments: u64) -> u64 {
    1 + 2 * segments + (segments - 1) + 2
}

#[test]
fn an_emulated_job_succeeds_and_claims_no_proof() {
    let done = Job::new(Model::new(5).duration("prove", 20).manifest("five").text())
        .run()
        .expect_code(0);
    let report = done.report();
    assert_eq!(report["outcome"], "Succeeded");
    assert_eq!(report["emulated"], true);
    assert_eq!(report["proved"], false);
    assert_eq!(report["artifacts"]["proof"], Value::Null);
    assert_eq!(report["execution"]["segments"], 5);
    assert_eq!(report["tasks"].as_array().unwrap().len() as u64, tasks_of(5));
    assert_eq!(report["attempts"]["failed"], 0);
    assert!(
        !done.output("five.proof").exists(),
        "an emulated job must not write a proof"
    );
    let written: Value = serde_json::from_slice(&std::fs::read(done.output("five.json")).unwrap()).unwrap();
    assert_eq!(written["metadata"]["name"], "five");
}

#[test]
fn the_report_has_the_shape_of_its_committed_schema() {
    let schema = std::fs::read(workspace().join("cli/report.schema.json")).unwrap();
    let validator = jsonschema::validator_for(&serde_json::from_slice(&schema).unwrap()).unwrap();
    let good = Job::new(Model::new(3).manifest("good").text())
        .run()
        .expect_code(0);
    let bad = Job::new("kind: Nonsense").run().expect_code(2);
    for report in [good.report(), bad.report()] {
        let problems: Vec<String> = validator
            .iter_errors(&report)
            .map(|problem| format!("{}: {problem}", problem.instance_path()))
            .collect();
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }
    let mut wrong = good.report();
    wrong["exitCode"] = Value::from("0");
    assert!(!validator.is_valid(&wrong), "the schema must be able to refuse");
}

#[test]
fn the_report_adds_up() {
    let done = Job::new(
        Model::new(6)
            .duration("prove", 50)
            .duration("join", 30)
            .manifest("sums")
            .text(),
    )
    .run()
    .expect_code(0);
    let report = done.report();
    let tasks = report["tasks"].as_array().unwrap();
    for task_type in report["taskTypes"].as_array().unwrap() {
        let walls: Vec<f64> = tasks
            .iter()
            .filter(|task| task["type"] == task_type["type"])
            .filter_map(|task| task["wallSeconds"].as_f64())
            .collect();
        let total: f64 = walls.iter().sum();
        assert_eq!(
            task_type["count"].as_u64().unwrap() as usize,
            walls.len(),
            "{task_type}"
        );
        assert!(
            (task_type["totalSeconds"].as_f64().unwrap() - total).abs() < 0.001,
            "{task_type}"
        );
    }
    assert_eq!(
        report["attempts"]["total"].as_u64().unwrap() as usize,
        tasks.len(),
        "nothing failed, so each task has one attempt, and what was fetched ahead and given back is none"
    );
    let prove = report["taskTypes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["type"] == "prove")
        .unwrap();
    assert!(prove["meanSeconds"].as_f64().unwrap() >= 0.05, "{prove}");
    let elapsed = report["timing"]["elapsedSeconds"].as_f64().unwrap();
    let hertz = report["timing"]["effectiveHz"].as_f64().unwrap();
    let cycles = report["execution"]["totalCycles"].as_f64().unwrap();
    assert!(
        (hertz * elapsed / cycles - 1.0).abs() < 0.01,
        "{hertz} Hz * {elapsed} s is not {cycles} cycles"
    );
    assert!(report["timing"]["commandSeconds"].as_f64().unwrap() >= elapsed);
}

#[test]
fn an_executed_job_tells_its_public_values_and_cycles_and_writes_no_proof() {
    let manifest = Manifest::risc0("executed", "ExecuteOnly", &sample_program("fibonacci"))
        .spec("input", json!({"inline": "CgAAAAAAAAA="}));
    let done = Job::new(manifest.text()).run().expect_code(0);
    let report = done.report();
    assert_eq!(
        (&report["proved"], &report["emulated"]),
        (&json!(false), &json!(false))
    );
    assert_eq!(report["artifacts"]["proof"], Value::Null);
    assert!(
        report["execution"]["userCycles"].as_u64().unwrap() > 0,
        "{report}"
    );
    assert!(!done.output("executed.proof").exists());
    // F(10) = 55.
    let expected = [10_u64.to_le_bytes(), 55_u64.to_le_bytes()].concat();
    assert_eq!(
        std::fs::read(done.output("executed.public-values")).unwrap(),
        expected
    );
}

#[test]
fn several_devices_of_one_worker_share_the_work() {
    let done = Job::new(Model::new(8).duration("prove", 300).manifest("devices").text())
        .workers(1)
        .arguments(["--devices-per-worker", "3"])
        .run()
        .expect_code(0);
    let report = done.report();
    assert_eq!(report["workers"]["devicesPerWorker"], 3);
    // When each task was on a device, in milliseconds. Its end in the report is later: its output is stored before.
    let mut on_device: Vec<(i64, i64)> = report["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|task| task["type"] == "prove")
        .map(|task| {
            let start: jiff::Timestamp = task["startedAt"].as_str().unwrap().parse().unwrap();
            let device = task["deviceSeconds"].as_f64().unwrap();
            let start = start.as_millisecond();
            (start, start + (device * 1_000.0) as i64)
        })
        .collect();
    on_device.sort_unstable();
    assert_eq!(on_device.len(), 8);
    // A device has one task at a time, so two that overlap for half of their time were on two devices.
    let together = on_device
        .windows(2)
        .filter(|pair| pair[0].1 - pair[1].0 >= 150)
        .count();
    assert!(together >= 2, "{on_device:?}");
}

#[test]
fn the_run_folder_goes_unless_it_is_kept() {
    let kept = Job::new(Model::new(2).manifest("kept").text())
        .arguments(["--keep"])
        .run()
        .expect_code(0);
    let report = kept.report();
    let folder = std::path::Path::new(report["runDirectory"].as_str().unwrap()).to_owned();
    for log in ["coordinator.log", "worker-1.log", "worker-2.log"] {
        assert!(folder.join("logs").join(log).is_file(), "{log} is missing");
    }
    let gone = Job::new(Model::new(2).manifest("gone").text())
        .run()
        .expect_code(0);
    assert_eq!(gone.report()["runDirectory"], Value::Null);
    let left: Vec<_> = std::fs::read_dir(gone.folder().join("tmp"))
        .unwrap()
        .flatten()
        .collect();
    assert!(left.is_empty(), "{left:?} was left behind");
}

#[test]
fn a_manifest_comes_from_standard_input_too() {
    use std::io::Write;
    let folder = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(prover_e2e::binary("kubectl-proof"))
        .args(["run", "-f", "-", "--workers", "1", "--output-directory"])
        .arg(folder.path())
        .env("PROVER_BACKENDS_DIRECTORY", prover_e2e::bin_directory())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let manifest = Model::new(2).manifest("piped").text();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(manifest.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for word in [
        "TASK",
        "WALL TIME",
        "STARTED AT",
        "prove",
        "Segments:",
        "Effective:",
        "no proof was made",
    ] {
        assert!(text.contains(word), "{word} is missing in:\n{text}");
    }
}
