//! What each policy of the scheduler brings: the production core in virtual time, with the policy off and on.
//! Prints Markdown tables, which `docs/scheduler.md` shows.

use std::sync::Arc;

use prover_bench::proofs::{TaskTimes, bound, proof};
use prover_bench::virtual_time::{JobPlan, Outcome, Plan, RunEnd, WorkerPlan, gpu_task, run};
use prover_core::{Limits, Milliseconds};

/// As a proof of 2^20 cycles per segment on a current GPU: a segment with its lift, a join, the last check.
const TIMES: TaskTimes = TaskTimes {
    segment: 800_000,
    join: 200_000,
    verify: 10_000,
    execute: 0,
};

/// Everything that can be switched off, switched off.
fn plain() -> Limits {
    Limits {
        longest_path_first: false,
        speculate_after_percent: 0,
        longest_passed_over: Milliseconds(0),
        fast_devices_first: false,
        ..Limits::default()
    }
}

/// A proof whose joins need other memory than its segments, as those of real backends do.
fn two_classes(name: &str, segments: usize) -> JobPlan {
    let mut job = proof(name, "tenant", segments, TIMES);
    for task in job.tasks.iter_mut().filter(|task| &*task.task_type == "join") {
        task.requirements.vram_bytes /= 2;
    }
    job
}

fn plan(limits: Limits, workers: Vec<WorkerPlan>, jobs: Vec<JobPlan>) -> Plan {
    Plan {
        limits,
        workers,
        jobs,
        ..Plan::new()
    }
}

/// Lower bound over makespan.
fn reached(outcome: &Outcome, jobs: &[JobPlan], devices: usize) -> f64 {
    assert!(
        outcome.failed.is_empty(),
        "all jobs succeed: {:?}",
        outcome.failed
    );
    bound(jobs, devices).highest() as f64 / outcome.makespan as f64
}

fn mean_end(outcome: &Outcome) -> f64 {
    let ends: Vec<u64> = outcome.succeeded_at.iter().flatten().copied().collect();
    ends.iter().sum::<u64>() as f64 / ends.len() as f64 / 1e6
}

fn order() {
    let on = Limits {
        longest_path_first: true,
        ..plain()
    };
    println!("\n| one proof | order of submission | longest path first |\n|---|---|---|");
    for (gpus, segments) in [(8, 160), (64, 1_280), (64, 320), (256, 5_120)] {
        let jobs = vec![two_classes("proof", segments)];
        let of = |limits: &Limits| {
            let outcome = run(&plan(limits.clone(), vec![WorkerPlan::gpu(); gpus], jobs.clone()));
            format!(
                "{:.1} s, {:.3}",
                outcome.makespan as f64 / 1e6,
                reached(&outcome, &jobs, gpus)
            )
        };
        println!(
            "| {gpus} GPUs, {segments} segments | {} | {} |",
            of(&plain()),
            of(&on)
        );
    }
    println!("\n| many proofs | order of submission | longest path first |\n|---|---|---|");
    for (gpus, sizes) in [(16, vec![40; 8]), (64, [1, 2, 4, 8, 16, 32, 64, 128].repeat(4))] {
        let jobs: Vec<JobPlan> = sizes
            .iter()
            .enumerate()
            .map(|(place, segments)| two_classes(&format!("proof-{place}"), *segments))
            .collect();
        let of = |limits: &Limits| {
            let outcome = run(&plan(limits.clone(), vec![WorkerPlan::gpu(); gpus], jobs.clone()));
            let reached = reached(&outcome, &jobs, gpus);
            format!(
                "{:.1} s, {reached:.3}, mean end {:.1} s",
                outcome.makespan as f64 / 1e6,
                mean_end(&outcome)
            )
        };
        println!(
            "| {gpus} GPUs, {} proofs | {} | {} |",
            jobs.len(),
            of(&plain()),
            of(&on)
        );
    }
}

fn stragglers() {
    let on = Limits {
        speculate_after_percent: Limits::default().speculate_after_percent,
        ..plain()
    };
    println!("\n| stragglers | off | on | work done twice |\n|---|---|---|---|");
    for (gpus, segments, slow) in [
        (8, 160, 8_000_000),
        (64, 1_280, 8_000_000),
        (64, 1_280, 40_000_000),
    ] {
        let mut job = proof("proof", "tenant", segments, TIMES);
        // The last segment of every two hundred hangs on its first device.
        let provers = job.tasks.iter_mut().filter(|task| &*task.task_type == "prove");
        for task in provers.skip(159).step_by(200) {
            task.first_attempt = Some(slow);
        }
        let of = |limits: &Limits| {
            run(&plan(
                limits.clone(),
                vec![WorkerPlan::gpu(); gpus],
                vec![job.clone()],
            ))
        };
        let (before, after) = (of(&plain()), of(&on));
        let twice: u64 = after
            .device_runs()
            .filter(|run| run.end == RunEnd::Stopped)
            .map(|run| run.ended_at - run.started_at)
            .sum();
        println!(
            "| {gpus} GPUs, {segments} segments, 1 in 200 takes {} s at first | {:.1} s | {:.1} s | {:.1} % |",
            slow / 1_000_000,
            before.makespan as f64 / 1e6,
            after.makespan as f64 / 1e6,
            100.0 * twice as f64 / after.busy() as f64
        );
    }
}

fn speeds() {
    let tail = Limits {
        speculate_after_percent: Limits::default().speculate_after_percent,
        longest_path_first: true,
        ..plain()
    };
    let fast_first = Limits {
        fast_devices_first: true,
        ..tail
    };
    println!("\n| two speeds | off | fast devices first | fast devices alone |\n|---|---|---|---|");
    for (fast, slow, factor, segments) in [
        (8, 8, 4.0, 160),
        (8, 8, 2.0, 160),
        (32, 32, 4.0, 640),
        (8, 8, 4.0, 24),
    ] {
        let job = proof("proof", "tenant", segments, TIMES);
        let slow_worker = WorkerPlan {
            speed: 1.0 / factor,
            group: Arc::from("slow"),
            ..WorkerPlan::gpu()
        };
        // Slow ones come first, so that nothing else than their speed puts them behind.
        let mut both = vec![slow_worker; slow];
        both.extend(vec![WorkerPlan::gpu(); fast]);
        let warm = proof("warm", "tenant", 2 * (fast + slow), TIMES);
        let of = |limits: &Limits, workers: &[WorkerPlan]| {
            let mut late = job.clone();
            late.arrives_at = 100_000_000;
            let outcome = run(&plan(limits.clone(), workers.to_vec(), vec![warm.clone(), late]));
            assert!(outcome.failed.is_empty(), "all jobs succeed");
            (outcome.makespan - 100_000_000) as f64 / 1e6
        };
        println!(
            "| {fast} GPUs and {slow} that take {factor} times as long, {segments} segments | {:.1} s | {:.1} s | {:.1} s |",
            of(&tail, &both),
            of(&fast_first, &both),
            of(&tail, &both[slow..])
        );
    }
}

fn shares() {
    println!("\n| shares | largest error in a window of 100 tasks |\n|---|---|");
    for (gpus, weights) in [(16, [1, 1]), (16, [3, 1]), (64, [4, 1])] {
        let jobs = vec![proof("a", "a", 4_000, TIMES), proof("b", "b", 4_000, TIMES)];
        let mut plan = plan(Limits::default(), vec![WorkerPlan::gpu(); gpus], jobs);
        plan.weights = vec![("a".into(), weights[0]), ("b".into(), weights[1])];
        // Both have segments left until here.
        plan.end = 4_000 * TIMES.segment / gpus as u64;
        let outcome = run(&plan);
        // What was given while only the first of the two had come counts for neither.
        let given: Vec<usize> = outcome.device_runs().skip(3 * gpus).map(|run| run.job).collect();
        let ideal = f64::from(weights[0]) / f64::from(weights[0] + weights[1]);
        let error = given.windows(100).map(|window| {
            let share = window.iter().filter(|job| **job == 0).count() as f64 / 100.0;
            (share - ideal).abs()
        });
        let error = error.fold(0.0, f64::max);
        println!(
            "| {gpus} GPUs, weights {} : {} | {:.1} % |",
            weights[0],
            weights[1],
            100.0 * error
        );
    }
}

fn aging() {
    println!("\n| a task for a whole GPU beside a stream of small ones | off | on |\n|---|---|---|");
    let small = |place: usize| {
        let mut job = proof(&format!("small-{place}"), "small", 1, TIMES);
        for task in &mut job.tasks {
            task.requirements.vram_bytes = gpu_task().vram_bytes;
            task.duration = 3_000_000;
        }
        job.arrives_at = place as u64 * 450_000;
        job
    };
    let mut large = proof("large", "large", 1, TIMES);
    for task in &mut large.tasks {
        task.requirements.vram_bytes = 3 * gpu_task().vram_bytes;
    }
    large.arrives_at = 5_000_000;
    let mut jobs: Vec<JobPlan> = (0..1_000).map(small).collect();
    jobs.push(large);
    let mut gpu = WorkerPlan::gpu();
    gpu.devices[0].slots = 3;
    let of = |limits: Limits| {
        let outcome = run(&plan(limits, vec![gpu.clone(); 4], jobs.clone()));
        let ended = outcome.succeeded_at.last().copied().flatten().unwrap_or(u64::MAX);
        format!("{:.0} s", (ended.saturating_sub(5_000_000)) as f64 / 1e6)
    };
    let on = Limits {
        longest_passed_over: Limits::default().longest_passed_over,
        ..plain()
    };
    println!(
        "| 4 GPUs of 3 slots, small tasks for 450 s | {} | {} |",
        of(plain()),
        of(on)
    );
}

fn main() {
    order();
    stragglers();
    speeds();
    shares();
    aging();
}
