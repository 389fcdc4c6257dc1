//! `prover-sim --seeds 500` runs the seeds 0 to 499; `prover-sim --seed 7` replays one and prints what happened.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use clap::Parser;
use prover_sim::{Outcome, run};

/// The production coordinator in a simulated cluster with faults.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds to run, from the first one on.
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Replays this seed alone and prints its trace.
    #[arg(long)]
    seed: Option<u64>,
    /// Seeds that run at once.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Stops at the first violation.
    #[arg(long)]
    fail_fast: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.seed {
        Some(seed) => replay(seed),
        None => run_all(&arguments),
    }
}

fn replay(seed: u64) -> ExitCode {
    let outcome = run(seed, true);
    if let Some(trace) = &outcome.trace {
        print!("{trace}");
    }
    println!("{}", described(seed, &outcome));
    ExitCode::from(u8::from(outcome.violation.is_some()))
}

fn described(seed: u64, outcome: &Outcome) -> String {
    let ended = match &outcome.violation {
        None => "keeps all promises".to_owned(),
        Some(violation) => format!("breaks {}: {}", violation.promise, violation.words),
    };
    format!(
        "seed {seed} {ended} ({} events in {} s of virtual time, trace {:016x})",
        outcome.events,
        outcome.milliseconds / 1_000,
        outcome.trace_hash
    )
}

fn run_all(arguments: &Arguments) -> ExitCode {
    // A panic of one seed is told with that seed.
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicU64::new(arguments.first);
    let end = arguments.first + arguments.seeds;
    let broken = Mutex::new(Vec::new());
    let (events, seconds) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let outcome = run(seed, false);
                    events.fetch_add(outcome.events, Ordering::Relaxed);
                    seconds.fetch_add(outcome.milliseconds / 1_000, Ordering::Relaxed);
                    if outcome.violation.is_some() {
                        println!("{}", described(seed, &outcome));
                        broken.lock().unwrap_or_else(PoisonError::into_inner).push(seed);
                        if arguments.fail_fast {
                            next.store(end, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let mut broken = broken.into_inner().unwrap_or_else(PoisonError::into_inner);
    broken.sort_unstable();
    println!(
        "{} seeds, {} events, {} h of virtual time: {} broke a promise {:?}",
        arguments.seeds,
        events.into_inner(),
        seconds.into_inner() / 3_600,
        broken.len(),
        &broken[..broken.len().min(20)]
    );
    ExitCode::from(u8::from(!broken.is_empty()))
}
