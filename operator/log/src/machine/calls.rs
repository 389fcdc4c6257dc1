//! The requests of a machine that are not answered for good: waiting for their time, or for their answer.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::names::Position;
use crate::request::{Operation, Request, RequestId};

/// What a request is for. Of each there is at most one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    ListCheckpoints,
    ReadMarker(Position),
    ReadPart(usize),
    ListEntries,
    ReadEntry(u64),
    CreateEpoch(u64),
    Commit(u64),
    ReadCommitConflict(u64),
    CreatePart(usize),
    CreateMarker,
    ReadMarkerConflict,
    SweepCheckpoints,
    SweepEntries,
    SweepRead(u64),
    Delete(String),
}

impl Purpose {
    /// Whether it belongs to a checkpoint, which no record waits for.
    pub(super) fn is_background(&self) -> bool {
        matches!(
            self,
            Self::CreatePart(_)
                | Self::CreateMarker
                | Self::ReadMarkerConflict
                | Self::SweepCheckpoints
                | Self::SweepEntries
                | Self::SweepRead(_)
                | Self::Delete(_)
        )
    }
}

#[derive(Debug)]
pub(super) struct Call {
    operation: Operation,
    /// Failures so far.
    pub(super) failures: u32,
    /// Damaged answers so far.
    pub(super) damages: u32,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Due(Duration),
    Sent { id: RequestId, deadline: Duration },
}

#[derive(Debug, Default)]
pub(super) struct Calls {
    calls: BTreeMap<Purpose, Call>,
    last_id: u64,
}

impl Calls {
    /// Makes sure that there is such a request; a new one is due at once.
    pub(super) fn ensure(&mut self, purpose: Purpose, operation: impl FnOnce() -> Operation) {
        self.calls.entry(purpose).or_insert_with(|| Call {
            operation: operation(),
            failures: 0,
            damages: 0,
            stage: Stage::Due(Duration::ZERO),
        });
    }

    /// Whether there is such a request.
    pub(super) fn contains(&self, purpose: &Purpose) -> bool {
        self.calls.contains_key(purpose)
    }

    /// How many are for such a purpose.
    pub(super) fn count(&self, which: impl Fn(&Purpose) -> bool) -> usize {
        self.calls.keys().filter(|purpose| which(purpose)).count()
    }

    /// Forgets those for other purposes; what they are answered changes nothing then.
    pub(super) fn retain(&mut self, keep: impl Fn(&Purpose) -> bool) {
        self.calls.retain(|purpose, _| keep(purpose));
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.calls.clear();
    }

    /// Takes out the request that this is the answer of, unless nobody waits for it any more.
    pub(super) fn take(&mut self, answered: RequestId) -> Option<(Purpose, Call)> {
        let waits = |call: &Call| matches!(call.stage, Stage::Sent { id, .. } if id == answered);
        let (purpose, _) = self.calls.iter().find(|(_, call)| waits(call))?;
        self.calls.remove_entry(&purpose.clone())
    }

    /// Takes out the requests that were not answered in time.
    pub(super) fn expired(&mut self, now: Duration) -> Vec<(Purpose, Call)> {
        let late = |call: &Call| matches!(call.stage, Stage::Sent { deadline, .. } if deadline <= now);
        let late: Vec<Purpose> = self
            .calls
            .iter()
            .filter(|(_, call)| late(call))
            .map(|(purpose, _)| purpose.clone())
            .collect();
        late.into_iter()
            .filter_map(|purpose| self.calls.remove_entry(&purpose))
            .collect()
    }

    /// Puts a request back, to be sent again then.
    pub(super) fn again(&mut self, purpose: Purpose, mut call: Call, at: Duration) {
        call.stage = Stage::Due(at);
        self.calls.insert(purpose, call);
    }

    /// Sends what is due.
    pub(super) fn send(&mut self, now: Duration, deadline: Duration) -> Vec<Request> {
        let mut requests = Vec::new();
        for call in self.calls.values_mut() {
            if matches!(call.stage, Stage::Due(at) if at <= now) {
                self.last_id += 1;
                let id = RequestId(self.last_id);
                call.stage = Stage::Sent { id, deadline };
                requests.push(Request {
                    id,
                    operation: call.operation.clone(),
                });
            }
        }
        requests
    }

    /// When the next is due or late.
    pub(super) fn wake_at(&self) -> Option<Duration> {
        let time = |call: &Call| match call.stage {
            Stage::Due(at) => at,
            Stage::Sent { deadline, .. } => deadline,
        };
        self.calls.values().map(time).min()
    }
}
