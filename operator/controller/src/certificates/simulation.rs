//! Five years of a cluster in seconds, with real keys and the verification that workers make.

use proptest::prelude::*;

use prover_crds::names;

use super::issue::{
    AuthorityCertificate, Leaf, create_authority, is_trusted, issue_leaf, read_authority, read_bundle,
    read_leaf,
};
use super::plan::{Step, plan};
use super::state::State;

const SECOND: u64 = 1_000;
const HOUR: u64 = 3_600 * SECOND;
const DAY: u64 = 24 * HOUR;
const BEGIN: u64 = 1_800_000_000 * SECOND;
/// Mounted ConfigMaps and Secrets lag by up to this time.
const LAG: u64 = 120 * SECOND;
const CLUSTER: &str = "proofs/main";

/// A cluster whose workers and coordinator see changes late.
struct World {
    now_ms: u64,
    state: State,
    bundles: Vec<(u64, Vec<AuthorityCertificate>)>,
    leaves: Vec<(u64, Leaf)>,
    steps: Vec<&'static str>,
}

impl World {
    fn new() -> World {
        World {
            now_ms: BEGIN,
            state: State::default(),
            bundles: Vec::new(),
            leaves: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// What the operator does when it looks. Answers when it wants to look again.
    fn look(&mut self) -> u64 {
        for _ in 0..super::MOST_STEPS {
            let step = plan(&self.state.facts(self.now_ms), self.now_ms);
            if let Step::Keep { until_ms } = step {
                return until_ms;
            }
            self.steps.push(step.as_str());
            self.state.take(&step, CLUSTER, self.now_ms).unwrap();
            self.publish();
        }
        panic!("{:?} came to no end", self.steps)
    }

    fn publish(&mut self) {
        let new_bundle =
            |bundle: &&Vec<AuthorityCertificate>| self.bundles.last().is_none_or(|(_, last)| last != *bundle);
        let bundle = self.state.bundle.as_ref().filter(new_bundle).cloned();
        self.bundles.extend(bundle.map(|bundle| (self.now_ms, bundle)));
        let new_leaf = |leaf: &&Leaf| self.leaves.last().is_none_or(|(_, last)| last != *leaf);
        let leaf = self.state.leaf.as_ref().filter(new_leaf).cloned();
        self.leaves.extend(leaf.map(|leaf| (self.now_ms, leaf)));
    }

    /// Whatever a worker has and whatever a coordinator serves at this moment, they agree.
    fn check(&self) -> Result<(), TestCaseError> {
        for (_, leaf) in seen(&self.leaves, self.now_ms) {
            for (_, bundle) in seen(&self.bundles, self.now_ms) {
                prop_assert!(
                    is_trusted(leaf, bundle, names::COORDINATOR_SERVER_NAME, self.now_ms),
                    "a worker refuses its coordinator {} h after the begin, after {:?}",
                    (self.now_ms - BEGIN) / HOUR,
                    self.steps
                );
            }
        }
        Ok(())
    }

    fn go_to(&mut self, time: u64) -> Result<(), TestCaseError> {
        // Between changes nothing but time passes: it is enough to look before and after each.
        self.now_ms = time.saturating_sub(1).max(self.now_ms);
        self.check()?;
        self.now_ms = time;
        self.check()
    }
}

/// What may be seen: the last version from before the lag, and every later one. Nobody starts without the first.
fn seen<T>(versions: &[(u64, T)], now_ms: u64) -> &[(u64, T)] {
    let old = versions
        .iter()
        .rposition(|(time, _)| time + LAG <= now_ms)
        .unwrap_or(0);
    &versions[old..]
}

fn live(world: &mut World, years: u64, mut lateness: impl FnMut() -> u64) -> Result<(), TestCaseError> {
    while world.now_ms < BEGIN + years * 365 * DAY {
        let next = world.look();
        world.check()?;
        let after = world.now_ms + LAG;
        let next = next.max(world.now_ms + SECOND) + lateness();
        if after < next {
            world.go_to(after)?;
        }
        world.go_to(next)?;
    }
    Ok(())
}

#[test]
fn a_new_cluster_gets_everything_at_once_and_then_is_left_alone() {
    let mut world = World::new();
    let until = world.look();
    assert_eq!(world.steps, ["create_authority", "publish_bundle", "issue_leaf"]);
    assert_eq!(until, BEGIN + 60 * DAY);
    world.check().unwrap();
}

#[test]
fn over_five_years_authorities_and_certificates_are_renewed_without_a_moment_of_disagreement() {
    let mut world = World::new();
    live(&mut world, 5, || 0).unwrap();
    let count = |step: &str| world.steps.iter().filter(|taken| **taken == step).count();
    assert_eq!(count("create_authority"), 1);
    assert_eq!(
        (
            count("start_rotation"),
            count("switch_authority"),
            count("finish_rotation")
        ),
        (3, 3, 3)
    );
    assert!(
        (28..=36).contains(&count("issue_leaf")),
        "{}",
        count("issue_leaf")
    );
    assert!(world.bundles.iter().all(|(_, bundle)| bundle.len() <= 2));
}

#[test]
fn a_lost_authority_is_replaced_while_what_it_signed_is_still_served() {
    let mut world = World::new();
    world.look();
    world.go_to(BEGIN + 10 * DAY).unwrap();
    world.state.current = None;
    world.steps.clear();
    let until = world.look();
    // Workers learn of the new authority first.
    assert_eq!(world.steps, ["create_authority", "publish_bundle"]);
    world.check().unwrap();
    world.go_to(until).unwrap();
    live(&mut world, 1, || 0).unwrap();
    assert!(world.steps.contains(&"finish_rotation"), "{:?}", world.steps);
}

#[test]
fn a_deleted_or_foreign_certificate_is_replaced_at_once() {
    let mut world = World::new();
    world.look();
    let stranger = create_authority("somebody/else", BEGIN).unwrap();
    let forged = issue_leaf(&stranger, names::COORDINATOR_SERVER_NAME, BEGIN).unwrap();
    let misnamed = issue_leaf(world.state.current.as_ref().unwrap(), "other.example", BEGIN).unwrap();
    for leaf in [None, Some(forged), Some(misnamed)] {
        world.state.leaf = leaf;
        world.steps.clear();
        world.look();
        assert_eq!(world.steps, ["issue_leaf"]);
    }
}

#[test]
fn a_changed_bundle_is_restored_and_a_foreign_authority_thrown_out() {
    let mut world = World::new();
    world.look();
    let stranger = create_authority("somebody/else", BEGIN).unwrap();
    for bundle in [None, Some(Vec::new()), Some(vec![stranger.certificate])] {
        world.state.bundle = bundle;
        world.steps.clear();
        world.look();
        assert_eq!(world.steps, ["publish_bundle"]);
        let current = &world.state.current.as_ref().unwrap().certificate;
        assert_eq!(world.state.bundle.as_deref(), Some(std::slice::from_ref(current)));
    }
}

#[test]
fn a_bundle_that_was_published_nobody_knows_when_counts_from_now_on() {
    let mut world = World::new();
    world.look();
    world.now_ms = BEGIN + DAY;
    world.state.published.clear();
    world.steps.clear();
    world.look();
    assert_eq!(world.steps, ["publish_bundle"]);
    assert_eq!(
        world.state.published.values().copied().collect::<Vec<_>>(),
        [BEGIN + DAY]
    );
}

#[test]
fn an_operator_that_was_away_for_years_begins_anew() {
    let mut world = World::new();
    world.look();
    world.now_ms = BEGIN + 1_000 * DAY;
    world.steps.clear();
    world.look();
    assert_eq!(world.steps, ["create_authority", "publish_bundle", "issue_leaf"]);
    let leaf = world.state.leaf.as_ref().unwrap();
    let bundle = world.state.bundle.as_ref().unwrap();
    assert!(is_trusted(
        leaf,
        bundle,
        names::COORDINATOR_SERVER_NAME,
        world.now_ms
    ));
}

#[test]
fn what_was_written_is_read_again_and_keys_of_others_are_not_taken() {
    let authority = create_authority(CLUSTER, BEGIN).unwrap();
    let leaf = issue_leaf(&authority, names::COORDINATOR_SERVER_NAME, BEGIN).unwrap();
    let other = issue_leaf(&authority, names::COORDINATOR_SERVER_NAME, BEGIN).unwrap();
    let read = read_authority(&authority.certificate.pem, &authority.key_pem).unwrap();
    assert_eq!(read.certificate.id, authority.certificate.id);
    assert_eq!(read.certificate.not_after_ms, authority.certificate.not_after_ms);
    let again = read_leaf(&leaf.pem, &leaf.key_pem).unwrap();
    assert_eq!(
        (again.issued_at_ms, again.not_after_ms),
        (leaf.issued_at_ms, leaf.not_after_ms)
    );
    assert!(read_leaf(&leaf.pem, &other.key_pem).is_none());
    assert!(read_authority(&authority.certificate.pem, &leaf.key_pem).is_none());
    let bundle = format!(
        "{}{}",
        authority.certificate.pem,
        create_authority(CLUSTER, BEGIN).unwrap().certificate.pem
    );
    assert_eq!(read_bundle(&bundle).unwrap().len(), 2);
    assert!(read_bundle("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n").is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn an_operator_that_looks_late_keeps_the_promise_too(
        lateness in proptest::collection::vec(0_u64..10 * DAY, 64),
        losses in proptest::collection::vec((0_u64..1_800, 0_u8..3), 0..6),
    ) {
        let mut world = World::new();
        let mut late = lateness.into_iter().cycle();
        let mut losses = losses;
        losses.sort_unstable();
        for (day, lost) in losses {
            let until = day / 365;
            live(&mut world, until, || late.next().unwrap_or(0))?;
            // Where a Secret or a bundle is lost, the operator sees it at once.
            match lost {
                0 => world.state.next = None,
                1 => world.state.current = None,
                _ => world.state.published.clear(),
            }
            world.look();
            world.check()?;
        }
        live(&mut world, 5, || late.next().unwrap_or(0))?;
    }
}
