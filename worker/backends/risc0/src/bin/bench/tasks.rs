//! Times each task type alone.

use prover_backend_risc0::execute::{self, ExecuteError, Request};
use prover_backend_risc0::program::Program;
use prover_backend_risc0::{prover, proving_threads};
use serde_json::json;

use crate::usage::{Measured, measure, peak_bytes, reset_peak};
use crate::{Job, Result};

/// Runs the subcommand.
pub(crate) fn run(job: &Job, proves: usize, recursions: usize) -> Result<()> {
    let (program, input) = job.load()?;
    let (program, parsing) = measure(|| Program::parse(&program));
    let program = program?;
    tell("load", 0, parsing);
    let mut segments = Vec::new();
    let request = Request {
        program: &program,
        input,
        assumptions: &[],
        max_cycles: u64::MAX,
        segment_po2: job.segment_po2,
    };
    let (executed, execution) = measure(|| {
        execute::execute(request, &|| Ok::<_, String>([0; 32]), |segment| {
            segments.push(segment);
            Ok(())
        })
    });
    let executed = executed.map_err(|error: ExecuteError<String>| error.to_string())?;
    tell("execute", executed.segments as usize, execution);

    let mut receipts = Vec::new();
    // Two different segments at least where there are, so that they can be joined.
    for round in 0..proves {
        let segment = &segments[round % segments.len()];
        let (receipt, measured) = measured_task(|| prover::prove_segment(&segment.bytes));
        tell("prove", segment.po2 as usize, measured);
        if round < 2 {
            receipts.push(receipt?);
        }
    }
    let mut lifted = Vec::new();
    for round in 0..recursions {
        let (receipt, measured) = measured_task(|| prover::lift(&receipts[round % receipts.len()]));
        tell("lift", job.segment_po2 as usize, measured);
        lifted.push(receipt?);
    }
    if lifted.len() >= 2 {
        for _ in 0..recursions {
            let (receipt, measured) = measured_task(|| prover::join(&lifted[0], &lifted[1]));
            receipt?;
            tell("join", job.segment_po2 as usize, measured);
        }
    }
    Ok(())
}

fn measured_task<T>(work: impl FnOnce() -> T) -> (T, Measured) {
    reset_peak();
    measure(work)
}

fn tell(task: &str, size: usize, measured: Measured) {
    let line = json!({
        "task": task,
        "size": size,
        "wallSeconds": measured.wall.as_secs_f64(),
        "cpuSeconds": measured.cpu_seconds,
        "peakMiB": peak_bytes() >> 20,
        "threads": proving_threads(),
    });
    println!("{line}");
}
