//! W4: the shares that two tenants get of the devices, against those that they should get.

use prover_core::Limits;

use crate::proofs::{TaskTimes, proof};
use crate::virtual_time::{Plan, WorkerPlan, run};

const DEVICES: usize = 32;
const SEGMENTS: usize = 200;
const JOBS_PER_TENANT: usize = 12;
/// Starts over which shares are taken.
const WINDOW: usize = 100;
const TIMES: TaskTimes = TaskTimes {
    segment: 800_000,
    join: 200_000,
    verify: 10_000,
    execute: 0,
};

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Fairness {
    /// Share of the first tenant as it should be.
    pub ideal: f64,
    /// Its share over all starts while both had work.
    pub share: f64,
    /// The largest difference between ideal and real share in any window of 100 starts. Starts come in another order
    /// than decisions, since each device begins what was fetched ahead for it when it is free.
    pub worst: f64,
    /// The same over windows of 100 decisions.
    pub worst_decided: f64,
    /// Windows that were looked at.
    pub windows: usize,
}

/// Two tenants with always enough to do. The first has `weight` times the weight of the second and jobs of `priority`,
/// which counts among the jobs of one tenant only. `ahead`: attempts that are fetched ahead per slot.
///
/// # Panics
/// A job did not succeed.
#[must_use]
pub fn fairness(weight: u32, priority: i32, ahead: u16) -> Fairness {
    let mut plan = Plan {
        workers: vec![WorkerPlan::gpu(); DEVICES],
        weights: vec![("first".into(), weight)],
        limits: Limits {
            prefetch_per_slot: ahead,
            ..Limits::default()
        },
        ..Plan::new()
    };
    for number in 0..JOBS_PER_TENANT {
        for (tenant, priority) in [("first", priority), ("second", 0)] {
            let mut job = proof(&format!("{tenant}-{number}"), tenant, SEGMENTS, TIMES);
            job.policy.priority = priority;
            plan.jobs.push(job);
        }
    }
    let outcome = run(&plan);
    assert_eq!(outcome.failed, [], "every job succeeds");
    let mut starts: Vec<Start> = Vec::new();
    let mut ready: [Vec<u64>; 2] = [Vec::new(), Vec::new()];
    for run in outcome.device_runs() {
        starts.push(Start {
            at: run.started_at,
            decision: run.decision,
            tenant: run.job % 2,
            took: run.ended_at - run.started_at,
        });
        ready[run.job % 2].push(run.ready_at);
    }
    ready.iter_mut().for_each(|times| times.sort_unstable());
    let mut contended = longest_contended(&starts, &ready).to_vec();
    let ideal = f64::from(weight) / f64::from(weight + 1);
    let windows = contended.len().saturating_sub(WINDOW);
    let (share, worst) = (share_of_first(&contended), worst(&contended, ideal));
    contended.sort_by_key(|start| start.decision);
    Fairness {
        ideal,
        share,
        worst,
        worst_decided: self::worst(&contended, ideal),
        windows,
    }
}

/// Share of device time, which is what is shared: a join counts for less than a segment.
fn share_of_first(starts: &[Start]) -> f64 {
    let all: u64 = starts.iter().map(|start| start.took).sum();
    let of_first = starts.iter().filter(|start| start.tenant == 0);
    of_first.map(|start| start.took).sum::<u64>() as f64 / all as f64
}

/// The largest difference from the ideal in any window.
fn worst(starts: &[Start], ideal: f64) -> f64 {
    let off = starts
        .windows(WINDOW)
        .map(|window| (share_of_first(window) - ideal).abs());
    off.fold(0.0, f64::max)
}

/// A task that began.
#[derive(Clone, Copy, Debug)]
struct Start {
    at: u64,
    decision: usize,
    tenant: usize,
    took: u64,
}

/// The longest stretch of starts at each of which both tenants had more ready than what is fetched ahead: only then is
/// there something to share.
fn longest_contended<'starts>(starts: &'starts [Start], ready: &[Vec<u64>; 2]) -> &'starts [Start] {
    let mut begun = [0, 0];
    let (mut from, mut longest) = (2 * DEVICES, 0..0);
    for (place, start) in starts.iter().enumerate() {
        let waiting = |tenant: usize| ready[tenant].partition_point(|time| *time < start.at) - begun[tenant];
        if (0..2).any(|tenant| waiting(tenant) <= 2 * DEVICES) {
            // What was fetched ahead was decided on before.
            from = place + 1 + 2 * DEVICES;
        }
        begun[start.tenant] += 1;
        if (place + 1).saturating_sub(from) > longest.len() {
            longest = from..place + 1;
        }
    }
    &starts[longest]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_get_their_shares_in_every_window() {
        for (weight, priority) in [(1, 0), (1, 10), (3, 0), (3, 10)] {
            let found = fairness(weight, priority, 1);
            assert!(found.windows > 1_000, "{found:?}");
            assert!(
                found.worst_decided <= 0.05 && found.worst <= 0.1,
                "weight {weight}, priority {priority}: {found:?}"
            );
            let found = fairness(weight, priority, 0);
            assert!(found.windows > 1_000, "{found:?}");
            assert!(
                found.worst <= 0.05,
                "nothing fetched ahead, weight {weight}, priority {priority}: {found:?}"
            );
        }
    }
}
