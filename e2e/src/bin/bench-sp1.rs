//! What proving with SP1 through coordinator, agent and backend costs: wall time and peak memory of `kubectl-proof run`
//! divided by those of `sp1-sdk`'s prover for processors alone, pair by pair.
//!
//! Both are warm: of `sp1-sdk` a proof and its verification count, with prover and verifying key made before; of ours the time
//! from the begin of the task `execute` to the end of `verify`, which comes after the same. Memory is what all
//! processes of a worker had resident at once, sampled, against the highest of the one process of `sp1-sdk`.

use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use clap::Parser;
use prover_e2e::{Job, Manifest, Running, binary, sample_program};
use serde::Deserialize;
use serde_json::{Value, json};

/// Pause between two looks at the memory of a worker's processes.
const SAMPLE_PAUSE: Duration = Duration::from_millis(200);

/// Measures the SP1 backend against `sp1-sdk`, pair by pair.
#[derive(Debug, Parser)]
struct Arguments {
    /// Pairs of runs.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pairs: u32,
    /// Program below `target/programs/sp1`.
    #[arg(long, default_value = "fibonacci")]
    program: String,
    /// Its input: a number of 4 bytes.
    #[arg(long, default_value_t = 500)]
    number: u32,
    /// Kind of proof: Core or Compressed.
    #[arg(long, default_value = "Core")]
    kind: String,
    /// Elements of a shard's traces, in both.
    #[arg(long, default_value_t = 1 << 27)]
    elements: u64,
}

/// A line of `prover-sp1-alone prove`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Alone {
    prove_seconds: f64,
    verify_seconds: f64,
    peak_bytes: u64,
}

struct Measured {
    seconds: f64,
    peak_bytes: u64,
}

/// Errors end the program with their text: nobody else handles them.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-sp1: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> Result<(), Failure> {
    for number in 0..arguments.pairs {
        // The order changes, so that whatever drifts meets both.
        let (alone, ours) = if number % 2 == 0 {
            let alone = alone(arguments)?;
            (alone, ours(arguments)?)
        } else {
            let ours = ours(arguments)?;
            (alone(arguments)?, ours)
        };
        let pair = json!({
            "kind": arguments.kind,
            "sdkSeconds": alone.seconds,
            "oursSeconds": ours.seconds,
            "timeRatio": ours.seconds / alone.seconds,
            "sdkPeakBytes": alone.peak_bytes,
            "oursPeakBytes": ours.peak_bytes,
            "memoryRatio": ours.peak_bytes as f64 / alone.peak_bytes as f64,
        });
        println!("{pair}");
    }
    Ok(())
}

fn alone(arguments: &Arguments) -> Result<Measured, Failure> {
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("input");
    std::fs::write(&input, arguments.number.to_le_bytes())?;
    let output = Command::new(binary("prover-sp1-alone"))
        .args(["prove", "--kind", &arguments.kind.to_lowercase()])
        .args(["--elements", &arguments.elements.to_string(), "--program"])
        .arg(sample_program(&format!("sp1/{}", arguments.program)))
        .arg("--input")
        .arg(&input)
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().ok_or("prover-sp1-alone tells nothing")?;
    let alone: Alone = serde_json::from_str(line)?;
    Ok(Measured {
        seconds: alone.prove_seconds + alone.verify_seconds,
        peak_bytes: alone.peak_bytes,
    })
}

fn ours(arguments: &Arguments) -> Result<Measured, Failure> {
    let program = sample_program(&format!("sp1/{}", arguments.program));
    let manifest = Manifest::sp1("bench", &arguments.kind, &program)
        .spec("input", json!({"file": {"path": "input"}}))
        .spec("maxCycles", json!(1_000_000_000_u64));
    let mut running = Job::new(manifest.text())
        .file("input", arguments.number.to_le_bytes())
        .workers(1)
        .environment("SP1_BACKEND_ELEMENT_THRESHOLD", &arguments.elements.to_string())
        .start();
    let mut peak_bytes = 0;
    while !running.has_ended() {
        peak_bytes = peak_bytes.max(resident(&running));
        thread::sleep(SAMPLE_PAUSE);
    }
    let done = running.wait().expect_code(0);
    let report = done.report();
    let at = |task_type: &str, end: &str| -> Result<jiff::Timestamp, Failure> {
        let tasks = report["tasks"].as_array().ok_or("the report has no tasks")?;
        let task = tasks.iter().find(|task: &&Value| task["type"] == task_type);
        let text = task.and_then(|task| task[end].as_str());
        Ok(text
            .ok_or_else(|| format!("the report has no {end} of {task_type}"))?
            .parse()?)
    };
    let took = at("verify", "endedAt")?.duration_since(at("execute", "startedAt")?);
    Ok(Measured {
        seconds: took.as_secs_f64(),
        peak_bytes,
    })
}

/// What all processes of the worker have resident now.
fn resident(running: &Running) -> u64 {
    let of = |pid: i32| -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    };
    let processes = running.processes().into_iter();
    processes
        .filter(|process| process.program != "kubectl-proof")
        .filter_map(|process| of(process.pid))
        .sum()
}
