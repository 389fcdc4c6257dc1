//! Proofs as plans of the virtual cluster, and what no scheduler can beat.

use std::sync::Arc;

use prover_core::{JobPolicy, Milliseconds};

use crate::graph::{Kind, join_tree};
use crate::virtual_time::{JobPlan, Microseconds, TaskPlan, gpu_task, usual_policy};

/// What the tasks of a proof take.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct TaskTimes {
    /// Proving a segment; what each segment must have before it can be joined (a lift) is in it.
    pub segment: Microseconds,
    /// Joining two proofs.
    pub join: Microseconds,
    /// Checking the last one.
    pub verify: Microseconds,
    /// Time of the executor per segment; 0: all segments are there at once.
    pub execute: Microseconds,
}

/// A proof of so many segments whose planner submits each segment when the executor has it, and each join with the
/// later of its segments.
#[must_use]
pub fn proof(name: &str, tenant: &str, segments: usize, times: TaskTimes) -> JobPlan {
    let nodes = join_tree(segments);
    let mut executed = 0;
    let mut tasks: Vec<TaskPlan> = Vec::with_capacity(nodes.len());
    for (place, node) in nodes.iter().enumerate() {
        let (task_type, duration) = match node.kind {
            Kind::Segment => ("prove", times.segment),
            Kind::Join => ("join", times.join),
            Kind::Verify => ("verify", times.verify),
        };
        if node.kind == Kind::Segment {
            executed += times.execute;
        }
        tasks.push(TaskPlan {
            name: format!("{task_type}-{place}").into(),
            task_type: task_type.into(),
            requirements: gpu_task(),
            depends_on: node.depends_on.clone(),
            duration,
            released_at: executed,
            failures: 0,
            first_attempt: None,
            estimate: Some(Milliseconds(duration / 1_000)),
        });
    }
    JobPlan {
        name: Arc::from(name),
        tenant: Arc::from(tenant),
        policy: JobPolicy { ..usual_policy() },
        arrives_at: 0,
        tasks,
    }
}

/// What no scheduler can beat, with devices of speed 1 and messages that take no time.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Bound {
    /// The longest chain of tasks, each not before it is released.
    pub critical_path: Microseconds,
    /// All work divided by the devices.
    pub work: Microseconds,
    /// Until the last task is released.
    pub execution: Microseconds,
    /// The latest of what must be released first, done in whole waves, and followed by the rest of its chain.
    pub waves: Microseconds,
}

impl Bound {
    /// The highest of the four.
    #[must_use]
    pub fn highest(&self) -> Microseconds {
        self.critical_path
            .max(self.work)
            .max(self.execution)
            .max(self.waves)
    }
}

/// The bounds of jobs that all begin at 0 on so many devices of one slot and speed 1. Failed attempts count as work:
/// nobody can avoid them.
#[must_use]
pub fn bound(jobs: &[JobPlan], devices: usize) -> Bound {
    let devices = devices as u64;
    let mut bound = Bound::default();
    let mut work = 0;
    // Of every task: how long is released before it, what follows it, what it takes.
    let mut tasks: Vec<(Microseconds, Microseconds, Microseconds)> = Vec::new();
    for job in jobs {
        let cost = |task: &TaskPlan| task.duration * u64::from(task.failures + 1);
        let mut ends: Vec<Microseconds> = Vec::with_capacity(job.tasks.len());
        for task in &job.tasks {
            let ready = task
                .depends_on
                .iter()
                .map(|other| ends[*other])
                .max()
                .unwrap_or(0);
            ends.push(ready.max(job.arrives_at + task.released_at) + cost(task));
            work += cost(task);
            bound.execution = bound.execution.max(job.arrives_at + task.released_at);
        }
        let mut tails = vec![0; job.tasks.len()];
        for (place, task) in job.tasks.iter().enumerate().rev() {
            for other in &task.depends_on {
                tails[*other] = tails[*other].max(tails[place] + cost(task));
            }
        }
        bound.critical_path = bound.critical_path.max(ends.iter().copied().max().unwrap_or(0));
        let released = |task: &TaskPlan| job.arrives_at + task.released_at;
        tasks.extend(
            job.tasks
                .iter()
                .zip(tails)
                .map(|(task, tail)| (released(task), tail, cost(task))),
        );
    }
    bound.work = work / devices;
    bound.waves = waves(&mut tasks, devices);
    bound
}

/// For every time and every length: what is released from that time on and followed by at least that length must run
/// between the two, on the devices that there are, in whole tasks.
fn waves(tasks: &mut [(Microseconds, Microseconds, Microseconds)], devices: u64) -> Microseconds {
    let mut tails: Vec<Microseconds> = tasks.iter().map(|(_, tail, _)| *tail).collect();
    tails.sort_unstable();
    tails.dedup();
    tasks.sort_unstable_by(|one, other| other.cmp(one));
    let mut highest = 0;
    for tail in tails {
        let (mut count, mut work, mut shortest) = (0_u64, 0_u64, u64::MAX);
        for (released, after, duration) in tasks.iter() {
            if *after < tail || *duration == 0 {
                continue;
            }
            count += 1;
            work += duration;
            shortest = shortest.min(*duration);
            let spread = (work / devices).max(count.div_ceil(devices) * shortest);
            highest = highest.max(released + spread + tail);
        }
    }
    highest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtual_time::{Plan, RunEnd, WorkerPlan, run};

    const TIMES: TaskTimes = TaskTimes {
        segment: 800_000,
        join: 200_000,
        verify: 10_000,
        execute: 0,
    };

    fn mk_plan(devices: usize, jobs: Vec<JobPlan>) -> Plan {
        Plan {
            workers: vec![WorkerPlan::gpu(); devices],
            jobs,
            one_way: 0,
            ..Plan::new()
        }
    }

    #[test]
    fn the_bound_of_one_device_is_its_work_and_is_reached() {
        let plan = mk_plan(1, vec![proof("one", "tenant", 8, TIMES)]);
        let bound = bound(&plan.jobs, 1);
        assert_eq!(bound.work, 8 * 800_000 + 7 * 200_000 + 10_000);
        assert_eq!(bound.highest(), bound.work);
        assert_eq!(run(&plan).makespan, bound.work);
    }

    #[test]
    fn the_bound_of_many_devices_is_the_critical_path_and_is_reached() {
        let plan = mk_plan(8, vec![proof("one", "tenant", 8, TIMES)]);
        let bound = bound(&plan.jobs, 8);
        assert_eq!(bound.critical_path, 800_000 + 3 * 200_000 + 10_000);
        assert_eq!(run(&plan).makespan, bound.highest());
    }

    #[test]
    fn half_a_wave_counts_as_a_whole_one() {
        let plan = mk_plan(4, vec![proof("one", "tenant", 6, TIMES)]);
        let bound = bound(&plan.jobs, 4);
        assert!(bound.waves >= 2 * 800_000 + 200_000, "{bound:?}");
        assert!(run(&plan).makespan >= bound.highest());
    }

    #[test]
    fn an_executor_that_is_slow_is_the_bound() {
        let times = TaskTimes {
            execute: 1_000_000,
            ..TIMES
        };
        let plan = mk_plan(64, vec![proof("one", "tenant", 16, times)]);
        let bound = bound(&plan.jobs, 64);
        assert_eq!(bound.execution, 16_000_000);
        assert_eq!(bound.critical_path, 16_000_000 + 800_000 + 4 * 200_000 + 10_000);
        assert_eq!(run(&plan).makespan, bound.highest());
    }

    #[test]
    fn a_worker_that_dies_costs_what_it_was_running() {
        let mut plan = mk_plan(4, vec![proof("one", "tenant", 64, TIMES)]);
        plan.workers[3].dies_at = Some(2_000_000);
        plan.workers[3].noticed_after = Some(1_000);
        let outcome = run(&plan);
        let killed = outcome.device_runs().filter(|run| run.end == RunEnd::Killed);
        assert_eq!(killed.count(), 1);
        let succeeded = outcome.device_runs().filter(|run| run.end == RunEnd::Succeeded);
        assert_eq!(succeeded.count(), 64 + 63 + 1);
        assert!(outcome.succeeded_at[0].is_some());
    }

    #[test]
    fn the_same_plan_gives_the_same_outcome() {
        let mut plan = mk_plan(3, vec![proof("a", "x", 9, TIMES), proof("b", "y", 13, TIMES)]);
        plan.jobs[0].tasks[2].failures = 1;
        let (one, other) = (run(&plan), run(&plan));
        assert_eq!(format!("{one:?}"), format!("{other:?}"));
        assert_eq!(
            one.device_runs().filter(|run| run.end == RunEnd::Failed).count(),
            1
        );
    }
}
