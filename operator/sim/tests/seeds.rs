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
