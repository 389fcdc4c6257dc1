//! Fairness within a bound, from outside: what devices did for whom, in random clusters with failures and lost workers.

use prover_bench::statistics::Random;
use prover_bench::virtual_time::{JobPlan, Plan, Run, TaskPlan, WorkerPlan, gpu_task, run, usual_policy};

/// Decisions over which shares are taken, for each device.
const WINDOW_PER_DEVICE: usize = 10;
/// Largest difference between the share of a tenant and what it should be.
const BOUND: f64 = 0.12;

/// A cluster in which several tenants want more than there is, drawn from a seed.
struct Contest {
    plan: Plan,
    tenant_of_job: Vec<usize>,
    weights: Vec<u32>,
    devices: usize,
}

impl Contest {
    fn draw(seed: u64) -> Contest {
        let mut random = Random::new(seed);
        let devices = 4 + random.below(28) as usize;
        let tenants = 2 + random.below(3) as usize;
        let mut plan = Plan::new();
        plan.limits.prefetch_per_slot = random.below(3) as u16;
        for _ in 0..devices {
            let mut worker = WorkerPlan::gpu();
            match random.below(10) {
                0 => worker.dies_at = Some(5_000_000 + random.below(20_000_000)),
                1 => worker.joins_at = random.below(10_000_000),
                _ => {}
            }
            worker.noticed_after = (random.below(2) == 0).then_some(200_000);
            plan.workers.push(worker);
        }
        // One that neither dies nor comes late.
        plan.workers.push(WorkerPlan::gpu());
        let weights: Vec<u32> = (0..tenants).map(|_| 1 + random.below(5) as u32).collect();
        let mut tenant_of_job = Vec::new();
        for (tenant, weight) in weights.iter().enumerate() {
            let name: String = format!("tenant-{tenant}");
            plan.weights.push((name.as_str().into(), *weight));
            let of_one_type = random.below(2) == 0;
            let usual = 200_000 + random.below(1_000_000);
            let jobs = 1 + random.below(6);
            for number in 0..jobs {
                let tasks = 60 * devices as u64 * u64::from(*weight) / jobs;
                let task_type = if of_one_type {
                    "prove".to_owned()
                } else {
                    format!("prove-{tenant}")
                };
                let job_name = format!("{name}-{number}");
                let mut job = mk_job(&job_name, &name, &task_type, tasks, usual, &mut random);
                job.policy.priority = random.below(3) as i32;
                plan.jobs.push(job);
                tenant_of_job.push(tenant);
            }
        }
        Contest {
            plan,
            tenant_of_job,
            weights,
            devices: devices + 1,
        }
    }
}

fn mk_job(name: &str, tenant: &str, task_type: &str, tasks: u64, usual: u64, random: &mut Random) -> JobPlan {
    let tasks = (0..tasks)
        .map(|number| TaskPlan {
            name: format!("task-{number}").into(),
            task_type: task_type.into(),
            requirements: gpu_task(),
            depends_on: Vec::new(),
            duration: usual / 2 + random.below(usual),
            released_at: 0,
            failures: u32::from(random.below(50) == 0),
            first_attempt: None,
            estimate: None,
        })
        .collect();
    JobPlan {
        name: name.into(),
        tenant: tenant.into(),
        policy: usual_policy(),
        arrives_at: 0,
        tasks,
    }
}

/// Decisions while every tenant had more tasks than all devices can hold, in their order.
fn contended<'runs>(contest: &Contest, runs: &'runs [Run]) -> Vec<&'runs Run> {
    let mut runs: Vec<&Run> = runs.iter().filter(|run| run.device.is_some()).collect();
    runs.sort_by_key(|run| run.decision);
    let mut left = vec![0usize; contest.weights.len()];
    for run in &runs {
        left[contest.tenant_of_job[run.job]] += 1;
    }
    let enough = 4 * contest.devices;
    let mut taken = Vec::new();
    // Before that not all workers have come, and how long tasks take is not known.
    let warm = 20 * contest.devices;
    for (place, run) in runs.into_iter().enumerate() {
        left[contest.tenant_of_job[run.job]] -= 1;
        if left.iter().any(|left| *left < enough) {
            break;
        }
        if place >= warm {
            taken.push(run);
        }
    }
    taken
}

/// The largest difference between a tenant's share of device time and what it should be, in any window.
fn worst(contest: &Contest, runs: &[&Run]) -> f64 {
    let all: u32 = contest.weights.iter().sum();
    let mut worst = 0.0f64;
    for runs in runs.windows(WINDOW_PER_DEVICE * contest.devices) {
        let mut took = vec![0u64; contest.weights.len()];
        for run in runs {
            took[contest.tenant_of_job[run.job]] += run.ended_at - run.started_at;
        }
        let total: u64 = took.iter().sum();
        for (took, weight) in took.iter().zip(&contest.weights) {
            let (share, ideal) = (*took as f64 / total as f64, f64::from(*weight) / f64::from(all));
            worst = worst.max((share - ideal).abs());
        }
    }
    worst
}

#[test]
fn tenants_get_their_shares_of_random_clusters_though_tasks_fail_and_workers_die() {
    // 49: workers die unnoticed. 53: tasks of one type take longer for one tenant than for the others.
    for seed in (0..40).chain([49, 53, 60, 75]) {
        let contest = Contest::draw(seed);
        let outcome = run(&contest.plan);
        assert_eq!(outcome.failed, [], "seed {seed}: every job succeeds");
        let runs = contended(&contest, &outcome.runs);
        assert!(
            runs.len() > 2 * WINDOW_PER_DEVICE * contest.devices,
            "seed {seed}: only {} decisions",
            runs.len()
        );
        let worst = worst(&contest, &runs);
        assert!(worst <= BOUND, "seed {seed}: a share is off by {worst:.3}");
    }
}
