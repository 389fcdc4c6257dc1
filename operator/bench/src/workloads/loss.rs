//! W3: what the loss of a tenth of the workers costs.

use std::collections::{BTreeMap, BTreeSet};

use crate::proofs::{TaskTimes, proof};
use crate::virtual_time::{Microseconds, Outcome, Plan, RunEnd, WorkerPlan, run};

const WORKERS: usize = 100;
const KILLED: usize = 10;
const SEGMENTS: usize = 2_000;
const KILLED_AT: Microseconds = 5_300_000;
const TIMES: TaskTimes = TaskTimes {
    segment: 800_000,
    join: 200_000,
    verify: 10_000,
    execute: 0,
};

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// Tasks that ran on the workers that died.
    pub running: usize,
    /// Tasks that began again after an attempt of theirs had begun before: must be the running ones.
    pub redone: usize,
    /// Tasks that succeeded twice: must be none.
    pub finished_again: usize,
    /// From the deaths to the moment when the last of what had run there ran elsewhere.
    pub recovered_after: Microseconds,
    /// Makespan over what the survivors could reach if they had known at once.
    pub over_survivors: f64,
}

/// Kills a tenth of the workers in the middle of a proof. `noticed_after`: when their loss is known for certain (a watch
/// of pods); none: the broken streams start the reconnect grace.
///
/// # Panics
/// The job did not succeed.
#[must_use]
pub fn loss(noticed_after: Option<Microseconds>) -> Loss {
    let mut plan = Plan {
        workers: vec![WorkerPlan::gpu(); WORKERS],
        jobs: vec![proof("job", "tenant", SEGMENTS, TIMES)],
        ..Plan::new()
    };
    for worker in plan.workers.iter_mut().rev().take(KILLED) {
        worker.dies_at = Some(KILLED_AT);
        worker.noticed_after = noticed_after;
    }
    let outcome = run(&plan);
    assert_eq!(outcome.failed, [], "the job succeeds");
    judge(&plan, &outcome)
}

fn judge(plan: &Plan, outcome: &Outcome) -> Loss {
    let mut tries: BTreeMap<usize, Vec<RunEnd>> = BTreeMap::new();
    let mut killed = BTreeSet::new();
    for run in outcome.device_runs() {
        let Some(task) = run.task else { continue };
        tries.entry(task).or_default().push(run.end);
        if run.end == RunEnd::Killed {
            killed.insert(task);
        }
    }
    let succeeded_twice =
        |ends: &&Vec<RunEnd>| ends.iter().filter(|end| **end == RunEnd::Succeeded).count() > 1;
    let elsewhere = outcome
        .device_runs()
        .filter(|run| run.started_at > KILLED_AT && run.task.is_some_and(|task| killed.contains(&task)));
    let recovered_at = elsewhere.map(|run| run.started_at).max().unwrap_or(KILLED_AT);
    // What the survivors must do anyway: all work but what was finished, from the deaths on.
    let work: u64 = plan.jobs[0].tasks.iter().map(|task| task.duration).sum();
    let done = outcome
        .device_runs()
        .filter(|run| run.started_at < KILLED_AT && run.end == RunEnd::Succeeded)
        .map(|run| run.ended_at.min(KILLED_AT) - run.started_at);
    let least = KILLED_AT + (work - done.sum::<u64>()) / (WORKERS - KILLED) as u64;
    Loss {
        running: killed.len(),
        redone: tries.values().filter(|ends| ends.len() > 1).count(),
        finished_again: tries.values().filter(succeeded_twice).count(),
        recovered_after: recovered_at - KILLED_AT,
        over_survivors: outcome.makespan as f64 / least as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_of_a_tenth_of_the_workers_costs_what_they_were_running() {
        for noticed_after in [Some(1_000_000), None] {
            let found = loss(noticed_after);
            assert_eq!(found.running, KILLED, "{found:?}");
            assert_eq!(found.redone, found.running, "{found:?}");
            assert_eq!(found.finished_again, 0, "{found:?}");
        }
    }

    #[test]
    fn lost_tasks_run_elsewhere_within_two_tasks_of_the_notice() {
        let found = loss(Some(1_000_000));
        assert!(
            found.recovered_after <= 1_000_000 + 2 * TIMES.segment,
            "{found:?}"
        );
    }
}
