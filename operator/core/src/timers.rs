//! What is due when. Owns the order of times only; what a timer means is decided where it is run.

use std::collections::BTreeSet;

use crate::model::Timestamp;

/// What is due. Identities, not indices: a timer whose subject is gone finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// A worker's leases end unless it was heard since.
    Lease(u64),
    /// A worker whose stream broke is given up.
    Grace(u64),
    /// Workers that have not connected since the recovery are waited for no longer.
    Recovered,
    /// A failed task may be tried again.
    Retry(u64),
    /// A task that waited for another worker than the one it failed on takes any.
    Patience(u64),
    /// What waits is looked at for tasks that are passed over for too long.
    Aging,
    /// What runs is looked at for attempts that take too long.
    Stragglers,
    /// A job must be done.
    Deadline(u64),
    /// A job has been active for long enough.
    ActiveDeadline(u64),
}

/// All timers.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: BTreeSet<(Timestamp, Timer)>,
}

impl Timers {
    pub(crate) fn set(&mut self, at: Timestamp, timer: Timer) {
        self.due.insert((at, timer));
    }

    pub(crate) fn cancel(&mut self, at: Timestamp, timer: Timer) {
        self.due.remove(&(at, timer));
    }

    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    pub(crate) fn pop_due(&mut self, now: Timestamp) -> Option<Timer> {
        let first = *self.due.first()?;
        if first.0 > now {
            return None;
        }
        self.due.remove(&first);
        Some(first.1)
    }
}
