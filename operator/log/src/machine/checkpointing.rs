//! Writes checkpoints as the leader, and deletes what they cover.
//!
//! Parts first, the marker last and only if there is none: a checkpoint is complete or not there. Whatever lies below
//! it afterwards may go, except what begins an epoch. The listing finds also what a killed leader left behind, and what
//! a writer that slept created again.

use std::collections::VecDeque;

use bytes::Bytes;

use super::calls::Purpose;
use super::leading::Leader;
use super::{Machine, Role, reading};
use crate::error::{CheckpointError, LogError};
use crate::format::{self, Builder, Header, Kind, Marker, PartInfo};
use crate::limits::Limits;
use crate::model::{Index, WriterId};
use crate::names::{self, CHECKPOINTS, CheckpointName, ENTRIES, Position, Stem};
use crate::request::{Answer, Operation};

/// How often one request of a sweep is tried; the next sweep finds again what this one leaves.
const SWEEP_TRIES: u32 = 5;

/// The records of a checkpoint, laid out in parts. Making it is the costly step; it needs no machine.
#[derive(Debug)]
pub struct CheckpointContent {
    parts: Vec<Builder>,
}

impl CheckpointContent {
    /// Lays out records in this order.
    pub fn new<R: AsRef<[u8]>>(
        records: impl IntoIterator<Item = R>,
        limits: &Limits,
    ) -> Result<Self, CheckpointError> {
        let limit = limits.clone().clamped().part_bytes;
        let mut parts: Vec<Builder> = Vec::new();
        for record in records {
            let record = record.as_ref();
            let bytes = Builder::cost(record);
            if bytes > limit {
                return Err(CheckpointError::RecordTooLarge { bytes, limit });
            }
            match parts.last_mut() {
                Some(part) if part.bytes() + bytes <= limit => part.push(record),
                _ => {
                    let mut part = Builder::with_capacity(limit.min(bytes.max(64 << 10)));
                    part.push(record);
                    parts.push(part);
                }
            }
        }
        if parts.len() > limits.checkpoint_parts {
            return Err(CheckpointError::TooLarge {
                parts: parts.len(),
                limit: limits.checkpoint_parts,
            });
        }
        Ok(Self { parts })
    }
}

#[derive(Debug)]
enum Stage {
    /// Until `through` is committed; then until all parts are there.
    Parts { created: usize },
    /// The marker.
    Marker,
    /// Old checkpoints.
    SweepCheckpoints,
    /// Old objects of the log.
    SweepEntries,
    /// Read what is of unknown kind, and delete.
    Deleting,
}

/// A checkpoint that is being written, or whose predecessors are being deleted.
#[derive(Debug)]
pub(super) struct Checkpointing {
    through: Index,
    position: Option<Position>,
    stem: Stem,
    parts: Vec<Bytes>,
    bytes: u64,
    stage: Stage,
    unknown: VecDeque<u64>,
    deletes: VecDeque<String>,
}

impl Checkpointing {
    /// Whether it can't begin before more is committed.
    pub(super) fn waits_for(&self, committed: Index) -> bool {
        self.position.is_none() && self.through > committed
    }
}

impl Leader {
    pub(super) fn begin_checkpoint(
        &mut self,
        content: CheckpointContent,
        through: Index,
        (least, most): (Index, Index),
        writer: WriterId,
        limits: &Limits,
    ) -> Result<(), CheckpointError> {
        if self.checkpointing.is_some() {
            return Err(CheckpointError::Running);
        }
        if through < least || through > most {
            return Err(CheckpointError::OutOfRange { through, least, most });
        }
        let (parts, limit) = (content.parts.len(), limits.checkpoint_parts);
        if parts > limit {
            return Err(CheckpointError::TooLarge { parts, limit });
        }
        self.checkpoint_number += 1;
        let epoch = self.epoch;
        let finish = |(number, part): (usize, Builder)| {
            part.finish(Header {
                kind: Kind::Part,
                sequence: number as u64,
                epoch,
                writer,
            })
        };
        let parts: Vec<Bytes> = content.parts.into_iter().enumerate().map(finish).collect();
        self.checkpointing = Some(Checkpointing {
            through,
            position: None,
            stem: Stem {
                writer,
                number: self.checkpoint_number,
            },
            bytes: parts.iter().map(|part| part.len() as u64).sum(),
            parts,
            stage: Stage::Parts { created: 0 },
            unknown: VecDeque::new(),
            deletes: VecDeque::new(),
        });
        Ok(())
    }

    /// Where the running checkpoint ends, once that is committed.
    fn place_checkpoint(&mut self) -> Option<Position> {
        let through = self.checkpointing.as_ref()?.through;
        let position = self.position(through);
        let job = self.checkpointing.as_mut()?;
        job.position = job.position.or(position);
        job.position
    }
}

impl Machine {
    pub(super) fn plan_checkpoint(&mut self) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(position) = leader.place_checkpoint() else {
            return;
        };
        let epoch = leader.epoch;
        let Some(job) = &mut leader.checkpointing else {
            return;
        };
        let limit = self.limits.listed_objects;
        match &job.stage {
            Stage::Parts { created } if *created < job.parts.len() => {
                let (part, stem) = (*created, job.stem);
                self.calls
                    .ensure(Purpose::CreatePart(part), || Operation::Create {
                        name: names::part(position, stem, part),
                        content: job.parts[part].clone(),
                    });
            }
            Stage::Parts { .. } => {
                job.stage = Stage::Marker;
                self.plan_checkpoint();
            }
            Stage::Marker if self.calls.contains(&Purpose::ReadMarkerConflict) => {}
            Stage::Marker => self.calls.ensure(Purpose::CreateMarker, || Operation::Create {
                name: names::marker(position),
                content: job.marker(position, epoch),
            }),
            Stage::SweepCheckpoints => self.calls.ensure(Purpose::SweepCheckpoints, || Operation::List {
                folder: CHECKPOINTS,
                limit,
            }),
            Stage::SweepEntries => self.calls.ensure(Purpose::SweepEntries, || Operation::List {
                folder: ENTRIES,
                limit,
            }),
            Stage::Deleting => self.plan_deletes(),
        }
    }

    fn plan_deletes(&mut self) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(job) = &mut leader.checkpointing else {
            return;
        };
        let is_ours = |purpose: &Purpose| matches!(purpose, Purpose::Delete(_) | Purpose::SweepRead(_));
        while self.calls.count(is_ours) < self.limits.parallel_deletes {
            if let Some(name) = job.deletes.pop_front() {
                let operation = || Operation::Delete { name: name.clone() };
                self.calls.ensure(Purpose::Delete(name.clone()), operation);
            } else if let Some(sequence) = job.unknown.pop_front() {
                let operation = || reading::read(names::entry(sequence));
                self.calls.ensure(Purpose::SweepRead(sequence), operation);
            } else {
                break;
            }
        }
        if self.calls.count(is_ours) == 0 {
            leader.checkpointing = None;
        }
    }

    pub(super) fn answered_checkpoint(&mut self, purpose: &Purpose, answer: &Answer) -> Result<(), LogError> {
        match (purpose, answer) {
            // No other has parts of this name: what exists was created by an earlier try.
            (Purpose::CreatePart(_), Answer::Created | Answer::Exists) => self.part_created(),
            (Purpose::CreateMarker, Answer::Created) => self.checkpoint_complete(),
            (Purpose::CreateMarker, Answer::Exists) => {
                if let Some((position, _)) = self.checkpoint_place() {
                    let operation = || reading::read(names::marker(position));
                    self.calls.ensure(Purpose::ReadMarkerConflict, operation);
                }
            }
            // A successor's checkpoint has replaced it, so our next commit will fail.
            (Purpose::ReadMarkerConflict, Answer::Absent) => self.abandon_checkpoint(),
            (Purpose::ReadMarkerConflict, Answer::Content(content)) => self.settle_marker(content),
            (Purpose::SweepCheckpoints, Answer::Listed { names, .. }) => self.sweep_checkpoints(names),
            (Purpose::SweepEntries, Answer::Listed { names, truncated }) => {
                self.sweep_entries(names, *truncated);
            }
            (Purpose::SweepRead(sequence), Answer::Content(content)) => self.swept(*sequence, content),
            (Purpose::SweepRead(_), Answer::Absent) => {}
            (Purpose::Delete(_), Answer::Deleted) => self.metrics.deleted += 1,
            _ => unreachable!("the store answered {answer:?} to {purpose:?}"),
        }
        Ok(())
    }

    /// Whether a failed request is left to the next sweep.
    pub(super) fn give_up_sweeping(&mut self, purpose: &Purpose, failures: u32, retry: bool) -> bool {
        let tried_enough = !retry || failures >= SWEEP_TRIES;
        match purpose {
            Purpose::Delete(_) | Purpose::SweepRead(_) => tried_enough,
            Purpose::SweepCheckpoints | Purpose::SweepEntries if tried_enough => {
                self.abandon_checkpoint();
                true
            }
            _ => false,
        }
    }

    fn abandon_checkpoint(&mut self) {
        self.calls.retain(|purpose| !purpose.is_background());
        if let Role::Leader(leader) = &mut self.role {
            leader.checkpointing = None;
        }
    }

    fn checkpoint_place(&self) -> Option<(Position, Stem)> {
        match &self.role {
            Role::Leader(leader) => {
                let job = leader.checkpointing.as_ref()?;
                Some((job.position?, job.stem))
            }
            _ => None,
        }
    }

    fn part_created(&mut self) {
        if let Role::Leader(leader) = &mut self.role
            && let Some(job) = &mut leader.checkpointing
            && let Stage::Parts { created } = &mut job.stage
        {
            *created += 1;
        }
    }

    /// A marker was there: ours, its answer lost, or that of another checkpoint of the same place, which says the same.
    fn settle_marker(&mut self, content: &Bytes) {
        let Some((position, stem)) = self.checkpoint_place() else {
            return;
        };
        match format::decode_marker(&names::marker(position), position, content) {
            Ok(found) => {
                if let Role::Leader(leader) = &mut self.role
                    && let Some(job) = &mut leader.checkpointing
                    && found.stem != stem
                {
                    // The parts that count are those that it names.
                    job.stem = found.stem;
                    job.bytes = found.parts.iter().map(|part| u64::from(part.bytes)).sum();
                }
                self.checkpoint_complete();
            }
            Err(error) => {
                self.checkpoint_trouble = Some(error.to_string().into());
                self.abandon_checkpoint();
            }
        }
    }

    fn checkpoint_complete(&mut self) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(job) = &mut leader.checkpointing else {
            return;
        };
        job.stage = Stage::SweepCheckpoints;
        job.parts = Vec::new();
        let (bytes, through) = (job.bytes, job.through);
        if let Some(position) = job.position {
            leader.covered(position, bytes);
        }
        self.checkpointed = through;
        self.metrics.checkpoints += 1;
        // Commits that waited for it go on.
        self.trouble = None;
    }

    fn sweep_checkpoints(&mut self, listed: &[String]) {
        let Some((position, stem)) = self.checkpoint_place() else {
            return;
        };
        let is_old = |name: &&String| match names::parse_checkpoint(name) {
            Some(CheckpointName::Part(at, of)) if at == position => of != stem,
            // A place beyond ours is that of a successor.
            Some(found) => found.position() < position,
            None => false,
        };
        let old: Vec<String> = listed.iter().filter(is_old).cloned().collect();
        if let Role::Leader(leader) = &mut self.role
            && let Some(job) = &mut leader.checkpointing
        {
            job.deletes.extend(old);
            job.stage = Stage::SweepEntries;
        }
    }

    fn sweep_entries(&mut self, listed: &[String], truncated: bool) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let known_from = leader.known_from;
        let Some(job) = &mut leader.checkpointing else {
            return;
        };
        let covered = job.position.unwrap_or_default().sequence;
        let boundary = covered.saturating_sub(self.limits.retained_objects);
        let mut sequences: Vec<u64> = listed
            .iter()
            .filter_map(|name| names::parse_entry(name))
            .collect();
        if truncated {
            // Beginnings of epochs fill the listing: what is known to be no such is deleted without it.
            let listed_to = sequences.last().map_or(0, |last| last + 1);
            sequences.extend(listed_to.max(known_from)..boundary);
        }
        for sequence in sequences {
            if sequence >= boundary || self.epochs.contains(&sequence) {
                continue;
            }
            if sequence >= known_from {
                job.deletes.push_back(names::entry(sequence));
            } else if job.unknown.len() < self.limits.sweep_reads {
                job.unknown.push_back(sequence);
            }
        }
        job.stage = Stage::Deleting;
    }

    /// An object below the checkpoint that nobody here has seen: records go; an epoch stays, and so does what can't be
    /// read, since it may be one.
    fn swept(&mut self, sequence: u64, content: &Bytes) {
        let name = names::entry(sequence);
        match format::decode_entry(&name, sequence, content) {
            Ok(object) if object.header.kind == Kind::Records => {
                if let Role::Leader(leader) = &mut self.role
                    && let Some(job) = &mut leader.checkpointing
                {
                    job.deletes.push_back(name);
                }
            }
            Ok(_) | Err(_) => {
                self.epochs.insert(sequence);
            }
        }
    }
}

impl Checkpointing {
    fn marker(&self, position: Position, epoch: u64) -> Bytes {
        let info = |part: &Bytes| PartInfo {
            bytes: part.len() as u32,
            crc: format::crc_of(part),
        };
        format::marker(&Marker {
            position,
            epoch,
            stem: self.stem,
            parts: self.parts.iter().map(info).collect(),
        })
    }
}
