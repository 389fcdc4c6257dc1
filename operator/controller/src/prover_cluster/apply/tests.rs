//! What is asked of the API server, and what is not.

use super::*;

fn present(hash: &str, version: &str) -> Present {
    Present {
        hash: Some(hash.to_owned()),
        version: version.to_owned(),
        uid: Some("uid".to_owned()),
        goes: false,
    }
}

fn applied(before: Option<Present>, after: Present) -> Applied {
    Applied {
        hash: "a".to_owned(),
        before,
        after,
        at_ms: 1_000,
    }
}

const LATER: u64 = 1_000 + CACHE_LAG_MS;

#[test]
fn what_is_not_there_is_created_and_what_nobody_remembers_is_applied_again() {
    assert_eq!(plan("a", None, None, LATER), Plan::Create);
    assert_eq!(plan("a", Some(&present("a", "1")), None, LATER), Plan::Change);
}

#[test]
fn what_is_as_it_was_applied_is_kept() {
    let memory = applied(None, present("a", "1"));
    assert_eq!(
        plan("a", Some(&present("a", "1")), Some(&memory), LATER),
        Plan::Keep
    );
}

#[test]
fn what_shall_be_other_or_was_changed_by_others_is_applied_again() {
    let memory = applied(None, present("a", "1"));
    assert_eq!(
        plan("b", Some(&present("a", "1")), Some(&memory), LATER),
        Plan::Change
    );
    assert_eq!(
        plan("a", Some(&present("a", "2")), Some(&memory), LATER),
        Plan::Change
    );
    assert_eq!(plan("a", None, Some(&memory), LATER), Plan::Create);
}

#[test]
fn a_cache_that_lags_behind_is_not_taken_for_a_change_but_only_for_a_while() {
    let created = applied(None, present("a", "1"));
    assert_eq!(plan("a", None, Some(&created), 1_001), Plan::Keep);
    assert_eq!(plan("a", None, Some(&created), LATER), Plan::Create);
    let changed = applied(Some(present("z", "1")), present("a", "2"));
    assert_eq!(
        plan("a", Some(&present("z", "1")), Some(&changed), 1_001),
        Plan::Keep
    );
    assert_eq!(
        plan("a", Some(&present("z", "1")), Some(&changed), LATER),
        Plan::Change
    );
}

#[test]
fn versions_count_what_is_wanted_where_a_status_is_written_too() {
    let mut metadata = ObjectMeta {
        resource_version: Some("7".to_owned()),
        ..ObjectMeta::default()
    };
    assert_eq!(Present::of(&metadata).version, "7");
    metadata.generation = Some(3);
    let first = Present::of(&metadata);
    metadata.resource_version = Some("8".to_owned());
    assert_eq!(Present::of(&metadata), first);
}
