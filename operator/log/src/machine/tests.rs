//! One test per rule of the machine, over a store in memory that does at once what it is asked.

mod random;
mod rules;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::Machine;
use crate::limits::Limits;
use crate::model::{Phase, Replayed, WriterId};
use crate::names;
use crate::request::{Answer, Operation, Request};

/// Objects by name.
#[derive(Debug, Clone, Default)]
struct Store {
    objects: BTreeMap<String, Bytes>,
}

impl Store {
    fn perform(&mut self, operation: &Operation) -> Answer {
        match operation {
            Operation::Create { name, content } => {
                if self.objects.contains_key(name) {
                    return Answer::Exists;
                }
                self.objects.insert(name.clone(), content.clone());
                Answer::Created
            }
            Operation::Read { name, .. } => match self.objects.get(name) {
                Some(content) => Answer::Content(content.clone()),
                None => Answer::Absent,
            },
            Operation::Delete { name } => {
                self.objects.remove(name);
                Answer::Deleted
            }
            Operation::List { folder, limit } => {
                let all = self.objects.keys().filter(|name| name.starts_with(folder));
                let mut names: Vec<String> = all.take(limit + 1).cloned().collect();
                let truncated = names.len() > *limit;
                names.truncate(*limit);
                Answer::Listed { names, truncated }
            }
        }
    }

    fn sequences(&self) -> Vec<u64> {
        self.objects
            .keys()
            .filter_map(|name| names::parse_entry(name))
            .collect()
    }
}

/// Small enough that a few records reach each of them.
fn limits() -> Limits {
    Limits {
        object_bytes: 1 << 10,
        queue_bytes: 4 << 10,
        part_bytes: 1 << 10,
        checkpoint_due_objects: 8,
        checkpoint_due_bytes: 1 << 20,
        max_objects: 32,
        retained_objects: 0,
        parallel_reads: 4,
        request_timeout: Duration::from_millis(100),
        relist_interval: Duration::from_millis(200),
        first_backoff: Duration::from_millis(5),
        longest_backoff: Duration::from_millis(40),
        ..Limits::default()
    }
}

fn machine(writer: u128) -> Machine {
    Machine::new(WriterId(writer), limits())
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Sends what the machine wants and answers at once, until it wants nothing more now.
fn settle(machine: &mut Machine, store: &mut Store, now: Duration) {
    settle_with(machine, now, |request| store.perform(&request.operation));
}

fn settle_with(machine: &mut Machine, now: Duration, mut perform: impl FnMut(&Request) -> Answer) {
    for _ in 0..100_000 {
        let requests = machine.poll(now);
        if requests.is_empty() {
            return;
        }
        for request in requests {
            let answer = perform(&request);
            machine.answer(request.id, answer, now);
        }
    }
    panic!("the machine asks for ever");
}

fn leader(writer: u128, store: &mut Store, now: Duration) -> Machine {
    let mut machine = machine(writer);
    machine.take_over();
    settle(&mut machine, store, now);
    assert!(
        matches!(machine.phase(), Phase::Leading { .. }),
        "{:?}",
        machine.phase()
    );
    machine
}

/// Reads everything as one who comes anew, from a store without faults.
fn read_all(store: &Store, now: Duration) -> Result<Vec<Replayed>, Phase> {
    let mut machine = machine(u128::MAX);
    let mut store = store.clone();
    machine.catch_up();
    settle(&mut machine, &mut store, now);
    match machine.phase() {
        Phase::CaughtUp => Ok(machine.take_replayed()),
        other => Err(other),
    }
}

/// The records of what was replayed, that of a checkpoint first.
fn records(replayed: &[Replayed]) -> Vec<Bytes> {
    let mut all = Vec::new();
    for replayed in replayed {
        match replayed {
            Replayed::Checkpoint { records, .. } => all.clone_from(records),
            Replayed::Entry { records, .. } => all.extend(records.iter().cloned()),
        }
    }
    all
}
