//! One proof on 1 to 1,000 GPUs, with task times that were measured or published.

use crate::proofs::{Bound, TaskTimes, bound, proof};
use crate::virtual_time::{Plan, WorkerPlan, run};

/// A prover and where its times are from.
#[derive(Clone, Copy, Debug)]
pub struct Prover {
    /// Short name, a part of measures.
    pub name: &'static str,
    /// Times of its tasks.
    pub times: TaskTimes,
    /// Where they are from.
    pub source: &'static str,
}

/// Provers whose times are known.
pub const PROVERS: [Prover; 3] = [
    Prover {
        name: "risc0-cpu",
        times: TaskTimes {
            segment: 64_000_000,
            join: 38_000_000,
            verify: 12_000,
            execute: 10_500,
        },
        source: "RISC Zero 3.1.0-rc.1 on two cores, measured here: a segment of 2^16 cycles 26 s, its lift 38 s, \
                 a join 38 s, the executor 552 segments in 5.8 s",
    },
    Prover {
        name: "risc0-gpu",
        times: TaskTimes {
            segment: 3_600_000,
            join: 370_000,
            verify: 12_000,
            execute: 10_500,
        },
        source: "RISC Zero's documentation of Bento, one 16 GB GPU: 264 kHz, so 3.97 s per segment of 2^20 cycles \
                 with its lift and join; that the join is 370 ms of it is an assumption; the executor as measured here",
    },
    Prover {
        name: "sp1-gpu",
        times: TaskTimes {
            segment: 2_000_000,
            join: 200_000,
            verify: 140_000,
            execute: 40_000,
        },
        source: "SP1's cluster FAQ: 2 million PGU/s on an RTX 4090, and an executor that feeds 50 of them, so 2 s per \
                 shard of 4 million PGU and 40 ms to execute it; that a join takes 200 ms is an assumption",
    },
];

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct SingleProof {
    /// The bounds.
    pub bound: Bound,
    /// The highest bound over the makespan: 1 is perfect.
    pub efficiency: f64,
    /// Which bound is the highest; the executor's where more GPUs would not help.
    pub limited_by: &'static str,
    /// Seconds.
    pub makespan: f64,
}

/// Runs one proof of so many segments on so many GPUs.
///
/// # Panics
/// The job did not succeed.
#[must_use]
pub fn single_proof(prover: &Prover, segments: usize, gpus: usize) -> SingleProof {
    let plan = Plan {
        workers: vec![WorkerPlan::gpu(); gpus],
        jobs: vec![proof("job", "tenant", segments, prover.times)],
        ..Plan::new()
    };
    let bound = bound(&plan.jobs, gpus);
    let outcome = run(&plan);
    assert_eq!(outcome.failed, [], "the job succeeds");
    let highest = bound.highest();
    // The chain after the last segment belongs to the critical path: where most of that is execution, no GPU helps.
    let limited_by = if highest <= bound.work + bound.work / 50 {
        "work"
    } else if bound.execution * 2 > highest {
        "executor"
    } else if highest == bound.critical_path {
        "critical path"
    } else {
        "waves"
    };
    SingleProof {
        bound,
        efficiency: highest as f64 / outcome.makespan as f64,
        limited_by,
        makespan: outcome.makespan as f64 / 1e6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_proof_uses_its_gpus_where_it_has_twenty_segments_for_each() {
        for prover in &PROVERS {
            for gpus in [1, 10, 100] {
                let found = single_proof(prover, 20 * gpus, gpus);
                assert!(
                    found.efficiency >= 0.95,
                    "{} on {gpus} GPUs: {found:?}",
                    prover.name
                );
            }
        }
    }

    #[test]
    fn an_executor_feeds_so_many_gpus_and_no_more() {
        let sp1 = &PROVERS[2];
        assert_ne!(single_proof(sp1, 2_000, 20).limited_by, "executor");
        let found = single_proof(sp1, 2_000, 100);
        assert_eq!(found.limited_by, "executor", "{found:?}");
    }
}
