//! `prover-bench-live WORKLOAD`: the benchmarks of the scheduler with real servers. Coordinator and workers are in one
//! process, on runtimes of their own; the workers have one thread.

mod chain;
mod engine;
mod error;
mod grpc;
mod postgres;
mod redis_list;
mod service;
mod session;
mod takeover;
mod tracker;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::{Parser, Subcommand};
use prover_bench::report::Report;
use prover_wire::limits::MESSAGES_PER_BATCH;

use error::LiveError;
use grpc::{Shape, TASKS_PER_CALL};
use service::Service;
use session::HEARD;

/// Workers of the paced runs.
const PACED_WORKERS: usize = 1_024;

#[derive(Parser)]
struct Options {
    /// Folder of the results.
    #[arg(long, default_value = "target/bench")]
    results: PathBuf,
    /// Threads of the coordinator.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[command(subcommand)]
    workload: Workload,
}

#[derive(Subcommand)]
enum Workload {
    /// W1 over gRPC on loopback.
    W1 {
        /// Segments of a job as powers of two.
        #[arg(long, value_delimiter = ',', default_value = "14")]
        exponents: Vec<u32>,
        /// Workers.
        #[arg(long, value_delimiter = ',', default_value = "64,1024,4096")]
        workers: Vec<usize>,
        /// Seconds of each.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// Tasks per second of the paced runs, which 1,024 workers do; 0: none.
        #[arg(long, value_delimiter = ',', default_value = "5000,20000,50000")]
        paces: Vec<u32>,
        /// Attempts fetched ahead per slot.
        #[arg(long, default_value_t = 1)]
        ahead: u16,
        /// With the log, in a folder.
        #[arg(long)]
        logged: bool,
        /// Streams that share a connection.
        #[arg(long, default_value_t = 16)]
        together: usize,
        /// Messages in one batch; 0: no batches.
        #[arg(long, default_value_t = MESSAGES_PER_BATCH)]
        batch: usize,
    },
    /// W1 through the coordinator's engine alone.
    Engine {
        /// Segments of a job as powers of two.
        #[arg(long, value_delimiter = ',', default_value = "11,14")]
        exponents: Vec<u32>,
        /// Workers.
        #[arg(long, value_delimiter = ',', default_value = "1024")]
        workers: Vec<usize>,
        /// Seconds of each.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
    /// W6: from the end of a task to the start of its dependent on another worker.
    W6 {
        /// Address of the artifact store, such as one of MinIO; a folder where it is not given.
        #[arg(long)]
        store: Option<String>,
        /// Seconds of each.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// BYTES@TASKS-PER-SECOND.
        #[arg(
            long,
            value_delimiter = ',',
            default_value = "1024@100,1024@1000,2097152@10,2097152@100"
        )]
        loads: Vec<Load>,
    },
    /// How long a new leader takes until it has the whole state of the one before, from the log.
    Takeover {
        /// Address of the artifact store, such as one of MinIO.
        #[arg(long)]
        store: String,
        /// Jobs that have not ended.
        #[arg(long, default_value_t = 1_000)]
        jobs: usize,
        /// Segments of each; with joins and the check of the proof there are twice as many tasks.
        #[arg(long, default_value_t = 50)]
        segments: usize,
    },
    /// The baselines of W1: a queue in a table of Postgres and one in a list of Redis.
    Baselines {
        /// Such as `host=/run/folder user=postgres`; none: left out.
        #[arg(long)]
        postgres: Option<String>,
        /// Such as `redis://127.0.0.1:6379`; none: left out.
        #[arg(long)]
        redis: Option<String>,
        /// Segments of a job as a power of two.
        #[arg(long, default_value_t = 12)]
        exponent: u32,
        /// Workers, each with a connection: few, which is best for such queues, and as many as W1 has.
        #[arg(long, value_delimiter = ',', default_value = "64,1024")]
        connections: Vec<usize>,
        /// Seconds of each.
        #[arg(long, default_value_t = 10)]
        seconds: u64,
    },
}

/// What pairs of tasks hand on, and how often.
#[derive(Clone, Copy, Debug)]
struct Load {
    bytes: usize,
    rate: f64,
}

impl std::str::FromStr for Load {
    type Err = String;

    fn from_str(text: &str) -> Result<Load, String> {
        let malformed = || format!("{text:?} is not BYTES@TASKS-PER-SECOND");
        let (bytes, rate) = text.split_once('@').ok_or_else(malformed)?;
        Ok(Load {
            bytes: bytes.parse().map_err(|_| malformed())?,
            rate: rate.parse().map_err(|_| malformed())?,
        })
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), LiveError> {
    let serving = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(options.threads)
        .enable_all()
        .build()?;
    let working = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = match &options.workload {
        Workload::W1 {
            exponents,
            workers,
            seconds,
            paces,
            ahead,
            together,
            batch,
            logged,
        } => {
            let kind = match (logged, together) {
                (true, _) => "w1-grpc-log",
                (false, 1) => "w1-grpc-apart",
                (false, _) => "w1-grpc",
            };
            let mut report = Report::new(kind, "make bench-scheduler W=live");
            let log = if *logged {
                "in a folder, commits at most every 50 ms"
            } else {
                "none"
            };
            report.condition("log", log);
            report.condition("fetched ahead", format!("{ahead} per slot"));
            report.condition(
                "processes",
                format!(
                    "coordinator ({} threads) and workers (one thread) in one process",
                    options.threads
                ),
            );
            report.condition("streams", format!("one per worker, {together} on a connection"));
            report.condition(
                "messages",
                format!("at most {batch} in a batch, {TASKS_PER_CALL} tasks in a submission"),
            );
            for exponent in exponents {
                for workers in workers {
                    let paced = paces
                        .iter()
                        .filter(|pace| **pace > 0 && *workers == PACED_WORKERS);
                    for pace in std::iter::once(None).chain(paced.map(|pace| Some(f64::from(*pace)))) {
                        let shape = Shape {
                            exponent: *exponent,
                            workers: *workers,
                            together: *together,
                            batch: *batch,
                            logged: *logged,
                            least: Duration::from_secs(*seconds),
                            pace,
                        };
                        one_shape(&serving, &working, shape, *ahead, &mut report)?;
                    }
                }
            }
            report
        }
        Workload::Engine {
            exponents,
            workers,
            seconds,
        } => {
            let mut report = Report::new("w1-engine", "make bench-scheduler W=engine");
            report.condition(
                "what",
                "the coordinator's engine, one thread: checks, conversion, core, messages, views; no streams",
            );
            report.condition(
                "log",
                "engine: none; engine-log: records are made and encoded, committed at once",
            );
            for exponent in exponents {
                for workers in workers {
                    for (kind, record_facts) in [("engine", false), ("engine-log", true)] {
                        let least = Duration::from_secs(*seconds);
                        let found = engine::engine(*exponent, *workers, least, record_facts)?;
                        let name = format!("w1/{kind}/2^{exponent}/{workers}-workers");
                        report.measure(format!("{name}/tasks"), found.tasks_per_second, "tasks/s");
                        let life = found.microseconds_per_task;
                        report.measure(format!("{name}/task-life"), life, "µs");
                        if record_facts {
                            report.measure(format!("{name}/record-bytes"), found.record_bytes, "B per task");
                        }
                    }
                }
            }
            report
        }
        Workload::W6 {
            store,
            seconds,
            loads,
        } => {
            let mut report = Report::new("w6", "make bench-scheduler W=6");
            report.condition("log", "none");
            report.condition("store", if store.is_some() { "MinIO" } else { "folder" });
            report.condition(
                "compared",
                "push0 (arXiv 2602.16338): 5 ms median, under 20 ms p99 at 50 to 100 tasks/s",
            );
            for load in loads {
                chained(&serving, &working, store.as_deref(), *load, *seconds, &mut report)?;
            }
            report
        }
        Workload::Takeover {
            store,
            jobs,
            segments,
        } => {
            let shape = takeover::Shape {
                jobs: *jobs,
                segments: *segments,
            };
            taken_over(&serving, store, shape)?
        }
        Workload::Baselines {
            postgres,
            redis,
            exponent,
            connections,
            seconds,
        } => {
            let mut report = Report::new("w1-baselines", "make bench-scheduler W=baselines");
            let least = Duration::from_secs(*seconds);
            report.condition("workers", "each with a connection, batches of one task");
            report.condition(
                "jobs",
                format!("2^{exponent} segments with their join tree, filling not counted"),
            );
            for connections in connections.iter().copied() {
                if let Some(address) = postgres {
                    for (kind, durable) in [("durable", true), ("asynchronous-commit", false)] {
                        let baseline = postgres::baseline(address, *exponent, connections, least, durable);
                        let name = format!("postgres/{connections}-workers/{kind}");
                        note(&mut report, &name, working.block_on(baseline)?);
                    }
                }
                if let Some(address) = redis {
                    let baseline = redis_list::baseline(address, *exponent, connections, least);
                    let name = format!("redis/{connections}-workers");
                    note(&mut report, &name, working.block_on(baseline)?);
                }
            }
            report
        }
    };
    report.write(&options.results)?;
    Ok(())
}

fn taken_over(
    serving: &tokio::runtime::Runtime,
    store: &str,
    shape: takeover::Shape,
) -> Result<Report, LiveError> {
    let found = serving.block_on(takeover::taken_over(store, shape))?;
    let mut report = Report::new("takeover", "make bench-scheduler W=takeover");
    report.condition(
        "what",
        format!(
            "{} jobs with {} tasks in the log, {} of them ended, MinIO on loopback",
            shape.jobs, found.tasks, found.ended
        ),
    );
    report.condition(
        "warm",
        "the new leader had followed the log; from the end of the one before",
    );
    report.condition("cold", "the new leader did not run before; from its start");
    report.measure("takeover/warm", found.warm.as_secs_f64(), "s");
    report.measure("takeover/cold", found.cold.as_secs_f64(), "s");
    report.measure("takeover/jobs-handed-in", found.handed_in.as_secs_f64(), "s");
    Ok(report)
}

fn one_shape(
    serving: &tokio::runtime::Runtime,
    working: &tokio::runtime::Runtime,
    shape: Shape,
    ahead: u16,
    report: &mut Report,
) -> Result<(), LiveError> {
    let service = serving.block_on(Service::start(None, Some(ahead), shape.logged))?;
    let before = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let heard = || [&HEARD.frames, &HEARD.messages].map(|count| count.load(Ordering::Relaxed) as f64);
    let heard_before = heard();
    let found = working.block_on(grpc::throughput(&service, shape))?;
    let heard_after = heard();
    let after = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let used = (after.tv_sec - before.tv_sec) as f64 + (after.tv_nsec - before.tv_nsec) as f64 / 1e9;
    serving.block_on(service.coordinator.shutdown());
    let kind = match shape.pace {
        Some(pace) => format!("paced-{pace}"),
        None => "flat-out".to_owned(),
    };
    let way = match (shape.logged, shape.together) {
        (true, _) => "grpc-log",
        (false, 1) => "grpc-apart",
        (false, _) => "grpc",
    };
    let name = format!("w1/{way}/2^{}/{}-workers/{kind}", shape.exponent, shape.workers);
    report.measure(format!("{name}/tasks"), found.tasks_per_second, "tasks/s");
    let per_task = used * 1e6 / found.all_tasks as f64;
    report.measure(
        format!("{name}/processor-time"),
        per_task,
        "µs per task, both sides",
    );
    let together = (heard_after[1] - heard_before[1]) / (heard_after[0] - heard_before[0]);
    report.measure(
        format!("{name}/together"),
        together,
        "messages to a worker at once",
    );
    report.measure(format!("{name}/start-p50"), found.delays.p50, "ms");
    report.measure(format!("{name}/start-p99"), found.delays.p99, "ms");
    report.measure(format!("{name}/from-ready-p50"), found.from_ready.p50, "ms");
    report.measure(format!("{name}/from-ready-p99"), found.from_ready.p99, "ms");
    Ok(())
}

fn note(report: &mut Report, name: &str, found: postgres::Baseline) {
    report.measure(format!("w1/{name}/tasks"), found.tasks_per_second, "tasks/s");
    report.measure(format!("w1/{name}/start-p50"), found.delays.p50, "ms");
    report.measure(format!("w1/{name}/start-p99"), found.delays.p99, "ms");
}

fn chained(
    serving: &tokio::runtime::Runtime,
    working: &tokio::runtime::Runtime,
    store: Option<&str>,
    load: Load,
    seconds: u64,
    report: &mut Report,
) -> Result<(), LiveError> {
    let service = serving.block_on(Service::start(store, None, false))?;
    let shape = chain::Shape {
        workers: 32,
        bytes: load.bytes,
        rate: load.rate,
        span: Duration::from_secs(seconds),
    };
    let found = working.block_on(chain::overhead(&service, shape))?;
    serving.block_on(service.coordinator.shutdown());
    let name = format!("w6/{}-bytes/{}-per-second", load.bytes, load.rate);
    report.measure(format!("{name}/tasks"), found.tasks_per_second, "tasks/s");
    report.measure(format!("{name}/overhead-p50"), found.overhead.p50, "ms");
    report.measure(format!("{name}/overhead-p99"), found.overhead.p99, "ms");
    if load.bytes > 1 << 16 {
        report.measure(format!("{name}/transfer-p50"), found.transfer.p50, "ms");
        report.measure(format!("{name}/transfer-p99"), found.transfer.p99, "ms");
    }
    Ok(())
}
