//! The seeds that every change must keep, and those that found a bug once.

use prover_sim::run;

/// Seeds of `every_seed_keeps_all_promises`; `make sim SEEDS=n` runs more.
const SEEDS: u64 = 500;
/// Seeds that run at once.
const THREADS: u64 = 2;

#[test]
fn the_same_seed_does_the_same_twice() {
    for seed in [3, 7, 12] {
        let (first, second) = (run(seed, false), run(seed, true));
        assert_eq!(first.trace_hash, second.trace_hash, "seed {seed}");
        assert_eq!(first.events, second.events, "seed {seed}");
    }
}

#[test]
fn different_seeds_do_different_things() {
    assert_ne!(run(3, false).trace_hash, run(4, false).trace_hash);
}

/// Each found a bug once, or a promise that was put wrongly.
#[test]
fn seeds_that_once_broke_a_promise_keep_all() {
    let found = [
        (82, "a stale leader gave a task away while its successor did"),
        (84, "a stale leader gave away what its successor had deleted"),
        (
            145,
            "the planner of a plan that was never committed planned for the next leader",
        ),
        (367, "the planner of an earlier plan succeeded for the new one"),
        (498, "as 145, after a crash of both coordinators"),
        (
            1816,
            "a stale leader without workers deleted a job that it had never taken",
        ),
        (
            2080,
            "a straggler whose inputs were never committed got a second attempt",
        ),
        (
            20_143,
            "host memory of an overtaken attempt was given to others on a worker without faults",
        ),
        (
            352,
            "what a leader never committed was stopped, and its memory was given away before it had left",
        ),
        (
            75_756,
            "what was on its way to a silent worker was stopped, and its room was given away before it had left",
        ),
        (
            79_104,
            "of two whose slots had been taken over the smaller one counted as the one that had stayed",
        ),
        (
            5_319,
            "nobody heard a worker say that it had stopped what it had held under an earlier name",
        ),
        (
            61_929,
            "what started before something larger that had been fetched ahead gave its memory away",
        ),
        (64_788, "as 61929"),
        (
            94_807,
            "the simulated shell of the log did not poll its machine after a checkpoint",
        ),
    ];
    for (seed, story) in found {
        assert_eq!(run(seed, false).violation, None, "seed {seed}: {story}");
    }
}

#[test]
fn every_seed_keeps_all_promises() {
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            std::thread::spawn(move || {
                (thread..SEEDS)
                    .step_by(THREADS as usize)
                    .filter_map(|seed| run(seed, false).violation.map(|violation| (seed, violation)))
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let broken: Vec<_> = threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .collect();
    assert!(
        broken.is_empty(),
        "replay one with `make sim SEED=x`: {broken:#?}"
    );
}
