//! Appends as the leader: one object in flight at a time, its content fixed until its fate is known.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::calls::Purpose;
use super::checkpointing::Checkpointing;
use super::{Machine, Role, Trouble, reading};
use crate::error::{AppendError, LogError};
use crate::format::{self, Builder, Header, Kind};
use crate::limits::Limits;
use crate::model::{Index, WriterId};
use crate::names::{self, Position};
use crate::request::{Answer, Operation};

/// An object that is being created.
#[derive(Debug)]
struct InFlight {
    sequence: u64,
    content: Bytes,
    records: u32,
    /// Bytes of the records, their lengths included.
    queued: usize,
    since: Duration,
}

/// An object of this leader that is in the log, and not wholly covered by a checkpoint.
#[derive(Debug, Clone, Copy)]
struct Placed {
    sequence: u64,
    /// The index of the last record before it.
    before: u64,
    records: u32,
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct Leader {
    pub(super) epoch: u64,
    /// The sequence of its beginning.
    began: u64,
    /// The sequence of the object in flight, or of the next one.
    pub(super) next: u64,
    appended: u64,
    committed: u64,
    open: Builder,
    full: VecDeque<Builder>,
    in_flight: Option<InFlight>,
    last_begin: Option<Duration>,
    /// Bytes of records that are not committed.
    pub(super) queue_bytes: usize,
    placed: VecDeque<Placed>,
    /// The sequence that the newest checkpoint covers everything before.
    pub(super) since: u64,
    /// Bytes of the objects that were read behind the checkpoint before this leader began.
    pub(super) inherited_bytes: u64,
    /// Bytes of the newest checkpoint.
    pub(super) checkpoint_bytes: u64,
    /// All objects from here on were seen: those that begin no epoch are known.
    pub(super) known_from: u64,
    pub(super) checkpointing: Option<Checkpointing>,
    pub(super) checkpoint_number: u32,
}

impl Leader {
    pub(super) fn new(epoch: u64, began: u64) -> Self {
        Self {
            epoch,
            began,
            next: began + 1,
            appended: 0,
            committed: 0,
            open: Builder::default(),
            full: VecDeque::new(),
            in_flight: None,
            last_begin: None,
            queue_bytes: 0,
            placed: VecDeque::new(),
            since: 0,
            inherited_bytes: 0,
            checkpoint_bytes: 0,
            known_from: 0,
            checkpointing: None,
            checkpoint_number: 0,
        }
    }

    /// The index of the last record that was appended.
    pub(super) fn last(&self) -> Index {
        Index(self.appended)
    }

    pub(super) fn committed(&self) -> Index {
        Index(self.committed)
    }

    pub(super) fn append<R: AsRef<[u8]>>(
        &mut self,
        records: &[R],
        limits: &Limits,
    ) -> Result<Index, AppendError> {
        let mut more = 0_usize;
        for record in records {
            let bytes = Builder::cost(record.as_ref());
            if bytes > limits.object_bytes {
                let limit = limits.object_bytes;
                return Err(AppendError::RecordTooLarge { bytes, limit });
            }
            more = more.saturating_add(bytes);
        }
        if self.queue_bytes.saturating_add(more) > limits.queue_bytes {
            return Err(AppendError::QueueFull {
                queued: self.queue_bytes,
                more,
                limit: limits.queue_bytes,
            });
        }
        // Records of one call stay together where that is possible.
        if self.open.bytes() + more > limits.object_bytes {
            self.close();
        }
        for record in records {
            let record = record.as_ref();
            if self.open.bytes() + Builder::cost(record) > limits.object_bytes {
                self.close();
            }
            self.open.push(record);
        }
        self.queue_bytes += more;
        self.appended += records.len() as u64;
        Ok(self.last())
    }

    fn close(&mut self) {
        if self.open.records() > 0 {
            self.full.push_back(std::mem::take(&mut self.open));
        }
    }

    /// Whether commits wait for a checkpoint.
    fn is_stalled(&self, limits: &Limits) -> bool {
        // A checkpoint may wait for commits itself; those are let through.
        let awaited = self
            .checkpointing
            .as_ref()
            .is_some_and(|job| job.waits_for(self.committed()));
        self.next - self.since >= limits.max_objects && !awaited
    }

    /// When the next commit may begin, if something waits for it.
    pub(super) fn commit_at(&self, limits: &Limits) -> Option<Duration> {
        if self.in_flight.is_some() || self.is_stalled(limits) {
            return None;
        }
        match self.last_begin {
            _ if !self.full.is_empty() => Some(Duration::ZERO),
            _ if self.open.records() == 0 => None,
            None => Some(Duration::ZERO),
            Some(begin) => Some(begin + limits.commit_interval),
        }
    }

    fn begin_commit(&mut self, now: Duration, writer: WriterId) {
        let builder = self
            .full
            .pop_front()
            .unwrap_or_else(|| std::mem::take(&mut self.open));
        let header = Header {
            kind: Kind::Records,
            sequence: self.next,
            epoch: self.epoch,
            writer,
        };
        self.in_flight = Some(InFlight {
            sequence: self.next,
            records: builder.records(),
            queued: builder.bytes(),
            content: builder.finish(header),
            since: now,
        });
        self.last_begin = Some(now);
    }

    fn finish_commit(&mut self) -> Option<InFlight> {
        let done = self.in_flight.take()?;
        self.placed.push_back(Placed {
            sequence: done.sequence,
            before: self.committed,
            records: done.records,
            bytes: done.content.len() as u64,
        });
        self.committed += u64::from(done.records);
        self.next += 1;
        self.queue_bytes -= done.queued;
        Some(done)
    }

    /// Where a record that is committed ends. Of 0: where this epoch begins.
    pub(super) fn position(&self, through: Index) -> Option<Position> {
        if through > self.committed() {
            return None;
        }
        let end = |placed: &Placed| placed.before + u64::from(placed.records);
        let position = |sequence, records| Position { sequence, records };
        let Some(placed) = self.placed.iter().find(|placed| through.0 <= end(placed)) else {
            return Some(position(self.next, 0));
        };
        Some(if through.0 == end(placed) {
            position(placed.sequence + 1, 0)
        } else if through.0 <= placed.before {
            position(placed.sequence.max(self.began + 1), 0)
        } else {
            position(placed.sequence, (through.0 - placed.before) as u32)
        })
    }

    /// Forgets what a checkpoint covers.
    pub(super) fn covered(&mut self, position: Position, checkpoint_bytes: u64) {
        self.placed.retain(|placed| placed.sequence >= position.sequence);
        self.since = position.sequence;
        self.inherited_bytes = 0;
        self.checkpoint_bytes = checkpoint_bytes;
    }

    pub(super) fn checkpoint_due(&self, limits: &Limits) -> bool {
        let own: u64 = self.placed.iter().map(|placed| placed.bytes).sum();
        let bytes = own + self.inherited_bytes;
        self.checkpointing.is_none()
            && (self.next - self.since >= limits.checkpoint_due_objects
                || bytes >= limits.checkpoint_due_bytes.max(self.checkpoint_bytes))
    }
}

impl Machine {
    pub(super) fn plan_commit(&mut self, now: Duration) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        if leader.commit_at(&self.limits).is_some_and(|at| at <= now) {
            leader.begin_commit(now, self.writer);
        }
        if leader.queue_bytes > 0 && leader.in_flight.is_none() && leader.is_stalled(&self.limits) {
            let error = || {
                format!(
                    "commits wait for a checkpoint: {} objects follow the last one",
                    leader.next - leader.since
                )
            };
            self.trouble.get_or_insert_with(|| Trouble {
                since: now,
                error: error().into(),
            });
        }
        let Some(InFlight {
            sequence, content, ..
        }) = &leader.in_flight
        else {
            return;
        };
        if !self.calls.contains(&Purpose::ReadCommitConflict(*sequence)) {
            self.calls
                .ensure(Purpose::Commit(*sequence), || Operation::Create {
                    name: names::entry(*sequence),
                    content: content.clone(),
                });
        }
    }

    pub(super) fn answered_commit(
        &mut self,
        purpose: &Purpose,
        answer: &Answer,
        now: Duration,
    ) -> Result<(), LogError> {
        match (purpose, answer) {
            (Purpose::Commit(_), Answer::Created) => self.committed_object(now),
            (Purpose::Commit(sequence), Answer::Exists) => {
                let name = names::entry(*sequence);
                self.calls
                    .ensure(Purpose::ReadCommitConflict(*sequence), || reading::read(name));
            }
            // It was ours, created by an earlier try, and is covered by a checkpoint of our successor: only such
            // objects are deleted. Creating it once more is harmless, and the next one will meet the epoch.
            (Purpose::ReadCommitConflict(_), Answer::Absent) => {}
            (Purpose::ReadCommitConflict(sequence), Answer::Content(content)) => {
                self.settle_conflict(*sequence, content, now)?;
            }
            _ => unreachable!("the store answered {answer:?} to {purpose:?}"),
        }
        Ok(())
    }

    /// Something lies where we wanted to write: our own object, its answer lost, or the epoch of our successor.
    fn settle_conflict(&mut self, sequence: u64, content: &Bytes, now: Duration) -> Result<(), LogError> {
        let Role::Leader(leader) = &self.role else {
            return Ok(());
        };
        let name = names::entry(sequence);
        if leader
            .in_flight
            .as_ref()
            .is_some_and(|ours| ours.content == *content)
        {
            self.committed_object(now);
            return Ok(());
        }
        let (kind, epoch, writer) = match format::decode_entry(&name, sequence, content) {
            Ok(object) => (object.header.kind, object.header.epoch, object.header.writer),
            // A newer version took over; the beginning of the header is the same in all formats.
            Err(error @ LogError::NewerFormat { .. }) => {
                let (epoch, writer) = format::peek(content).ok_or(error)?;
                (Kind::Epoch, epoch, writer)
            }
            Err(error) => return Err(error),
        };
        if kind == Kind::Epoch && epoch > leader.epoch && writer != self.writer {
            self.metrics.fenced += 1;
            self.metrics.queue_bytes = 0;
            self.calls.clear();
            self.role = Role::Fenced { epoch };
            return Ok(());
        }
        let problem = format!(
            "it is of epoch {epoch}, where the leader of epoch {} wanted to write",
            leader.epoch
        );
        Err(LogError::Contradiction { key: name, problem })
    }

    fn committed_object(&mut self, now: Duration) {
        let Role::Leader(leader) = &mut self.role else {
            return;
        };
        let Some(done) = leader.finish_commit() else {
            return;
        };
        self.committed = leader.committed();
        let metrics = &mut self.metrics;
        metrics.queue_bytes = leader.queue_bytes as u64;
        metrics.commits += 1;
        metrics.committed_records += u64::from(done.records);
        metrics.committed_bytes += done.content.len() as u64;
        let took = now.saturating_sub(done.since);
        metrics.commit_time += took;
        metrics.longest_commit = metrics.longest_commit.max(took);
    }
}
