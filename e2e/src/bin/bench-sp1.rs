//! What proving with SP1 through coordinator, agent and backend costs: wall time and peak memory of `kubectl-proof run`
//! divided by those of `sp1-sdk`'s prover for processors alone, pair by pair. Fails where a median ratio is above the
//! checked-in limit.
//!
//! Both are warm and do the same: of `sp1-sdk` a proof and its verification count, with the prover made before (a proof makes the
//! program's verifying key once more); of ours the time from the begin of the task `setup`, which makes that key and comes first on
//! a device that is ready, to the end of `verify`. Memory is what all processes of either had resident at once
//! in that time, sampled.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use clap::Parser;
use jiff::{SignedDuration, Timestamp};
use prover_e2e::processes::processes_of;
use prover_e2e::{Job, Manifest, Process, binary, sample_program, workspace};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Pause between two looks at the memory of all processes.
const SAMPLE_PAUSE: Duration = Duration::from_millis(200);

/// In which Linux tells processor times (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Cycles that no sample reaches.
const MAX_CYCLES: u64 = 1_000_000_000;

/// Measures the SP1 backend against `sp1-sdk`, pair by pair.
#[derive(Debug, Parser)]
struct Arguments {
    /// Pairs of runs.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pairs: u32,
    /// Begin with ours, not with `sp1-sdk`: the order changes from pair to pair.
    #[arg(long)]
    ours_first: bool,
    /// Program below `target/programs/sp1`.
    #[arg(long, default_value = "fibonacci")]
    program: String,
    /// Its input: a number of 4 bytes.
    #[arg(long, default_value_t = 500)]
    number: u32,
    /// Its input instead of a number: so many bytes of zero.
    #[arg(long)]
    zeros: Option<usize>,
    /// Kind of proof: Core or Compressed.
    #[arg(long, default_value = "Core")]
    kind: String,
    /// Elements of a shard's traces, in both.
    #[arg(long, default_value_t = 1 << 27)]
    elements: u64,
    /// File with the highest median ratios that are accepted.
    #[arg(long, value_name = "FILE")]
    range: Option<PathBuf>,
    /// Also write the result as JSON to this file.
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
}

/// The checked-in limits.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExpectedRange {
    maximum_median_time_ratio: f64,
    maximum_median_memory_ratio: f64,
}

/// A line of `prover-sp1-alone prove`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Alone {
    ready_seconds: f64,
    prove_seconds: f64,
    verify_seconds: f64,
}

/// One pair of runs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pair {
    first: &'static str,
    sdk_ready_seconds: f64,
    sdk_seconds: f64,
    ours_seconds: f64,
    time_ratio: f64,
    /// Processor time of all processes meanwhile.
    sdk_processor_seconds: f64,
    ours_processor_seconds: f64,
    sdk_peak_bytes: u64,
    ours_peak_bytes: u64,
    memory_ratio: f64,
    /// Ours, in the order in which they began.
    tasks: Vec<Task>,
}

/// A task of ours.
#[derive(Clone, Debug, Serialize)]
struct Task {
    name: String,
    /// Seconds from the begin of `setup`.
    from: f64,
    to: f64,
}

/// The whole result.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Results {
    program: String,
    kind: String,
    elements: u64,
    shards: usize,
    processor_cores: usize,
    pairs: Vec<Pair>,
    median_time_ratio: f64,
    maximum_median_time_ratio: f64,
    median_memory_ratio: f64,
    maximum_median_memory_ratio: f64,
    within_range: bool,
}

/// Errors end the program with their text: nobody else handles them.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-sp1: {error}");
            ExitCode::from(2)
        }
    }
}

fn measure(arguments: &Arguments) -> Result<bool, Failure> {
    let range = read_range(arguments.range.as_deref())?;
    let input = match arguments.zeros {
        Some(count) => vec![0; count],
        None => arguments.number.to_le_bytes().to_vec(),
    };
    let mut pairs = Vec::new();
    for number in 0..arguments.pairs {
        // The order changes, so that whatever drifts meets both.
        let sdk_first = arguments.ours_first == (number % 2 == 1);
        let (sdk, ours) = if sdk_first {
            let sdk = alone(arguments, &input)?;
            (sdk, ours(arguments, &input)?)
        } else {
            let ours = ours(arguments, &input)?;
            (alone(arguments, &input)?, ours)
        };
        let pair = Pair {
            first: if sdk_first { "sp1-sdk" } else { "kubectl-proof" },
            sdk_ready_seconds: sdk.ready_seconds,
            sdk_seconds: sdk.seconds,
            ours_seconds: ours.seconds,
            time_ratio: ours.seconds / sdk.seconds,
            sdk_processor_seconds: sdk.took.processor_seconds,
            ours_processor_seconds: ours.took.processor_seconds,
            sdk_peak_bytes: sdk.took.peak_bytes,
            ours_peak_bytes: ours.took.peak_bytes,
            memory_ratio: ours.took.peak_bytes as f64 / sdk.took.peak_bytes as f64,
            tasks: ours.tasks,
        };
        println!("{}", serde_json::to_string(&pair)?);
        pairs.push(pair);
    }
    let median_time_ratio = median(pairs.iter().map(|pair| pair.time_ratio).collect());
    let median_memory_ratio = median(pairs.iter().map(|pair| pair.memory_ratio).collect());
    let shards = pairs
        .iter()
        .flat_map(|pair| &pair.tasks)
        .filter(|task| task.name == "prove-shard");
    let results = Results {
        program: arguments.program.clone(),
        kind: arguments.kind.clone(),
        elements: arguments.elements,
        shards: shards.count() / pairs.len(),
        processor_cores: thread::available_parallelism()?.get(),
        pairs,
        median_time_ratio,
        maximum_median_time_ratio: range.maximum_median_time_ratio,
        median_memory_ratio,
        maximum_median_memory_ratio: range.maximum_median_memory_ratio,
        within_range: median_time_ratio <= range.maximum_median_time_ratio
            && median_memory_ratio <= range.maximum_median_memory_ratio,
    };
    if let Some(path) = &arguments.results {
        fs::write(path, serde_json::to_string_pretty(&results)? + "\n")?;
    }
    println!(
        "{} {}, {} shards: median time ratio {:.4} (at most {:.2}), memory ratio {:.4} (at most {:.2}) over {} pairs: {}",
        results.program,
        results.kind,
        results.shards,
        results.median_time_ratio,
        results.maximum_median_time_ratio,
        results.median_memory_ratio,
        results.maximum_median_memory_ratio,
        results.pairs.len(),
        if results.within_range { "good" } else { "TOO MUCH" }
    );
    Ok(results.within_range)
}

fn read_range(path: Option<&Path>) -> Result<ExpectedRange, Failure> {
    let path = path.map_or_else(|| workspace().join("e2e/bench-sp1-range.json"), Path::to_owned);
    let text = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))?)
}

struct AloneMeasured {
    ready_seconds: f64,
    seconds: f64,
    took: Took,
}

fn alone(arguments: &Arguments, input: &[u8]) -> Result<AloneMeasured, Failure> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("input");
    fs::write(&file, input)?;
    let mut child = Command::new(binary("prover-sp1-alone"))
        .args(["prove", "--kind", &arguments.kind.to_lowercase()])
        .args(["--elements", &arguments.elements.to_string(), "--program"])
        .arg(sample_program(&format!("sp1/{}", arguments.program)))
        .arg("--input")
        .arg(&file)
        // Its executor is a process of its own, found by this.
        .env("TMPDIR", folder.path())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut samples = Samples::default();
    let status = loop {
        samples.look(&processes_of(folder.path()));
        match child.try_wait()? {
            Some(status) => break status,
            None => thread::sleep(SAMPLE_PAUSE),
        }
    };
    let ended = Timestamp::now();
    if !status.success() {
        return Err(format!("prover-sp1-alone ended with {status}").into());
    }
    let mut text = String::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_string(&mut text)?;
    }
    let line = text.lines().last().ok_or("prover-sp1-alone tells nothing")?;
    let alone: Alone = serde_json::from_str(line)?;
    let seconds = alone.prove_seconds + alone.verify_seconds;
    // It ends with the verification.
    let from = ended - SignedDuration::from_secs_f64(seconds);
    Ok(AloneMeasured {
        ready_seconds: alone.ready_seconds,
        seconds,
        took: samples
            .took(from, ended)
            .ok_or("no sample while sp1-sdk proved")?,
    })
}

struct OursMeasured {
    seconds: f64,
    took: Took,
    tasks: Vec<Task>,
}

fn ours(arguments: &Arguments, input: &[u8]) -> Result<OursMeasured, Failure> {
    let program = sample_program(&format!("sp1/{}", arguments.program));
    let manifest = Manifest::sp1("bench", &arguments.kind, &program)
        .spec("input", json!({"file": {"path": "input"}}))
        .spec("maxCycles", json!(MAX_CYCLES));
    let mut running = Job::new(manifest.text())
        .file("input", input)
        .workers(1)
        .environment("SP1_BACKEND_ELEMENT_THRESHOLD", &arguments.elements.to_string())
        .start();
    let mut samples = Samples::default();
    while !running.has_ended() {
        samples.look(&running.processes());
        thread::sleep(SAMPLE_PAUSE);
    }
    let report = running.wait().expect_code(0).report();
    let (mut from, mut to, mut spans) = (None, None, Vec::new());
    for task in report["tasks"].as_array().ok_or("the report has no tasks")? {
        let name = task["type"].as_str().ok_or("a task has no type")?;
        let (began, ended) = (time(task, "startedAt")?, time(task, "endedAt")?);
        match name {
            "setup" => from = Some(began),
            "verify" => to = Some(ended),
            _ => {}
        }
        spans.push((name, began, ended));
    }
    let from = from.ok_or("the report has no setup")?;
    let to = to.ok_or("the report has no verify")?;
    spans.sort_by_key(|(_, began, _)| *began);
    let tasks = spans.into_iter().map(|(name, began, ended)| Task {
        name: name.to_owned(),
        from: began.duration_since(from).as_secs_f64(),
        to: ended.duration_since(from).as_secs_f64(),
    });
    Ok(OursMeasured {
        seconds: to.duration_since(from).as_secs_f64(),
        took: samples.took(from, to).ok_or("no sample while we proved")?,
        tasks: tasks.collect(),
    })
}

fn time(task: &Value, which: &str) -> Result<Timestamp, Failure> {
    let text = task[which]
        .as_str()
        .ok_or_else(|| format!("no {which}: {task}"))?;
    Ok(text.parse()?)
}

/// What processes took, and when.
#[derive(Debug, Default)]
struct Samples(Vec<(Timestamp, Took)>);

/// What processes had resident at most, and the processor time that they had used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Took {
    peak_bytes: u64,
    processor_seconds: f64,
}

impl Samples {
    // What processes share by /dev/shm, as an executor does with who reads its trace, counts once.
    fn look(&mut self, processes: &[Process]) {
        let at = Timestamp::now();
        let (mut all, mut shared) = (Took::default(), 0);
        for process in processes {
            let Some(resident) = resident(process.pid) else {
                continue;
            };
            all.peak_bytes += resident.own;
            shared = shared.max(resident.shared);
            all.processor_seconds += processor_seconds(process.pid).unwrap_or_default();
        }
        all.peak_bytes += shared;
        self.0.push((at, all));
    }

    fn took(&self, from: Timestamp, to: Timestamp) -> Option<Took> {
        let mut samples = self.0.iter().filter(|(at, _)| (from..=to).contains(at));
        let (_, first) = *samples.next()?;
        let (mut peak_bytes, mut processor_seconds) = (first.peak_bytes, first.processor_seconds);
        for (_, sample) in samples {
            peak_bytes = peak_bytes.max(sample.peak_bytes);
            processor_seconds = processor_seconds.max(sample.processor_seconds);
        }
        Some(Took {
            peak_bytes,
            processor_seconds: processor_seconds - first.processor_seconds,
        })
    }
}

/// Bytes that a process has resident.
struct Resident {
    own: u64,
    shared: u64,
}

fn resident(pid: i32) -> Option<Resident> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let bytes = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    };
    Some(Resident {
        own: bytes("RssAnon:")? + bytes("RssFile:")?,
        shared: bytes("RssShmem:")?,
    })
}

/// Of a process and of its children that have ended.
fn processor_seconds(pid: i32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    // Fields 14 to 17, where the first one after the name is the third.
    let ticks = after_name.split_ascii_whitespace().skip(11).take(4);
    let ticks: Result<Vec<u64>, _> = ticks.map(str::parse).collect();
    Some(ticks.ok()?.iter().sum::<u64>() as f64 / TICKS_PER_SECOND)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_that_of_the_time_in_which_a_proof_is_made() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let sample = |second, peak_bytes, processor_seconds| {
            let took = Took {
                peak_bytes,
                processor_seconds,
            };
            (at(second), took)
        };
        let samples = Samples(vec![
            sample(1, 9, 1.0),
            sample(2, 3, 4.0),
            sample(3, 5, 6.0),
            sample(4, 8, 9.0),
        ]);
        let took = Took {
            peak_bytes: 5,
            processor_seconds: 2.0,
        };
        assert_eq!(samples.took(at(2), at(3)), Some(took));
        assert_eq!(samples.took(at(5), at(6)), None);
    }

    #[test]
    fn what_this_process_takes_is_read() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(resident(pid).unwrap().own > 0);
        assert!(processor_seconds(pid).is_some());
    }

    #[test]
    fn the_checked_in_limits_are_readable() {
        let range = read_range(None).unwrap();
        assert!((1.0..=1.05).contains(&range.maximum_median_time_ratio));
        assert!((1.0..=1.1).contains(&range.maximum_median_memory_ratio));
    }
}
