//! What proving through coordinator and agents costs: wall time of `kubectl-proof run` divided by that of RISC
//! Zero's own prover doing the same tasks with the same parallelism, measured pairwise in one run.
//!
//! Both commands are measured as a user would see them, from start to exit, workers' start and verification
//! included. The order changes from pair to pair, so that whatever drifts meets both. Fails when the median ratio
//! is above the checked-in limit.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::Instant;

use clap::{Parser, ValueEnum};
use prover_e2e::{Manifest, bin_directory, binary, sample_program, workspace};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Measures the overhead of local mode against RISC Zero's own prover, pair by pair.
#[derive(Debug, Parser)]
struct Arguments {
    /// Pairs of runs.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pairs: u32,
    /// Which Fibonacci number is proved: about five cycles for each step.
    #[arg(long, default_value_t = 20_000)]
    fibonacci: u64,
    /// Size of segments, as a power of two of cycles.
    #[arg(long, default_value_t = 16)]
    segment_po2: u32,
    /// Prover processes in both.
    #[arg(long, default_value_t = 2)]
    workers: u16,
    /// Threads of each prover process in both; the prover's own default where it is not given.
    #[arg(long)]
    threads: Option<u16>,
    /// File with the highest median ratio that is accepted.
    #[arg(long, value_name = "FILE")]
    range: Option<PathBuf>,
    /// Also write the result as JSON to this file.
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Format on standard output.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// Format of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// The checked-in limit.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExpectedRange {
    maximum_median_ratio: f64,
}

/// One pair of runs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pair {
    first: &'static str,
    local_prover_seconds: f64,
    kubectl_proof_seconds: f64,
    ratio: f64,
}

/// The whole result.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Results {
    segments: u64,
    tasks: u64,
    segment_po2: u32,
    workers: u16,
    threads: Option<u16>,
    processor_cores: usize,
    pairs: Vec<Pair>,
    median_ratio: f64,
    maximum_median_ratio: f64,
    within_range: bool,
}

/// Errors end the program with their text: nobody else handles them.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-overhead: {error}");
            ExitCode::from(2)
        }
    }
}

fn measure(arguments: &Arguments) -> Result<bool, Failure> {
    let range = read_range(arguments.range.as_deref())?;
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("n");
    std::fs::write(&input, arguments.fibonacci.to_le_bytes())?;
    let manifest = folder.path().join("job.yaml");
    let job = Manifest::risc0("overhead", "Succinct", &sample_program("fibonacci"))
        .spec("input", json!({"file": {"path": input}}))
        .spec("segmentPo2", json!(arguments.segment_po2));
    std::fs::write(&manifest, job.text())?;
    let mut pairs = Vec::new();
    let mut work = (0, 0);
    for number in 0..arguments.pairs {
        let through_us = || through_kubectl_proof(arguments, &manifest, folder.path());
        let (local, ours, first) = if number % 2 == 0 {
            let local = local_prover(arguments, &input)?;
            (local, through_us()?, "local prover")
        } else {
            let ours = through_us()?;
            (local_prover(arguments, &input)?, ours, "kubectl-proof")
        };
        if (local.segments, local.tasks) != (ours.segments, ours.tasks) {
            return Err(format!(
                "the two did not do the same work: {} segments and {} tasks against {} and {}",
                local.segments, local.tasks, ours.segments, ours.tasks
            )
            .into());
        }
        work = (ours.segments, ours.tasks);
        let pair = Pair {
            first,
            local_prover_seconds: local.seconds,
            kubectl_proof_seconds: ours.seconds,
            ratio: ours.seconds / local.seconds,
        };
        eprintln!(
            "pair {}: local prover {:.2} s, kubectl-proof {:.2} s, ratio {:.4}",
            number + 1,
            pair.local_prover_seconds,
            pair.kubectl_proof_seconds,
            pair.ratio
        );
        pairs.push(pair);
    }
    let median_ratio = median(pairs.iter().map(|pair| pair.ratio).collect());
    let results = Results {
        segments: work.0,
        tasks: work.1,
        segment_po2: arguments.segment_po2,
        workers: arguments.workers,
        threads: arguments.threads,
        processor_cores: std::thread::available_parallelism()?.get(),
        pairs,
        median_ratio,
        maximum_median_ratio: range.maximum_median_ratio,
        within_range: median_ratio <= range.maximum_median_ratio,
    };
    tell(arguments, &results)?;
    Ok(results.within_range)
}

fn read_range(path: Option<&Path>) -> Result<ExpectedRange, Failure> {
    let path = path.map_or_else(
        || workspace().join("e2e/bench-overhead-range.json"),
        Path::to_owned,
    );
    let text = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))?)
}

/// What one run did, and how long it took.
struct Measured {
    seconds: f64,
    segments: u64,
    /// Without the planner's, which the local prover does not count.
    tasks: u64,
}

fn local_prover(arguments: &Arguments, input: &Path) -> Result<Measured, Failure> {
    let mut command = Command::new(binary("prover-risc0-bench"));
    command
        .args(["local", "--kind", "Succinct", "--program"])
        .arg(sample_program("fibonacci"))
        .arg("--input")
        .arg(input)
        .args(["--segment-po2", &arguments.segment_po2.to_string()])
        .args(["--workers", &arguments.workers.to_string()]);
    if let Some(threads) = arguments.threads {
        command.env("RAYON_NUM_THREADS", threads.to_string());
    }
    let (seconds, output) = timed(&mut command)?;
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let number = |name: &str| {
        told[name]
            .as_u64()
            .ok_or_else(|| format!("prover-risc0-bench tells no {name}"))
    };
    Ok(Measured {
        seconds,
        segments: number("segments")?,
        tasks: number("tasks")?,
    })
}

fn through_kubectl_proof(arguments: &Arguments, manifest: &Path, folder: &Path) -> Result<Measured, Failure> {
    let mut command = Command::new(binary("kubectl-proof"));
    command
        .args(["run", "--output", "json", "--filename"])
        .arg(manifest)
        .args(["--workers", &arguments.workers.to_string(), "--output-directory"])
        .arg(folder.join("out"))
        .env("PROVER_BACKENDS_DIRECTORY", bin_directory());
    if let Some(threads) = arguments.threads {
        command.args(["--threads-per-device", &threads.to_string()]);
    }
    let (seconds, output) = timed(&mut command)?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    if report["proved"] != json!(true) || report["attempts"]["failed"] != json!(0) {
        return Err(format!(
            "kubectl-proof proved nothing or lost attempts: {}",
            report["attempts"]
        )
        .into());
    }
    let planned = report["tasks"]
        .as_array()
        .map(|tasks| tasks.iter().filter(|task| task["type"] != "plan").count());
    Ok(Measured {
        seconds,
        segments: report["execution"]["segments"]
            .as_u64()
            .ok_or("the report tells no segments")?,
        tasks: planned.ok_or("the report tells no tasks")? as u64,
    })
}

fn timed(command: &mut Command) -> Result<(f64, Output), Failure> {
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).output()?;
    let seconds = started.elapsed().as_secs_f64();
    if !output.status.success() {
        let program = command.get_program().display();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{program} ended with {}:\n{words}", output.status).into());
    }
    Ok((seconds, output))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        (values[middle - 1] + values[middle]) / 2.0
    }
}

fn tell(arguments: &Arguments, results: &Results) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(results)? + "\n";
    if let Some(path) = &arguments.results {
        std::fs::write(path, &json)?;
    }
    match arguments.output {
        Format::Json => print!("{json}"),
        Format::Text => println!(
            "{} segments, {} tasks, {} workers: median ratio {:.4} over {} pairs, at most {:.2} is accepted: {}",
            results.segments,
            results.tasks,
            results.workers,
            results.median_ratio,
            results.pairs.len(),
            results.maximum_median_ratio,
            if results.within_range { "good" } else { "TOO MUCH" }
        ),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
    }

    #[test]
    fn the_checked_in_limit_is_readable() {
        let limit = read_range(None).unwrap().maximum_median_ratio;
        assert!((1.0..=1.05).contains(&limit), "{limit}");
    }
}
