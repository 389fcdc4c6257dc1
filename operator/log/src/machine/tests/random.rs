//! Several writers at one store, with requests and answers that are lost, late and doubled, crashes and pauses.
//! What is checked is told by the store itself, read by one who comes anew.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::super::Machine;
use super::{Store, limits, ms, read_all, records, settle};
use crate::limits::Limits;
use crate::machine::CheckpointContent;
use crate::model::{Index, Phase, Replayed, WriterId};
use crate::request::{Answer, Failure, Request, RequestId};

/// How many seeds one run of the tests tries; `PROVER_LOG_SEEDS=first..last` tries others.
const SEEDS: std::ops::Range<u64> = 0..60;
const PROCESSES: usize = 3;
const ACTIONS: u64 = 2_500;

/// SplitMix64: enough for choices.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True in so many of a thousand cases.
    fn permille(&mut self, count: u64) -> bool {
        self.below(1_000) < count
    }
}

enum Event {
    /// A request reaches the store, long after its sender forgot it perhaps.
    Perform {
        process: u128,
        request: Request,
        answer: bool,
    },
    Answer {
        process: u128,
        id: RequestId,
        answer: Answer,
    },
    /// A process does something.
    Act { slot: usize },
}

struct Process {
    machine: Machine,
    writer: u128,
    paused_until: Duration,
    /// What it would know as a coordinator: every record that it read or appended.
    known: Vec<Bytes>,
    /// How many of them it knew when it began to lead.
    base: Option<usize>,
}

#[derive(Default)]
struct Seen {
    takeovers: u64,
    fenced: u64,
    checkpoints: u64,
    deleted: u64,
    restarts: u64,
    committed: u64,
    strays: u64,
}

struct World {
    random: Random,
    now: Duration,
    store: Store,
    events: BTreeMap<(Duration, u64), Event>,
    order: u64,
    processes: Vec<Process>,
    next_writer: u128,
    next_record: u64,
    /// What a reader found last; it only ever grows.
    log: Vec<Bytes>,
    healed: bool,
    /// How bad the network of this seed is.
    badness: u64,
    limits: Limits,
    seen: Seen,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let limits = Limits {
            retained_objects: random.below(4),
            parallel_reads: 1 + random.below(6) as usize,
            parallel_deletes: 1 + random.below(4) as usize,
            sweep_reads: 1 + random.below(8) as usize,
            commit_interval: ms(random.below(20)),
            ..limits()
        };
        let mut world = Self {
            badness: random.below(4),
            random,
            now: Duration::ZERO,
            store: Store::default(),
            events: BTreeMap::new(),
            order: 0,
            processes: Vec::new(),
            next_writer: 1,
            next_record: 0,
            log: Vec::new(),
            healed: false,
            limits,
            seen: Seen::default(),
        };
        for slot in 0..PROCESSES {
            let process = world.process();
            world.processes.push(process);
            world.at(ms(1), Event::Act { slot });
        }
        world
    }

    fn process(&mut self) -> Process {
        self.next_writer += 1;
        Process {
            machine: Machine::new(WriterId(self.next_writer), self.limits.clone()),
            writer: self.next_writer,
            paused_until: Duration::ZERO,
            known: Vec::new(),
            base: None,
        }
    }

    fn at(&mut self, delay: Duration, event: Event) {
        self.order += 1;
        self.events.insert((self.now + delay, self.order), event);
    }

    /// Mostly a few milliseconds, now and then longer than anybody waits, rarely for ages.
    fn delay(&mut self) -> Duration {
        if self.healed {
            return ms(1);
        }
        match self.random.below(1_000) {
            0..5 => ms(self.random.below(20_000)),
            5..40 => ms(self.random.below(500) * self.badness),
            _ => ms(1 + self.random.below(8)),
        }
    }

    fn poll(&mut self, slot: usize) {
        let process = &mut self.processes[slot];
        if process.paused_until > self.now {
            return;
        }
        let (writer, requests) = (process.writer, process.machine.poll(self.now));
        for request in requests {
            self.send(writer, &request);
        }
    }

    fn send(&mut self, process: u128, request: &Request) {
        let bad = if self.healed { 0 } else { self.badness };
        if self.random.permille(20 * bad) {
            // Refused by the store, or the answer says nothing of what was done.
            let done = self.random.permille(500);
            if done {
                let delay = self.delay();
                let request = request.clone();
                self.at(
                    delay,
                    Event::Perform {
                        process,
                        request,
                        answer: false,
                    },
                );
            }
            let failure = Failure {
                retry: true,
                damaged: false,
                category: "test",
                problem: "refused".into(),
            };
            let (delay, id) = (self.delay(), request.id);
            self.at(
                delay,
                Event::Answer {
                    process,
                    id,
                    answer: Answer::Failed(failure),
                },
            );
            return;
        }
        if self.random.permille(10 * bad) {
            return;
        }
        let copies = if self.random.permille(15 * bad) { 2 } else { 1 };
        for _ in 0..copies {
            let delay = self.delay();
            let answer = !self.random.permille(15 * bad);
            let request = request.clone();
            self.at(
                delay,
                Event::Perform {
                    process,
                    request,
                    answer,
                },
            );
        }
    }

    fn step(&mut self) {
        let Some(((at, _), event)) = self.events.pop_first() else {
            return;
        };
        self.now = at;
        match event {
            Event::Perform {
                process,
                request,
                answer,
            } => {
                let before = self.store.objects.len();
                let result = self.store.perform(&request.operation);
                let alive = self.processes.iter().any(|known| known.writer == process);
                self.seen.strays += u64::from(!alive && self.store.objects.len() > before);
                if answer {
                    let delay = self.delay();
                    self.at(
                        delay,
                        Event::Answer {
                            process,
                            id: request.id,
                            answer: result,
                        },
                    );
                }
            }
            Event::Answer { process, id, answer } => self.answer(process, id, answer),
            Event::Act { slot } => self.act(slot),
        }
    }

    fn answer(&mut self, writer: u128, id: RequestId, answer: Answer) {
        let Some(slot) = self.processes.iter().position(|process| process.writer == writer) else {
            return;
        };
        let process = &mut self.processes[slot];
        if process.paused_until > self.now {
            // It lies in the socket of a stopped process.
            let wait = process.paused_until - self.now;
            self.at(
                wait,
                Event::Answer {
                    process: writer,
                    id,
                    answer,
                },
            );
            return;
        }
        process.machine.answer(id, answer, self.now);
        self.notice(slot);
        self.poll(slot);
    }

    /// What a coordinator would do with what the machine tells.
    fn notice(&mut self, slot: usize) {
        let process = &mut self.processes[slot];
        for replayed in process.machine.take_replayed() {
            match replayed {
                Replayed::Checkpoint { records, .. } => process.known = records,
                Replayed::Entry { records, .. } => process.known.extend(records),
            }
        }
        match process.machine.phase() {
            Phase::Failed(error) => panic!("{error}"),
            Phase::Leading { .. } if process.base.is_none() => {
                process.base = Some(process.known.len());
                self.seen.takeovers += 1;
            }
            Phase::Fenced { .. } => {
                self.seen.fenced += 1;
                self.restart(slot);
            }
            _ => {}
        }
    }

    fn restart(&mut self, slot: usize) {
        self.check(slot);
        let metrics = self.processes[slot].machine.metrics().clone();
        self.seen.checkpoints += metrics.checkpoints;
        self.seen.deleted += metrics.deleted;
        self.seen.restarts += metrics.restarts;
        self.processes[slot] = self.process();
    }

    fn act(&mut self, slot: usize) {
        if self.healed {
            self.poll(slot);
            let wait = ms(1 + self.random.below(10));
            self.at(wait, Event::Act { slot });
            return;
        }
        if self.processes[slot].paused_until <= self.now {
            match self.random.below(1_000) {
                0..4 => self.restart(slot),
                4..9 => {
                    let pause = ms(self.random.below(4_000));
                    self.processes[slot].paused_until = self.now + pause;
                }
                9..12 => self.processes[slot].machine.give_up_taking_over(),
                12..35 => self.processes[slot].machine.take_over(),
                _ => self.work(slot),
            }
            self.notice(slot);
            self.poll(slot);
        }
        let wait = ms(1 + self.random.below(30));
        self.at(wait, Event::Act { slot });
    }

    fn work(&mut self, slot: usize) {
        let leads = matches!(self.processes[slot].machine.phase(), Phase::Leading { .. });
        if !leads {
            return self.processes[slot].machine.catch_up();
        }
        let count = self.random.below(5);
        let batch: Vec<Bytes> = (0..count)
            .map(|_| {
                self.next_record += 1;
                let mut record = self.next_record.to_le_bytes().to_vec();
                record.resize(8 + self.random.below(200) as usize, 7);
                Bytes::from(record)
            })
            .collect();
        let process = &mut self.processes[slot];
        if process.machine.append(&batch).is_ok() {
            process.known.extend(batch);
        }
        if process.machine.progress().checkpoint_due {
            self.checkpoint(slot);
        }
    }

    fn checkpoint(&mut self, slot: usize) {
        let any = self.random.next();
        let process = &mut self.processes[slot];
        let base = process.base.unwrap_or_default();
        let last = (process.known.len() - base) as u64;
        // Of now or of some time ago.
        let least = process.machine.progress().checkpointed.0;
        let through = least + any % (last - least + 1);
        let covered = &process.known[..base + through as usize];
        let content = CheckpointContent::new(covered, &self.limits).unwrap();
        process.machine.checkpoint(content, Index(through)).unwrap();
    }

    /// What this process holds for committed is in the log, and its reader finds it in this place.
    fn check(&mut self, slot: usize) {
        let found = read_all(&self.store, self.now).unwrap_or_else(|phase| panic!("a reader is {phase:?}"));
        let found = records(&found);
        assert!(
            found.starts_with(&self.log),
            "what a reader saw once is gone or elsewhere"
        );
        self.log = found;
        let process = &self.processes[slot];
        let known = match process.base {
            Some(base) => &process.known[..base + process.machine.progress().committed.0 as usize],
            None => &process.known,
        };
        assert!(
            self.log.starts_with(known),
            "a process holds {} records for committed that a reader finds otherwise among {}",
            known.len(),
            self.log.len()
        );
        self.seen.committed = self.log.len() as u64;
    }

    fn run(&mut self) {
        for action in 0..ACTIONS {
            self.step();
            if action % 10 == 0 {
                let slot = self.random.below(PROCESSES as u64) as usize;
                self.check(slot);
            }
        }
        self.heal();
    }

    /// Once everything works, one who wants to lead does so soon, and commits.
    fn heal(&mut self) {
        self.healed = true;
        for process in &mut self.processes {
            process.paused_until = Duration::ZERO;
        }
        let deadline = self.now + ms(60_000);
        self.processes[0].machine.take_over();
        let mut appended = None;
        while self.now < deadline {
            self.step();
            for slot in 0..PROCESSES {
                self.notice(slot);
            }
            let process = &mut self.processes[0];
            match (process.machine.phase(), appended) {
                (Phase::Leading { .. }, None) => {
                    if process.machine.progress().checkpoint_due {
                        self.checkpoint(0);
                    }
                    // What waits may fill the queue for a moment.
                    let record = Bytes::from_static(b"the last record");
                    let process = &mut self.processes[0];
                    if let Ok(index) = process.machine.append(std::slice::from_ref(&record)) {
                        process.known.push(record);
                        appended = Some(index);
                    }
                }
                (Phase::Leading { .. }, Some(index)) if process.machine.progress().committed >= index => {
                    for slot in 0..PROCESSES {
                        self.check(slot);
                    }
                    assert!(self.log.contains(&Bytes::from_static(b"the last record")));
                    return;
                }
                (Phase::Leading { .. }, Some(_)) if process.machine.progress().checkpoint_due => {
                    self.checkpoint(0);
                }
                (Phase::Leading { .. } | Phase::TakingOver, _) => {}
                // Fenced by a request that was under way for long, or it had given up.
                _ => {
                    appended = None;
                    self.processes[0].machine.take_over();
                }
            }
        }
        panic!(
            "nobody commits although everything works: {:?}",
            self.processes[0].machine.phase()
        );
    }
}

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("PROVER_LOG_SEEDS") else {
        return SEEDS;
    };
    let (first, last) = text.split_once("..").expect("write PROVER_LOG_SEEDS=first..last");
    first.parse().unwrap()..last.parse().unwrap()
}

#[test]
fn committed_records_are_never_lost_or_reordered_whatever_happens() {
    let mut total = Seen::default();
    for seed in seeds() {
        // Told by the test harness when a seed fails.
        println!("seed {seed}");
        let mut world = World::new(seed);
        world.run();
        total.takeovers += world.seen.takeovers;
        total.fenced += world.seen.fenced;
        total.checkpoints += world.seen.checkpoints;
        total.deleted += world.seen.deleted;
        total.restarts += world.seen.restarts;
        total.committed += world.seen.committed;
        total.strays += world.seen.strays;
    }
    println!(
        "{} takeovers, {} fenced, {} checkpoints, {} deleted, {} restarts, {} committed, {} strays",
        total.takeovers,
        total.fenced,
        total.checkpoints,
        total.deleted,
        total.restarts,
        total.committed,
        total.strays
    );
    // A run in which nothing happens would prove nothing.
    for (what, count) in [
        ("takeovers", total.takeovers),
        ("fenced", total.fenced),
        ("checkpoints", total.checkpoints),
        ("deleted", total.deleted),
        ("restarts", total.restarts),
        ("committed", total.committed),
        ("strays", total.strays),
    ] {
        assert!(count > 0, "no {what}");
    }
}

#[test]
fn a_store_without_faults_is_read_as_it_was_written() {
    let mut store = Store::default();
    let mut machine = super::leader(1, &mut store, ms(0));
    let index = machine.append(&[b"a", b"b"]).unwrap();
    settle(&mut machine, &mut store, ms(1));
    assert_eq!(machine.progress().committed, index);
    let read = read_all(&store, ms(2)).unwrap();
    assert_eq!(records(&read), [b"a".as_slice(), b"b"]);
}
