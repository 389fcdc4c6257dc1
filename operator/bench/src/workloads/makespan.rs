//! W2: how far the makespan of a stress mix is from what no scheduler can beat.

use crate::proofs::{Bound, TaskTimes, bound, proof};
use crate::statistics::Random;
use crate::virtual_time::{JobPlan, Plan, WorkerPlan, run};

const DEVICES: usize = 64;
const TENANTS: u64 = 4;
const MOST_SEGMENTS: u64 = 32;
/// One in so many segments fails once.
const RETRIED: u64 = 200;
const TIMES: TaskTimes = TaskTimes {
    segment: 800_000,
    join: 200_000,
    verify: 10_000,
    // As measured for RISC Zero: 552 segments in 5.8 s.
    execute: 10_500,
};

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Makespan {
    /// Jobs.
    pub jobs: usize,
    /// Attempts that were to fail and did.
    pub retried: u32,
    /// The bounds.
    pub bound: Bound,
    /// Time until the last job ended, over the highest bound.
    pub over_bound: f64,
    /// Share of device time in which nothing ran.
    pub idle_share: f64,
    /// Waves of segments per device.
    pub waves: f64,
}

/// Jobs of 1 to 32 segments of four tenants, with one segment in 200 failing once. `waves`: segments per device, so
/// many that the end, at which not all devices can be busy, counts for little.
#[must_use]
pub fn mix(seed: u64, waves: u64) -> Vec<JobPlan> {
    let mut random = Random::new(seed);
    let mut jobs = Vec::new();
    let mut segments = 0;
    while segments < waves * DEVICES as u64 {
        let number = jobs.len() as u64;
        let of_job = 1 + random.below(MOST_SEGMENTS);
        segments += of_job;
        let tenant = format!("tenant-{}", number % TENANTS);
        let mut job = proof(&format!("job-{number}"), &tenant, of_job as usize, TIMES);
        for task in &mut job.tasks {
            if &*task.task_type == "prove" && random.below(RETRIED) == 0 {
                task.failures = 1;
            }
        }
        jobs.push(job);
    }
    jobs
}

/// Runs the mix.
///
/// # Panics
/// A job did not succeed.
#[must_use]
pub fn makespan(seed: u64, waves: u64) -> Makespan {
    let plan = Plan {
        workers: vec![WorkerPlan::gpu(); DEVICES],
        jobs: mix(seed, waves),
        ..Plan::new()
    };
    let bound = bound(&plan.jobs, DEVICES);
    let outcome = run(&plan);
    assert_eq!(outcome.failed, [], "every job succeeds");
    let tasks = plan.jobs.iter().flat_map(|job| &job.tasks);
    let segments = tasks.clone().filter(|task| &*task.task_type == "prove").count();
    Makespan {
        jobs: plan.jobs.len(),
        retried: tasks.map(|task| task.failures).sum(),
        bound,
        over_bound: outcome.makespan as f64 / bound.highest() as f64,
        idle_share: outcome.idle_share(DEVICES),
        waves: segments as f64 / DEVICES as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_makespan_of_a_mix_is_near_its_bound_whatever_the_mix() {
        for seed in 41..46 {
            let found = makespan(seed, 60);
            assert!(found.waves >= 50.0 && found.retried > 0, "{found:?}");
            assert!(found.over_bound <= 1.03, "seed {seed}: {found:?}");
            assert!(found.idle_share <= 0.03, "seed {seed}: {found:?}");
        }
    }
}
