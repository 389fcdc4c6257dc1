//! Properties of the core over random histories of the model world.

mod world;

use proptest::prelude::*;
use prover_core::*;
use world::World;

fn limits() -> Limits {
    Limits {
        crashes_per_task: 1_000,
        replans: 1_000,
        infrastructure_retry_limit: 100_000,
        ..Limits::default()
    }
}

/// Histories per run: `PROPTEST_CASES` asks for more, as a long run before a release does.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 3_000, ..ProptestConfig::default() })]

    /// Nothing is overbooked, no lease is valid twice, each result is accepted once, finished tasks are not run
    /// again, cancelled and suspended jobs get nothing (the world asserts these at every step); afterwards all
    /// jobs end, deletions are right, and the same events make the same actions.
    #[test]
    fn every_random_history_keeps_the_promises_and_ends_all_jobs(
        history in prop::collection::vec((any::<u8>(), any::<u16>(), any::<u8>()), 1..400)
    ) {
        let mut world = World::new(limits());
        for (operation, number, fate) in history {
            world.random(operation, number, fate);
        }
        world.heal_and_finish();
        world.forget_all();
        world.assert_deletions();
        world.assert_deterministic(limits());
    }
}
