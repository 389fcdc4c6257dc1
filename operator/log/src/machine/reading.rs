//! Reads the log from its newest checkpoint on, and takes it over at its end.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::calls::Purpose;
use super::leading::Leader;
use super::{Goal, Machine, Role};
use crate::error::LogError;
use crate::format::{self, HEADER_BYTES, Kind, MAX_OBJECT_BYTES, Marker, Object};
use crate::model::Replayed;
use crate::names::{self, CHECKPOINTS, CheckpointName, ENTRIES, Position};
use crate::request::{Answer, Operation};

/// What is done next.
#[derive(Debug, Default)]
enum Stage {
    /// Look for checkpoints, for this reason.
    Listing(Why),
    /// Read the marker of this one.
    Marker(Position),
    /// Read its parts.
    Parts(Box<Loading>),
    /// Look how far the log goes, so that reading ahead asks for nothing in vain and a gap is noticed.
    Counting,
    /// Read object after object.
    #[default]
    Entries,
    /// Create our epoch.
    Epoch,
}

/// Why checkpoints are listed.
#[derive(Debug)]
enum Why {
    /// To begin.
    Start,
    /// The end seems reached, but a checkpoint may have passed it.
    End,
    /// The next object is missing though later ones are there.
    Hole,
    /// An object can't follow those before it.
    Contradiction(LogError),
    /// Our epoch was created here.
    Epoch,
}

/// A checkpoint that is being read.
#[derive(Debug)]
struct Loading {
    marker: Marker,
    parts: Vec<Option<Vec<Bytes>>>,
}

/// An object beyond the next one, read before its turn.
#[derive(Debug)]
enum Ahead {
    Object(Object, u64),
    Absent,
}

#[derive(Debug, Default)]
pub(super) struct Reader {
    stage: Stage,
    /// The newest checkpoint was looked for and the objects from `next` on are read.
    started: bool,
    /// Whether the last round came to the end.
    pub(super) at_end: bool,
    /// How often a take-over lost a race.
    pub(super) tries: u32,
    /// The sequence of the next object.
    next: u64,
    /// How many of its records the checkpoint covers.
    skip: u32,
    epoch: u64,
    ahead: BTreeMap<u64, Ahead>,
    window: u64,
    /// Objects before this are in the log for sure, if no later checkpoint covers them.
    known_end: u64,
    /// The object that was missing when later ones were seen, and is read once more to be sure.
    suspected: Option<u64>,
    /// The checkpoint of which an object was missing, once.
    vanished: Option<Position>,
    listed_at: Option<Duration>,
    /// All objects from here on were seen.
    known_from: u64,
    /// Position and size of the newest checkpoint.
    checkpoint: Option<Position>,
    checkpoint_bytes: u64,
    /// Bytes of the objects read since.
    bytes: u64,
    /// Where and with which epoch we tried to take over last.
    tried: Option<(u64, u64)>,
}

impl Reader {
    pub(super) fn begin_round(&mut self) {
        self.at_end = false;
        self.window = 1;
        self.suspected = None;
        // Whatever a round that was given up was about to do is found out anew.
        self.stage = if self.started {
            Stage::Entries
        } else {
            Stage::Listing(Why::Start)
        };
    }
}

impl Purpose {
    /// The object or folder, relative to the log's prefix.
    pub(super) fn name(&self) -> String {
        match self {
            Self::ListCheckpoints | Self::SweepCheckpoints => CHECKPOINTS.into(),
            Self::ListEntries | Self::SweepEntries => ENTRIES.into(),
            Self::ReadMarker(position) => names::marker(*position),
            Self::ReadEntry(sequence)
            | Self::CreateEpoch(sequence)
            | Self::Commit(sequence)
            | Self::ReadCommitConflict(sequence)
            | Self::SweepRead(sequence) => names::entry(*sequence),
            Self::ReadPart(part) | Self::CreatePart(part) => format!("part {part} of a checkpoint"),
            Self::CreateMarker | Self::ReadMarkerConflict => "the marker of a checkpoint".into(),
            Self::Delete(name) => name.clone(),
        }
    }
}

pub(super) fn read(name: String) -> Operation {
    Operation::Read {
        name,
        max_bytes: (HEADER_BYTES + MAX_OBJECT_BYTES) as u64,
    }
}

impl Machine {
    pub(super) fn plan_reading(&mut self) {
        let limit = self.limits.listed_objects;
        let list = |folder| move || Operation::List { folder, limit };
        match &self.reader.stage {
            Stage::Listing(_) => self.calls.ensure(Purpose::ListCheckpoints, list(CHECKPOINTS)),
            Stage::Marker(position) => {
                let name = names::marker(*position);
                self.calls.ensure(Purpose::ReadMarker(*position), || read(name));
            }
            Stage::Parts(loading) => {
                let Marker { position, stem, .. } = loading.marker;
                let missing = loading
                    .parts
                    .iter()
                    .enumerate()
                    .filter(|(_, part)| part.is_none());
                for (part, _) in missing.take(self.limits.parallel_reads) {
                    self.calls.ensure(Purpose::ReadPart(part), || {
                        read(names::part(position, stem, part))
                    });
                }
            }
            Stage::Counting => self.calls.ensure(Purpose::ListEntries, list(ENTRIES)),
            Stage::Entries => self.plan_entries(),
            Stage::Epoch => {
                let (sequence, epoch) = (self.reader.next, self.reader.epoch + 1);
                self.reader.tried = Some((sequence, epoch));
                let writer = self.writer;
                self.calls
                    .ensure(Purpose::CreateEpoch(sequence), || Operation::Create {
                        name: names::entry(sequence),
                        content: format::epoch(sequence, epoch, writer),
                    });
            }
        }
    }

    fn plan_entries(&mut self) {
        let reader = &self.reader;
        let most = reader.next + self.limits.parallel_reads as u64;
        let end = (reader.next + reader.window).max(reader.known_end).min(most);
        for sequence in reader.next..end {
            if !reader.ahead.contains_key(&sequence) {
                self.calls
                    .ensure(Purpose::ReadEntry(sequence), || read(names::entry(sequence)));
            }
        }
    }

    pub(super) fn answered_reading(
        &mut self,
        purpose: &Purpose,
        answer: &Answer,
        now: Duration,
    ) -> Result<(), LogError> {
        match (purpose, answer) {
            (Purpose::ListCheckpoints, Answer::Listed { names, truncated }) => {
                self.listed_checkpoints(names, *truncated, now)?;
            }
            (Purpose::ReadMarker(position), Answer::Content(content)) => {
                let marker = format::decode_marker(&names::marker(*position), *position, content)?;
                let parts = vec![None; marker.parts.len()];
                self.reader.stage = Stage::Parts(Box::new(Loading { marker, parts }));
                self.finish_checkpoint();
            }
            (Purpose::ReadPart(part), Answer::Content(content)) => self.read_part(*part, content)?,
            (Purpose::ReadMarker(_) | Purpose::ReadPart(_), Answer::Absent) => self.checkpoint_vanished()?,
            (Purpose::ListEntries, Answer::Listed { names, .. }) => {
                let last = names.iter().filter_map(|name| names::parse_entry(name)).max();
                self.reader.known_end = last.map_or(0, |last| last + 1);
                self.reader.stage = Stage::Entries;
            }
            (Purpose::ReadEntry(sequence), Answer::Content(content)) => {
                let object = format::decode_entry(&names::entry(*sequence), *sequence, content)?;
                let ahead = Ahead::Object(object, content.len() as u64);
                self.reader.ahead.insert(*sequence, ahead);
                self.read_on();
            }
            (Purpose::ReadEntry(sequence), Answer::Absent) => self.entry_absent(*sequence, now),
            (Purpose::CreateEpoch(_), Answer::Created) => self.reader.stage = Stage::Listing(Why::Epoch),
            (Purpose::CreateEpoch(_), Answer::Exists) => {
                // Our own, its answer lost, or that of somebody else: reading it tells.
                self.reader.stage = Stage::Entries;
                self.lost_race();
            }
            _ => unreachable!("the store answered {answer:?} to {purpose:?}"),
        }
        Ok(())
    }

    /// A take-over that loses too often gives up.
    fn lost_race(&mut self) {
        self.reader.tries += 1;
        if self.reader.tries > self.limits.take_over_tries {
            let tries = self.reader.tries;
            self.rest();
            self.refusal = Some(LogError::Contended { tries });
        }
    }

    fn listed_checkpoints(
        &mut self,
        names: &[String],
        truncated: bool,
        now: Duration,
    ) -> Result<(), LogError> {
        if truncated {
            return Err(LogError::Contradiction {
                key: CHECKPOINTS.into(),
                problem: format!("more than {} objects are there", names.len()),
            });
        }
        let markers = names
            .iter()
            .filter_map(|name| match names::parse_checkpoint(name) {
                Some(CheckpointName::Marker(position)) => Some(position),
                _ => None,
            });
        let newest = markers.max();
        self.reader.listed_at = Some(now);
        let passed = newest.filter(|newest| newest.sequence > self.reader.next);
        let Stage::Listing(why) = std::mem::take(&mut self.reader.stage) else {
            unreachable!("checkpoints are only listed in that stage");
        };
        match (why, passed) {
            (Why::Start, _) => self.start_at(newest)?,
            (_, Some(newest)) => {
                self.metrics.restarts += 1;
                if self.role_takes_over() {
                    self.lost_race();
                }
                self.restart_at(newest);
            }
            (Why::End, None) => self.reached_end(),
            (Why::Hole, None) => {
                return Err(LogError::Missing {
                    key: names::entry(self.reader.next),
                });
            }
            (Why::Contradiction(error), None) => return Err(error),
            (Why::Epoch, None) => self.lead(),
        }
        Ok(())
    }

    fn role_takes_over(&self) -> bool {
        matches!(self.role, Role::Follower(Goal::TakeOver))
    }

    fn start_at(&mut self, newest: Option<Position>) -> Result<(), LogError> {
        match newest {
            Some(newest) => self.restart_at(newest),
            None if self.reader.vanished.is_some() => {
                return Err(LogError::Missing {
                    key: CHECKPOINTS.into(),
                });
            }
            None => {
                self.reader.started = true;
                self.reader.stage = Stage::Counting;
            }
        }
        Ok(())
    }

    fn restart_at(&mut self, position: Position) {
        self.reader.started = false;
        self.reader.ahead.clear();
        self.reader.stage = Stage::Marker(position);
        self.calls
            .retain(|purpose| !matches!(purpose, Purpose::ReadEntry(_)));
    }

    /// An object of a checkpoint is gone. That is so once a newer one is complete; then it is found.
    fn checkpoint_vanished(&mut self) -> Result<(), LogError> {
        let position = match &self.reader.stage {
            Stage::Marker(position) => *position,
            Stage::Parts(loading) => loading.marker.position,
            _ => return Ok(()),
        };
        if self.reader.vanished == Some(position) {
            return Err(LogError::Missing {
                key: names::marker(position),
            });
        }
        self.reader.vanished = Some(position);
        self.reader.stage = Stage::Listing(Why::Start);
        self.calls
            .retain(|purpose| !matches!(purpose, Purpose::ReadPart(_)));
        Ok(())
    }

    fn read_part(&mut self, part: usize, content: &Bytes) -> Result<(), LogError> {
        let Stage::Parts(loading) = &mut self.reader.stage else {
            unreachable!("parts are only read in that stage");
        };
        let Marker {
            position,
            stem,
            parts,
            ..
        } = &loading.marker;
        let name = names::part(*position, *stem, part);
        loading.parts[part] = Some(format::decode_part(&name, parts[part], content)?);
        self.metrics.replayed_objects += 1;
        self.finish_checkpoint();
        Ok(())
    }

    /// Goes on behind a checkpoint once all of its parts are here.
    fn finish_checkpoint(&mut self) {
        let Stage::Parts(loading) = &mut self.reader.stage else {
            return;
        };
        if loading.parts.iter().any(Option::is_none) {
            return;
        }
        let records = loading
            .parts
            .iter_mut()
            .filter_map(Option::take)
            .flatten()
            .collect();
        let Marker {
            position,
            epoch,
            ref parts,
            ..
        } = loading.marker;
        // What was read before and not yet taken is covered by it.
        self.replayed.clear();
        self.replayed.push(Replayed::Checkpoint { epoch, records });
        self.reader.checkpoint_bytes = parts.iter().map(|part| u64::from(part.bytes)).sum();
        self.reader.checkpoint = Some(position);
        self.reader.started = true;
        self.reader.next = position.sequence;
        self.reader.skip = position.records;
        self.reader.known_from = position.sequence;
        self.reader.epoch = epoch;
        self.reader.bytes = 0;
        self.reader.vanished = None;
        self.reader.stage = Stage::Counting;
    }

    fn entry_absent(&mut self, sequence: u64, now: Duration) {
        let reader = &mut self.reader;
        if sequence != reader.next {
            reader.ahead.insert(sequence, Ahead::Absent);
            return;
        }
        let later = reader
            .ahead
            .values()
            .any(|ahead| matches!(ahead, Ahead::Object(..)));
        if later || reader.known_end > sequence {
            // It may have been created after it was asked for and before the later one was: once more is sure.
            if reader.suspected == Some(sequence) {
                reader.stage = Stage::Listing(Why::Hole);
                self.forget_ahead();
            } else {
                reader.suspected = Some(sequence);
            }
            return;
        }
        self.forget_ahead();
        let fresh = self
            .reader
            .listed_at
            .is_some_and(|at| now < at + self.limits.relist_interval);
        if fresh {
            self.reached_end();
        } else {
            self.reader.stage = Stage::Listing(Why::End);
        }
    }

    fn forget_ahead(&mut self) {
        self.reader.ahead.clear();
        self.reader.window = 1;
        self.calls
            .retain(|purpose| !matches!(purpose, Purpose::ReadEntry(_)));
    }

    fn reached_end(&mut self) {
        self.reader.at_end = true;
        if self.role_takes_over() {
            self.reader.stage = Stage::Epoch;
        } else {
            self.reader.stage = Stage::Entries;
            self.rest();
        }
    }

    /// Replays objects that are here, in order.
    fn read_on(&mut self) {
        while let Some(ahead) = self.reader.ahead.remove(&self.reader.next) {
            // That it was absent when read ahead says nothing now that it is its turn.
            let Ahead::Object(object, bytes) = ahead else {
                return;
            };
            let sequence = self.reader.next;
            if self.is_our_epoch(&object) {
                self.forget_ahead();
                self.reader.stage = Stage::Listing(Why::Epoch);
                return;
            }
            if let Err(problem) = self.replay(sequence, object) {
                let key = names::entry(sequence);
                let error = LogError::Contradiction { key, problem };
                self.forget_ahead();
                // A sleeping writer may have created something below a newer checkpoint.
                self.reader.stage = Stage::Listing(Why::Contradiction(error));
                return;
            }
            let reader = &mut self.reader;
            reader.next += 1;
            // Beyond what is known to be there each request may be in vain.
            reader.window = if reader.next == reader.known_end {
                1
            } else {
                reader.window + 1
            };
            reader.bytes += bytes;
            self.metrics.replayed_objects += 1;
        }
    }

    fn is_our_epoch(&self, object: &Object) -> bool {
        let tried = Some((object.header.sequence, object.header.epoch));
        self.role_takes_over()
            && object.header.kind == Kind::Epoch
            && object.header.writer == self.writer
            && self.reader.tried == tried
    }

    fn replay(&mut self, sequence: u64, object: Object) -> Result<(), String> {
        let reader = &mut self.reader;
        let (found, known) = (object.header.epoch, reader.epoch);
        match object.header.kind {
            Kind::Epoch if found > known => {
                reader.epoch = found;
                self.epochs.insert(sequence);
            }
            Kind::Records if found == known => {}
            _ => return Err(format!("it is of epoch {found} and follows epoch {known}")),
        }
        let mut records = object.records;
        let skip = std::mem::take(&mut reader.skip) as usize;
        if skip > records.len() {
            return Err(format!(
                "a checkpoint covers {skip} of its {} records",
                records.len()
            ));
        }
        records.drain(..skip);
        self.replayed.push(Replayed::Entry {
            sequence,
            epoch: found,
            records,
        });
        Ok(())
    }

    /// Our epoch is in the log, and no checkpoint was beyond it afterwards: everything before it was read, and nobody
    /// else can append until somebody takes over.
    fn lead(&mut self) {
        let reader = &self.reader;
        let sequence = reader.next;
        self.epochs.insert(sequence);
        self.calls.clear();
        let mut leader = Leader::new(reader.epoch + 1, sequence);
        leader.known_from = reader.known_from;
        leader.since = reader.checkpoint.map_or(0, |position| position.sequence);
        leader.inherited_bytes = reader.bytes;
        leader.checkpoint_bytes = reader.checkpoint_bytes;
        self.reader.ahead.clear();
        self.role = Role::Leader(Box::new(leader));
    }
}

#[cfg(test)]
impl Machine {
    /// As if no checkpoint had been there a moment ago.
    pub(super) fn reader_listed_just_now(&mut self, now: Duration) {
        self.reader.listed_at = Some(now);
    }
}
