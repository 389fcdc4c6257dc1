//! One test per rule.

use std::time::Duration;

use bytes::Bytes;

use super::{Store, leader, limits, machine, ms, read_all, records, settle, settle_with};
use crate::error::{AppendError, CheckpointError, LogError};
use crate::limits::Limits;
use crate::machine::{CheckpointContent, Machine};
use crate::model::{Index, Phase, Replayed, State, WriterId};
use crate::names;
use crate::request::{Answer, Failure, Operation, Request};

fn content<R: AsRef<[u8]>>(records: &[R]) -> CheckpointContent {
    CheckpointContent::new(records, &limits()).unwrap()
}

fn refusal(retry: bool) -> Answer {
    Answer::Failed(Failure {
        retry,
        damaged: false,
        category: "access_denied",
        problem: "no".into(),
    })
}

/// Appends one record and commits it.
fn commit(machine: &mut Machine, store: &mut Store, record: &str, now: Duration) {
    let index = machine.append(&[record]).unwrap();
    settle(machine, store, now);
    assert_eq!(machine.progress().committed, index, "{record}");
}

/// Commits so many records, each in an object of its own, from this second on.
fn commit_many(machine: &mut Machine, store: &mut Store, count: u64, second: u64) {
    for number in 0..count {
        commit(
            machine,
            store,
            &format!("r{number}"),
            ms(second * 1_000 + number * 100),
        );
    }
}

fn fill(text: &str, bytes: usize) -> String {
    text.repeat(bytes / text.len())
}

#[test]
fn the_first_leader_of_an_empty_store_has_epoch_one() {
    let mut store = Store::default();
    let machine = leader(1, &mut store, ms(0));
    assert_eq!(machine.phase(), Phase::Leading { epoch: 1 });
    assert_eq!(store.sequences(), [0]);
}

#[test]
fn what_one_leader_committed_the_next_one_reads_in_order() {
    let mut store = Store::default();
    let mut first = leader(1, &mut store, ms(0));
    commit_many(&mut first, &mut store, 3, 1);
    let mut second = leader(2, &mut store, ms(9_000));
    assert_eq!(second.phase(), Phase::Leading { epoch: 2 });
    assert_eq!(records(&second.take_replayed()), ["r0", "r1", "r2"]);
}

#[test]
fn an_idle_leader_asks_for_nothing() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    commit(&mut machine, &mut store, "a", ms(1));
    assert_eq!(machine.wake_at(), None);
    assert!(machine.poll(ms(3_600_000)).is_empty());
}

#[test]
fn what_is_appended_after_a_pause_goes_at_once_and_what_follows_goes_together() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    commit(&mut machine, &mut store, "a", ms(1_000));
    machine.append(&["b"]).unwrap();
    machine.append(&["c"]).unwrap();
    assert!(machine.poll(ms(1_049)).is_empty());
    assert_eq!(machine.wake_at(), Some(ms(1_050)));
    settle(&mut machine, &mut store, ms(1_050));
    assert_eq!(machine.progress().committed, Index(3));
    assert_eq!(store.sequences(), [0, 1, 2], "b and c share an object");
}

#[test]
fn only_one_object_is_in_flight_at_a_time() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    machine.append(&["a"]).unwrap();
    let first = machine.poll(ms(1));
    assert_eq!(first.len(), 1);
    machine.append(&["b"]).unwrap();
    assert!(machine.poll(ms(99)).is_empty());
    let answer = store.perform(&first[0].operation);
    machine.answer(first[0].id, answer, ms(99));
    assert_eq!(machine.poll(ms(99)).len(), 1);
}

#[test]
fn a_full_object_does_not_wait_for_the_interval() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    commit(&mut machine, &mut store, "a", ms(1));
    for _ in 0..3 {
        machine.append(&[fill("x", 500)]).unwrap();
    }
    settle(&mut machine, &mut store, ms(1));
    assert_eq!(
        machine.progress().committed,
        Index(3),
        "two fill an object, the third waits"
    );
}

#[test]
fn records_of_one_call_stay_together_where_they_fit() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    machine.append(&[fill("x", 600)]).unwrap();
    machine.append(&[fill("y", 300), fill("z", 300)]).unwrap();
    settle(&mut machine, &mut store, ms(1));
    settle(&mut machine, &mut store, ms(51));
    let read = read_all(&store, ms(52)).unwrap();
    let sizes: Vec<usize> = read
        .iter()
        .filter_map(|replayed| match replayed {
            Replayed::Entry { records, .. } if !records.is_empty() => Some(records.len()),
            _ => None,
        })
        .collect();
    assert_eq!(sizes, [1, 2]);
}

#[test]
fn more_than_the_queue_holds_is_refused_whole_and_told_in_the_metrics() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    for _ in 0..4 {
        machine.append(&[fill("x", 1_000)]).unwrap();
    }
    let error = machine.append(&[fill("x", 500), fill("x", 500)]).unwrap_err();
    assert_eq!(
        error,
        AppendError::QueueFull {
            queued: 4_016,
            more: 1_008,
            limit: 4_096
        }
    );
    assert_eq!(
        (machine.metrics().refused_appends, machine.metrics().queue_bytes),
        (1, 4_016)
    );
    for now in 1..10 {
        settle(&mut machine, &mut store, ms(now * 50));
    }
    assert_eq!(machine.progress().committed, Index(4), "nothing of it was taken");
    assert_eq!(machine.metrics().queue_bytes, 0);
    machine.append(&[fill("x", 500), fill("x", 500)]).unwrap();
}

#[test]
fn a_record_larger_than_an_object_is_refused() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    let error = machine.append(&[fill("x", 1_100)]).unwrap_err();
    assert!(matches!(error, AppendError::RecordTooLarge { .. }), "{error}");
}

#[test]
fn only_a_leader_appends_and_writes_checkpoints() {
    let mut machine = machine(1);
    assert_eq!(machine.append(&["a"]), Err(AppendError::NotLeading));
    let refused = machine.checkpoint(content(&["a"]), Index(0));
    assert_eq!(refused, Err(CheckpointError::NotLeading));
}

#[test]
fn an_append_whose_answer_was_lost_is_recognised_and_not_written_twice() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    let index = machine.append(&["a"]).unwrap();
    let lost = machine.poll(ms(1));
    store.perform(&lost[0].operation);
    settle(&mut machine, &mut store, ms(101));
    assert!(matches!(machine.progress().state, State::Retrying { .. }));
    settle(&mut machine, &mut store, ms(200));
    assert_eq!(machine.progress().committed, index);
    assert_eq!(machine.progress().state, State::Healthy);
    assert_eq!(records(&read_all(&store, ms(201)).unwrap()), ["a"]);
    // The answer that comes after all changes nothing.
    machine.answer(lost[0].id, Answer::Exists, ms(202));
    assert!(machine.poll(ms(202)).is_empty());
}

#[test]
fn a_repeated_commit_has_the_same_bytes_whatever_was_appended_meanwhile() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    machine.append(&["a"]).unwrap();
    let first = machine.poll(ms(1)).remove(0);
    machine.append(&["b"]).unwrap();
    machine.answer(first.id, refusal(true), ms(2));
    let second = machine.poll(ms(100)).remove(0);
    assert_eq!(second.operation, first.operation);
}

#[test]
fn a_leader_that_meets_the_epoch_of_another_is_fenced_for_good() {
    let mut store = Store::default();
    let mut old = leader(1, &mut store, ms(0));
    commit(&mut old, &mut store, "a", ms(1));
    let _new = leader(2, &mut store, ms(2));
    old.append(&["b"]).unwrap();
    settle(&mut old, &mut store, ms(100));
    assert_eq!(old.phase(), Phase::Fenced { epoch: 2 });
    assert_eq!(old.progress().state, State::Fenced { epoch: 2 });
    assert_eq!(old.progress().committed, Index(1));
    assert_eq!(old.append(&["c"]), Err(AppendError::Fenced { epoch: 2 }));
    assert_eq!((old.metrics().fenced, old.metrics().queue_bytes), (1, 0));
    assert_eq!(records(&read_all(&store, ms(101)).unwrap()), ["a"]);
}

#[test]
fn a_stale_leader_is_fenced_even_after_checkpoints_deleted_everything_else() {
    let mut store = Store::default();
    let mut old = leader(1, &mut store, ms(0));
    commit_many(&mut old, &mut store, 4, 1);
    let mut new = leader(2, &mut store, ms(5_000));
    commit_many(&mut new, &mut store, 9, 6);
    new.checkpoint(content(&["state"]), Index(9)).unwrap();
    settle(&mut new, &mut store, ms(9_000));
    assert_eq!(
        store.sequences(),
        [0, 5],
        "only the beginnings of epochs are left"
    );
    old.append(&["stale"]).unwrap();
    settle(&mut old, &mut store, ms(10_000));
    assert_eq!(old.phase(), Phase::Fenced { epoch: 2 });
    assert_eq!(records(&read_all(&store, ms(10_001)).unwrap()), ["state"]);
}

#[test]
fn a_leader_whose_last_object_was_deleted_creates_the_same_again_and_is_fenced_by_its_next() {
    let mut store = Store::default();
    let mut old = leader(1, &mut store, ms(0));
    old.append(&["landed"]).unwrap();
    let lost = old.poll(ms(1));
    store.perform(&lost[0].operation);
    let mut new = leader(2, &mut store, ms(2));
    assert_eq!(records(&new.take_replayed()), ["landed"]);
    new.checkpoint(content(&["landed"]), Index(0)).unwrap();
    settle(&mut new, &mut store, ms(3));
    assert_eq!(store.sequences(), [0, 2]);
    settle(&mut old, &mut store, ms(500));
    settle(&mut old, &mut store, ms(600));
    assert_eq!(old.progress().committed, Index(1), "it is committed indeed");
    old.append(&["stale"]).unwrap();
    settle(&mut old, &mut store, ms(700));
    assert_eq!(old.phase(), Phase::Fenced { epoch: 2 });
    assert_eq!(records(&read_all(&store, ms(701)).unwrap()), ["landed"]);
    assert_eq!(store.sequences(), [0, 1, 2], "a stray");
    // The next sweep finds it.
    commit(&mut new, &mut store, "more", ms(800));
    new.checkpoint(content(&["landed", "more"]), Index(1)).unwrap();
    settle(&mut new, &mut store, ms(900));
    assert_eq!(store.sequences(), [0, 2]);
}

#[test]
fn one_who_takes_over_below_a_checkpoint_does_not_lead_there() {
    let mut store = Store::default();
    let mut sleeper = machine(1);
    sleeper.catch_up();
    settle(&mut sleeper, &mut store, ms(0));
    let mut leads = leader(2, &mut store, ms(1));
    commit_many(&mut leads, &mut store, 3, 1);
    // As far as the sleeper knows there is nothing: its place is that of an object that is gone.
    store.objects.remove(&names::entry(0));
    leads.checkpoint(content(&["state"]), Index(3)).unwrap();
    settle(&mut leads, &mut store, ms(5_000));
    sleeper.reader_listed_just_now(ms(5_000));
    sleeper.take_over();
    settle(&mut sleeper, &mut store, ms(5_001));
    assert_eq!(
        sleeper.phase(),
        Phase::Leading { epoch: 2 },
        "behind the checkpoint"
    );
    assert_eq!(records(&sleeper.take_replayed()), ["state"]);
    assert_eq!(sleeper.metrics().restarts, 1);
    leads.append(&["stale"]).unwrap();
    settle(&mut leads, &mut store, ms(6_000));
    assert_eq!(leads.phase(), Phase::Fenced { epoch: 2 });
}

#[test]
fn of_two_who_take_over_at_once_both_lead_one_after_the_other_and_the_first_is_fenced() {
    let mut store = Store::default();
    let mut one = machine(1);
    let mut two = machine(2);
    one.take_over();
    two.take_over();
    for now in 0..20 {
        for machine in [&mut one, &mut two] {
            for request in machine.poll(ms(now)) {
                let answer = store.perform(&request.operation);
                machine.answer(request.id, answer, ms(now));
            }
        }
    }
    assert_eq!(one.phase(), Phase::Leading { epoch: 1 });
    assert_eq!(two.phase(), Phase::Leading { epoch: 2 });
    one.append(&["a"]).unwrap();
    settle(&mut one, &mut store, ms(100));
    assert_eq!(one.phase(), Phase::Fenced { epoch: 2 });
}

#[test]
fn an_epoch_whose_answer_was_lost_is_recognised() {
    let mut store = Store::default();
    let mut machine = machine(1);
    machine.take_over();
    let lose_epoch = |request: &Request| match (store.perform(&request.operation), &request.operation) {
        (Answer::Created, _) => refusal(true),
        (answer, _) => answer,
    };
    settle_with(&mut machine, ms(0), lose_epoch);
    settle(&mut machine, &mut store, ms(50));
    assert_eq!(machine.phase(), Phase::Leading { epoch: 1 });
    assert_eq!(store.sequences(), [0]);
}

#[test]
fn a_take_over_that_always_loses_gives_up_and_can_be_tried_again() {
    let mut machine = Machine::new(
        WriterId(1),
        Limits {
            take_over_tries: 3,
            ..limits()
        },
    );
    let mut store = Store::default();
    let mut epoch = 0;
    machine.take_over();
    let outrun = |request: &Request| {
        if let Operation::Create { name, .. } = &request.operation {
            epoch += 1;
            let sequence = names::parse_entry(name).unwrap();
            let theirs = crate::format::epoch(sequence, epoch, WriterId(9));
            store.objects.insert(name.clone(), theirs);
        }
        store.perform(&request.operation)
    };
    settle_with(&mut machine, ms(0), outrun);
    assert_eq!(machine.take_refusal(), Some(LogError::Contended { tries: 4 }));
    assert_eq!(machine.take_refusal(), None);
    machine.take_over();
    settle(&mut machine, &mut store, ms(1));
    assert_eq!(machine.phase(), Phase::Leading { epoch: 5 });
}

#[test]
fn a_follower_reads_on_with_each_round_and_gets_only_what_is_new() {
    let mut store = Store::default();
    let mut leads = leader(1, &mut store, ms(0));
    let mut follower = machine(2);
    follower.catch_up();
    settle(&mut follower, &mut store, ms(1));
    follower.take_replayed();
    commit(&mut leads, &mut store, "a", ms(2));
    follower.catch_up();
    assert_eq!(follower.phase(), Phase::Reading);
    settle(&mut follower, &mut store, ms(3));
    assert_eq!(follower.phase(), Phase::CaughtUp);
    assert_eq!(records(&follower.take_replayed()), ["a"]);
    follower.catch_up();
    settle(&mut follower, &mut store, ms(4));
    assert!(follower.take_replayed().is_empty());
    assert_eq!(
        follower.metrics().requests.get,
        2 + 3 + 1,
        "the object, the end, and one read ahead"
    );
}

#[test]
fn a_follower_that_a_checkpoint_passed_begins_again_behind_it() {
    let mut store = Store::default();
    let mut leads = leader(1, &mut store, ms(0));
    let mut follower = machine(2);
    follower.catch_up();
    settle(&mut follower, &mut store, ms(1));
    follower.take_replayed();
    commit_many(&mut leads, &mut store, 5, 1);
    leads.checkpoint(content(&["state"]), Index(4)).unwrap();
    settle(&mut leads, &mut store, ms(5_000));
    follower.catch_up();
    settle(&mut follower, &mut store, ms(6_000));
    assert_eq!(follower.metrics().restarts, 1);
    let replayed = follower.take_replayed();
    assert!(matches!(&replayed[0], Replayed::Checkpoint { epoch: 1, .. }));
    assert_eq!(records(&replayed), ["state", "r4"]);
}

#[test]
fn a_checkpoint_may_end_within_an_object() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    machine.append(&["a", "b", "c"]).unwrap();
    settle(&mut machine, &mut store, ms(1));
    machine.checkpoint(content(&["ab"]), Index(2)).unwrap();
    settle(&mut machine, &mut store, ms(2));
    assert_eq!(machine.progress().checkpointed, Index(2));
    assert_eq!(records(&read_all(&store, ms(3)).unwrap()), ["ab", "c"]);
}

#[test]
fn a_checkpoint_waits_until_what_it_covers_is_committed() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    commit(&mut machine, &mut store, "a", ms(1));
    let index = machine.append(&["b"]).unwrap();
    machine.checkpoint(content(&["ab"]), index).unwrap();
    settle(&mut machine, &mut store, ms(2));
    assert_eq!(machine.progress().checkpointed, Index(0));
    settle(&mut machine, &mut store, ms(100));
    assert_eq!(machine.progress().checkpointed, index);
}

#[test]
fn a_checkpoint_of_many_parts_is_not_there_before_its_last_object() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    commit(&mut machine, &mut store, "a", ms(1));
    let state: Vec<String> = (0..8).map(|number| fill(&number.to_string(), 400)).collect();
    machine.checkpoint(content(&state), Index(1)).unwrap();
    let mut created = 0;
    settle_with(&mut machine, ms(2), |request| {
        let answer = store.perform(&request.operation);
        if answer == Answer::Created {
            created += 1;
            let read = records(&read_all(&store, ms(2)).unwrap());
            if created < 5 {
                assert_eq!(read, ["a"], "{created}");
            } else {
                assert_eq!(read, state);
            }
        }
        answer
    });
    assert_eq!(created, 5, "four parts and the marker");
}

#[test]
fn old_checkpoints_and_parts_of_unfinished_ones_are_deleted() {
    let mut store = Store::default();
    let mut first = leader(1, &mut store, ms(0));
    commit(&mut first, &mut store, "a", ms(1));
    first.checkpoint(content(&["old"]), Index(1)).unwrap();
    settle(&mut first, &mut store, ms(2));
    commit(&mut first, &mut store, "b", ms(100));
    // This one dies before its marker.
    first.checkpoint(content(&["unfinished"]), Index(2)).unwrap();
    for request in first.poll(ms(101)) {
        store.perform(&request.operation);
    }
    let mut second = leader(2, &mut store, ms(200));
    assert_eq!(records(&second.take_replayed()), ["old", "b"]);
    second.checkpoint(content(&["new"]), Index(0)).unwrap();
    settle(&mut second, &mut store, ms(201));
    let left: Vec<&String> = store
        .objects
        .keys()
        .filter(|name| name.starts_with("checkpoint/"))
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(records(&read_all(&store, ms(202)).unwrap()), ["new"]);
}

#[test]
fn a_checkpoint_is_due_after_enough_objects_and_not_while_one_is_written() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    commit_many(&mut machine, &mut store, 6, 1);
    assert!(!machine.progress().checkpoint_due);
    commit(&mut machine, &mut store, "more", ms(3_000));
    assert!(machine.progress().checkpoint_due);
    machine.checkpoint(content(&["state"]), Index(7)).unwrap();
    assert!(!machine.progress().checkpoint_due);
    let again = machine.checkpoint(content(&["state"]), Index(7));
    assert_eq!(again, Err(CheckpointError::Running));
    settle(&mut machine, &mut store, ms(3_001));
    assert!(!machine.progress().checkpoint_due);
    assert_eq!(machine.metrics().checkpoints, 1);
}

#[test]
fn a_checkpoint_of_what_was_not_appended_or_lies_before_the_last_one_is_refused() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    commit_many(&mut machine, &mut store, 3, 1);
    machine.checkpoint(content(&["state"]), Index(2)).unwrap();
    settle(&mut machine, &mut store, ms(2_000));
    for through in [1, 4] {
        let error = machine.checkpoint(content(&["x"]), Index(through)).unwrap_err();
        assert!(matches!(error, CheckpointError::OutOfRange { .. }), "{error}");
    }
}

#[test]
fn at_the_most_objects_commits_wait_for_a_checkpoint_and_say_so() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    commit_many(&mut machine, &mut store, 31, 1);
    let index = machine.append(&["waits"]).unwrap();
    settle(&mut machine, &mut store, ms(9_000));
    assert_eq!(machine.progress().committed, Index(31));
    let State::Retrying { since, error } = machine.progress().state else {
        panic!("{:?}", machine.progress());
    };
    assert_eq!(since, ms(9_000));
    assert!(error.contains("wait for a checkpoint"), "{error}");
    // One that itself waits for the commit lets it through.
    machine.checkpoint(content(&["state"]), index).unwrap();
    settle(&mut machine, &mut store, ms(9_100));
    assert_eq!(machine.progress().checkpointed, index);
    assert_eq!(machine.progress().state, State::Healthy);
}

#[test]
fn retained_objects_stay_for_followers_below_a_checkpoint() {
    let mut store = Store::default();
    let mut machine = Machine::new(
        WriterId(1),
        Limits {
            retained_objects: 2,
            ..limits()
        },
    );
    machine.take_over();
    settle(&mut machine, &mut store, ms(0));
    commit_many(&mut machine, &mut store, 6, 1);
    machine.checkpoint(content(&["state"]), Index(6)).unwrap();
    settle(&mut machine, &mut store, ms(5_000));
    assert_eq!(store.sequences(), [0, 5, 6]);
}

#[test]
fn a_store_that_is_away_is_tried_again_with_growing_waits_and_nothing_is_lost() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    let index = machine.append(&["a"]).unwrap();
    let mut tries = Vec::new();
    for now in 1..400 {
        for request in machine.poll(ms(now)) {
            tries.push(now);
            // Not even one that says that trying again is useless: access may be granted again.
            machine.answer(request.id, refusal(now % 2 == 0), ms(now));
        }
    }
    let waits: Vec<u64> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(&waits[..5], [5, 10, 20, 40, 40]);
    let State::Retrying { since, error } = machine.progress().state else {
        panic!("{:?}", machine.progress());
    };
    assert_eq!(since, ms(1), "when it began");
    assert!(error.contains("log/"), "{error}");
    settle(&mut machine, &mut store, ms(500));
    assert_eq!(
        (machine.progress().committed, machine.progress().state),
        (index, State::Healthy)
    );
}

#[test]
fn a_request_without_an_answer_is_sent_again_after_its_time() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    machine.append(&["a"]).unwrap();
    assert_eq!(machine.poll(ms(1)).len(), 1);
    assert_eq!(machine.wake_at(), Some(ms(101)));
    assert!(machine.poll(ms(100)).is_empty());
    assert!(machine.poll(ms(101)).is_empty(), "first it waits");
    assert_eq!(machine.wake_at(), Some(ms(106)));
    assert_eq!(machine.poll(ms(106)).len(), 1);
}

#[test]
fn a_reader_that_is_refused_says_so_and_can_be_asked_again() {
    let mut store = Store::default();
    let _leads = leader(1, &mut store, ms(0));
    let mut follower = machine(2);
    follower.catch_up();
    settle_with(&mut follower, ms(1), |_| refusal(false));
    let Some(LogError::Refused { category, .. }) = follower.take_refusal() else {
        panic!("it is not told");
    };
    assert_eq!(category, "access_denied");
    follower.catch_up();
    settle(&mut follower, &mut store, ms(2));
    assert_eq!(follower.phase(), Phase::CaughtUp);
}

#[test]
fn a_damaged_object_is_read_again_and_then_named() {
    let mut store = Store::default();
    let mut leads = leader(1, &mut store, ms(0));
    commit_many(&mut leads, &mut store, 3, 1);
    let name = names::entry(2);
    let mut bytes = store.objects[&name].to_vec();
    bytes.truncate(55);
    let whole = store.objects.insert(name.clone(), bytes.into());
    let mut follower = machine(2);
    follower.catch_up();
    for now in 0..20 {
        settle(&mut follower, &mut store, ms(5_000 + now * 10));
    }
    let Phase::Failed(error) = follower.phase() else {
        panic!("{:?}", follower.phase());
    };
    assert!(
        matches!(&*error, LogError::Damaged { key, .. } if *key == name),
        "{error}"
    );
    // Damage on the way, that is not there when it is read once more, is none.
    let mut follower = machine(3);
    follower.catch_up();
    settle(&mut follower, &mut store, ms(6_000));
    store.objects.insert(name, whole.unwrap());
    settle(&mut follower, &mut store, ms(6_100));
    assert_eq!(follower.phase(), Phase::CaughtUp);
    assert_eq!(records(&follower.take_replayed()), ["r0", "r1", "r2"]);
}

#[test]
fn a_missing_object_that_no_checkpoint_covers_is_named() {
    let mut store = Store::default();
    let mut leads = leader(1, &mut store, ms(0));
    commit_many(&mut leads, &mut store, 5, 1);
    let mut follower = machine(2);
    follower.catch_up();
    store.objects.remove(&names::entry(2));
    settle(&mut follower, &mut store, ms(5_000));
    let Phase::Failed(error) = follower.phase() else {
        panic!("{:?}", follower.phase());
    };
    assert_eq!(*error, LogError::Missing { key: names::entry(2) });
}

#[test]
fn a_lost_checkpoint_is_not_taken_for_an_empty_log() {
    let mut store = Store::default();
    let mut leads = leader(1, &mut store, ms(0));
    commit_many(&mut leads, &mut store, 5, 1);
    leads.checkpoint(content(&["state"]), Index(4)).unwrap();
    settle(&mut leads, &mut store, ms(5_000));
    store.objects.retain(|name, _| !name.starts_with("checkpoint/"));
    let phase = read_all(&store, ms(6_000)).unwrap_err();
    assert!(matches!(phase, Phase::Failed(_)), "{phase:?}");
}

#[test]
fn a_checkpoint_without_one_of_its_parts_is_named() {
    let mut store = Store::default();
    let mut leads = leader(1, &mut store, ms(0));
    commit(&mut leads, &mut store, "a", ms(1));
    leads.checkpoint(content(&["state"]), Index(1)).unwrap();
    settle(&mut leads, &mut store, ms(2));
    store.objects.retain(|name, _| !name.ends_with("00000000"));
    let phase = read_all(&store, ms(3)).unwrap_err();
    assert!(
        matches!(&phase, Phase::Failed(error) if matches!(**error, LogError::Missing { .. })),
        "{phase:?}"
    );
}

#[test]
fn a_reader_whose_checkpoint_is_replaced_meanwhile_takes_the_newer_one() {
    let mut store = Store::default();
    let mut leads = leader(1, &mut store, ms(0));
    commit(&mut leads, &mut store, "a", ms(1));
    leads.checkpoint(content(&["old"]), Index(1)).unwrap();
    settle(&mut leads, &mut store, ms(2));
    let mut follower = machine(2);
    follower.catch_up();
    let list = follower.poll(ms(3)).remove(0);
    let answer = store.perform(&list.operation);
    follower.answer(list.id, answer, ms(3));
    commit(&mut leads, &mut store, "b", ms(100));
    leads.checkpoint(content(&["new"]), Index(2)).unwrap();
    settle(&mut leads, &mut store, ms(101));
    settle(&mut follower, &mut store, ms(102));
    assert_eq!(records(&follower.take_replayed()), ["new"]);
}

#[test]
fn two_clusters_at_one_prefix_are_told() {
    let mut store = Store::default();
    let mut leads = leader(1, &mut store, ms(0));
    leads.append(&["a"]).unwrap();
    let mut other = Store::default();
    let mut stranger = leader(2, &mut other, ms(0));
    commit(&mut stranger, &mut other, "b", ms(1));
    store
        .objects
        .insert(names::entry(1), other.objects[&names::entry(1)].clone());
    settle(&mut leads, &mut store, ms(2));
    let Phase::Failed(error) = leads.phase() else {
        panic!("{:?}", leads.phase());
    };
    assert!(matches!(&*error, LogError::Contradiction { .. }), "{error}");
    let refused = leads.append(&["c"]).unwrap_err();
    assert_eq!(refused.category(), "failed");
}

#[test]
fn a_newer_version_fences_an_old_leader_and_is_named_to_an_old_follower() {
    let mut store = Store::default();
    let mut leads = leader(1, &mut store, ms(0));
    let mut newer = crate::format::epoch(1, 7, WriterId(2)).to_vec();
    newer[4] = crate::format::FORMAT + 1;
    store.objects.insert(names::entry(1), newer.into());
    leads.append(&["a"]).unwrap();
    settle(&mut leads, &mut store, ms(1));
    assert_eq!(leads.phase(), Phase::Fenced { epoch: 7 });
    let phase = read_all(&store, ms(2)).unwrap_err();
    assert!(
        matches!(&phase, Phase::Failed(error) if matches!(**error, LogError::NewerFormat { .. })),
        "{phase:?}"
    );
}

#[test]
fn a_take_over_that_was_given_up_leaves_a_follower() {
    let mut store = Store::default();
    let mut machine = machine(1);
    machine.take_over();
    settle(&mut machine, &mut Store::default(), ms(0));
    let mut machine = super::machine(2);
    machine.take_over();
    machine.poll(ms(0));
    machine.give_up_taking_over();
    assert_eq!(machine.phase(), Phase::Reading);
    assert!(machine.poll(ms(1)).is_empty());
    machine.catch_up();
    settle(&mut machine, &mut store, ms(2));
    assert_eq!(machine.phase(), Phase::CaughtUp);
    assert!(store.objects.is_empty());
}

#[test]
fn reading_ahead_asks_for_no_more_than_its_limit_at_once() {
    let mut store = Store::default();
    let mut leads = leader(1, &mut store, ms(0));
    commit_many(&mut leads, &mut store, 20, 1);
    let mut follower = machine(2);
    follower.catch_up();
    let mut most = 0;
    for _ in 0..100 {
        let requests = follower.poll(ms(9_000));
        most = most.max(requests.len());
        // The last asked is answered first.
        for request in requests.iter().rev() {
            let answer = store.perform(&request.operation);
            follower.answer(request.id, answer, ms(9_000));
        }
    }
    assert_eq!(follower.phase(), Phase::CaughtUp);
    assert_eq!(most, 4);
    assert_eq!(records(&follower.take_replayed()).len(), 20);
}

#[test]
fn refused_deletes_do_not_hold_up_the_log() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    commit_many(&mut machine, &mut store, 3, 1);
    machine.checkpoint(content(&["state"]), Index(3)).unwrap();
    settle_with(&mut machine, ms(5_000), |request| match request.operation {
        Operation::Delete { .. } => refusal(false),
        _ => store.perform(&request.operation),
    });
    assert_eq!(machine.progress().checkpointed, Index(3));
    assert!(machine.progress().checkpoint_error.is_some());
    assert_eq!(store.sequences(), [0, 1, 2, 3]);
    commit(&mut machine, &mut store, "more", ms(6_000));
    machine.checkpoint(content(&["state", "more"]), Index(4)).unwrap();
    settle(&mut machine, &mut store, ms(7_000));
    assert_eq!(store.sequences(), [0], "the next one finds what was left");
    assert_eq!(machine.progress().checkpoint_error, None);
}

#[test]
fn an_empty_checkpoint_is_a_checkpoint() {
    let mut store = Store::default();
    let mut machine = leader(1, &mut store, ms(0));
    commit(&mut machine, &mut store, "a", ms(1));
    machine.checkpoint(content::<&str>(&[]), Index(1)).unwrap();
    settle(&mut machine, &mut store, ms(2));
    let read = read_all(&store, ms(3)).unwrap();
    let empty: Vec<Bytes> = Vec::new();
    assert_eq!(
        read,
        [Replayed::Checkpoint {
            epoch: 1,
            records: empty
        }]
    );
}
