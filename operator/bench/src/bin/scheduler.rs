//! `scheduler WORKLOAD`: the benchmarks of the scheduler that need neither network nor store, and `judge`, which holds
//! the results of all benchmarks against their expected ranges and makes their tables.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use prover_bench::report::{Report, ReportError, outside, read_ranges, table};
use prover_bench::workloads::{PROVERS, decisions, fairness, loss, makespan, memory, single_proof};
use prover_core::Limits;

/// Where the tables of the documentation begin and end.
const BEGIN: &str = "<!-- tables of make bench-tables begin -->\n";
const END: &str = "<!-- tables of make bench-tables end -->\n";

#[derive(Parser)]
struct Options {
    /// Folder of the results.
    #[arg(long, default_value = "target/bench")]
    results: PathBuf,
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Subcommand)]
enum Workload {
    /// W1 in process: decisions per second, and how late tasks start.
    W1 {
        /// Segments of a job as powers of two.
        #[arg(long, value_delimiter = ',', default_value = "8,11,14")]
        exponents: Vec<u32>,
        /// Workers.
        #[arg(long, value_delimiter = ',', default_value = "64,1024,4096")]
        workers: Vec<u64>,
        /// Seconds of each.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// W2 in virtual time: makespan over its lower bound.
    W2,
    /// W3 in virtual time: a tenth of the workers is killed.
    W3,
    /// W4 in virtual time: shares of two tenants.
    W4,
    /// W5: memory per task and cost per decision with a million tasks.
    W5 {
        /// Jobs.
        #[arg(long, default_value_t = 10_000)]
        jobs: u64,
        /// Tasks.
        #[arg(long, default_value_t = 1_000_000)]
        tasks: u64,
    },
    /// One proof on 1 to 1,000 GPUs in virtual time.
    Proof,
    /// Holds all results against their expected ranges.
    Judge {
        /// The ranges.
        #[arg(long, default_value = "operator/bench/ranges.toml")]
        ranges: PathBuf,
        /// Document whose tables are made new.
        #[arg(long)]
        write: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<ExitCode, ReportError> {
    let report = match &options.workload {
        Workload::W1 {
            exponents,
            workers,
            seconds,
        } => in_process(exponents, workers, Duration::from_secs(*seconds)),
        Workload::W2 => stress_mix(),
        Workload::W3 => killed_workers(),
        Workload::W4 => shares(),
        Workload::W5 { jobs, tasks } => many_tasks(*jobs, *tasks),
        Workload::Proof => one_proof(),
        Workload::Judge { ranges, write } => return judge(&options.results, ranges, write.as_deref()),
    };
    report.write(&options.results)?;
    Ok(ExitCode::SUCCESS)
}

fn in_process(exponents: &[u32], workers: &[u64], least: Duration) -> Report {
    let mut report = Report::new("w1-in-process", "make bench-scheduler W=1");
    report.condition(
        "what",
        "the core alone, one thread, workers that do nothing and answer at once",
    );
    report.condition(
        "log",
        "core: none; core-facts: durable changes come out as facts, which are dropped",
    );
    report.condition(
        "decision",
        "start, completion and the dispatch that it causes, in processor time",
    );
    for exponent in exponents {
        for workers in workers {
            for record_facts in [false, true] {
                let limits = || Limits {
                    record_facts,
                    ..Limits::default()
                };
                let kind = if record_facts { "core-facts" } else { "core" };
                let name = format!("w1/{kind}/2^{exponent}/{workers}-workers");
                let found = decisions(limits(), *exponent, *workers, least, false);
                report.measure(format!("{name}/tasks"), found.tasks_per_second, "tasks/s");
                report.measure(
                    format!("{name}/decisions"),
                    found.decisions_per_second,
                    "decisions/s",
                );
                report.measure(format!("{name}/task-life"), found.nanoseconds_per_task, "ns");
                if !record_facts {
                    let found = decisions(limits(), *exponent, *workers, least / 4, true);
                    report.measure(format!("{name}/start-p50"), found.delays.p50, "µs");
                    report.measure(format!("{name}/start-p99"), found.delays.p99, "µs");
                }
            }
        }
    }
    report
}

fn stress_mix() -> Report {
    let mut report = Report::new("w2", "make bench-scheduler W=2");
    report.condition(
        "what",
        "64 devices, 4 tenants, jobs of 1..32 segments, 800 ms each, joins 200 ms, 1 in 200 retried",
    );
    report.condition("time", "virtual, production core, messages take 250 µs");
    report.condition("seeds", "41 to 45, the worst of them");
    for waves in [60, 100] {
        let found: Vec<_> = (41..46).map(|seed| makespan(seed, waves)).collect();
        let worst = |value: fn(&prover_bench::workloads::Makespan) -> f64| {
            found.iter().map(value).fold(0.0, f64::max)
        };
        let name = format!("w2/{waves}-waves");
        report.measure(
            format!("{name}/makespan-over-bound"),
            worst(|found| found.over_bound),
            "",
        );
        report.measure(
            format!("{name}/idle-share"),
            worst(|found| found.idle_share) * 100.0,
            "%",
        );
        report.measure(
            format!("{name}/retried"),
            worst(|found| f64::from(found.retried)),
            "segments",
        );
    }
    report
}

fn killed_workers() -> Report {
    let mut report = Report::new("w3", "make bench-scheduler W=3");
    report.condition(
        "what",
        "100 workers, one proof of 2,000 segments of 800 ms, 10 workers killed at once",
    );
    report.condition("time", "virtual, production core, messages take 250 µs");
    for (name, noticed_after) in [("pods-watched", Some(1_000_000)), ("streams-broken", None)] {
        let found = loss(noticed_after);
        report.measure(format!("w3/{name}/were-running"), found.running as f64, "tasks");
        report.measure(format!("w3/{name}/redone"), found.redone as f64, "tasks");
        report.measure(
            format!("w3/{name}/finished-again"),
            found.finished_again as f64,
            "tasks",
        );
        report.measure(
            format!("w3/{name}/recovered-after"),
            found.recovered_after as f64 / 1e6,
            "s",
        );
        report.measure(
            format!("w3/{name}/makespan-over-survivors"),
            found.over_survivors,
            "",
        );
    }
    report
}

fn shares() -> Report {
    let mut report = Report::new("w4", "make bench-scheduler W=4");
    report.condition(
        "what",
        "32 devices, 2 tenants with enough to do, shares of device time in windows of 100 decisions, and of 100 starts",
    );
    report.condition("time", "virtual, production core, messages take 250 µs");
    for (weight, priority) in [(1, 0), (1, 10), (3, 0), (3, 10)] {
        let found = fairness(weight, priority, 1);
        let name = format!("w4/weight-{weight}/priority-{priority}");
        report.measure(format!("{name}/ideal"), found.ideal * 100.0, "%");
        report.measure(format!("{name}/share"), found.share * 100.0, "%");
        report.measure(
            format!("{name}/worst-window"),
            found.worst_decided * 100.0,
            "% off",
        );
        report.measure(
            format!("{name}/worst-window-of-starts"),
            found.worst * 100.0,
            "% off",
        );
        let found = fairness(weight, priority, 0);
        report.measure(
            format!("{name}/nothing-ahead/worst-window-of-starts"),
            found.worst * 100.0,
            "% off",
        );
    }
    report
}

fn many_tasks(jobs: u64, tasks: u64) -> Report {
    let mut report = Report::new("w5", "make bench-scheduler W=5");
    report.condition(
        "what",
        format!("{jobs} jobs, {tasks} tasks queued, 1,000 workers, artifacts and dependencies"),
    );
    report.condition(
        "memory",
        "growth of the resident memory of the process by the tasks",
    );
    let found = memory(jobs, tasks, 200_000);
    report.measure("w5/queued", found.queued as f64, "tasks");
    report.measure("w5/bytes-per-task", found.bytes_per_task, "B");
    report.measure(
        "w5/resident",
        found.resident_bytes as f64 / f64::from(1 << 20),
        "MiB",
    );
    report.measure("w5/decision", found.nanoseconds_per_decision, "ns");
    report
}

fn one_proof() -> Report {
    let mut report = Report::new("proof", "make bench-scheduler W=proof");
    report.condition("time", "virtual, production core, messages take 250 µs");
    report.condition("efficiency", "the highest lower bound divided by the makespan");
    for prover in &PROVERS {
        report.condition(prover.name, prover.source);
        for gpus in [1, 10, 100, 1_000] {
            let mut sizes = vec![2_000, 20 * gpus];
            sizes.dedup();
            for segments in sizes {
                let found = single_proof(prover, segments, gpus);
                let name = format!("proof/{}/{segments}-segments/{gpus}-gpus", prover.name);
                let unit = format!("({:.0} s, limited by {})", found.makespan, found.limited_by);
                report.measure(name, found.efficiency, &unit);
            }
        }
    }
    report
}

/// W1 over gRPC against the baselines, where both were measured.
fn ratios(reports: &[Report]) -> Option<Report> {
    let find = |name: &str| {
        let mut measures = reports.iter().flat_map(|report| &report.measures);
        measures
            .find(|measure| measure.name == name)
            .map(|measure| measure.value)
    };
    let ours = |workers: u32| find(&format!("w1/grpc/2^14/{workers}-workers/flat-out/tasks"));
    let mut report = Report::new("w1-ratios", "make bench-scheduler W=\"live baselines\"");
    report.condition(
        "what",
        "tasks/s of W1 over gRPC, flat out, over those of each baseline, with so many workers on each side",
    );
    for (mine, its) in [(1024, 1024), (64, 64), (1024, 64)] {
        let Some(ours) = ours(mine) else { continue };
        for (baseline, kind) in [
            ("postgres", "/durable"),
            ("postgres", "/asynchronous-commit"),
            ("redis", ""),
        ] {
            if let Some(theirs) = find(&format!("w1/{baseline}/{its}-workers{kind}/tasks")) {
                let name = format!("w1/{mine}-workers-over/{baseline}/{its}-workers{kind}");
                report.measure(name, ours / theirs, "times");
            }
        }
    }
    (!report.measures.is_empty()).then_some(report)
}

fn judge(results: &Path, ranges: &Path, write: Option<&Path>) -> Result<ExitCode, ReportError> {
    let mut reports = Report::read_all(results)?;
    reports.extend(ratios(&reports));
    let ranges = read_ranges(ranges)?;
    let tables = table(&reports, &ranges);
    if let Some(document) = write {
        let file = |source| ReportError::File {
            path: document.to_owned(),
            source,
        };
        let text = fs::read_to_string(document).map_err(file)?;
        let parts = text
            .split_once(BEGIN)
            .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
        let Some((before, after)) = parts else {
            return Err(ReportError::Malformed {
                path: document.to_owned(),
                problem: format!("it has no lines {BEGIN:?} and {END:?}"),
            });
        };
        fs::write(document, format!("{before}{BEGIN}{tables}\n{END}{after}")).map_err(file)?;
    } else {
        println!("{tables}");
    }
    for range in &ranges {
        let measures = reports.iter().flat_map(|report| &report.measures);
        for measure in measures.filter(|measure| measure.name == range.measure) {
            if range.target.is_some_and(|target| !target.kept(measure.value)) {
                println!(
                    "missed: {} is {:.3} {}",
                    measure.name, measure.value, measure.unit
                );
            }
        }
    }
    let problems = outside(&reports, &ranges);
    for problem in &problems {
        eprintln!("{problem}");
    }
    Ok(if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
