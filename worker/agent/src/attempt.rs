//! One attempt on its way through the agent.

use std::time::Duration;

use prover_backend::protocol::{AttemptCompleted, InputFile};
use prover_wire::protocol::{Assign, Usage, WorkerMessage};
use tokio_util::sync::CancellationToken;

use crate::transfer::AttemptFolder;
use crate::usage::Share;

/// Where an attempt is.
#[derive(Debug)]
pub(crate) enum Stage {
    /// The work directory has no room for its inputs yet.
    Queued,
    /// Its inputs are being fetched.
    Fetching,
    /// It waits for a slot of its device.
    Ready(Vec<InputFile>),
    /// The child has it.
    Running,
    /// The child has it and was asked to stop it.
    Stopping,
    /// The child has finished it; its outputs are being stored.
    Uploading(Box<AttemptCompleted>),
    /// It is over. The report is kept until the coordinator acknowledges it.
    Reported(Box<WorkerMessage>),
}

impl Stage {
    /// It has left the prefetch queue.
    pub(crate) fn has_started(&self) -> bool {
        !matches!(self, Self::Queued | Self::Fetching | Self::Ready(_))
    }

    /// The child has it.
    pub(crate) fn is_in_child(&self) -> bool {
        matches!(self, Self::Running | Self::Stopping)
    }

    /// Its files take room in the work directory.
    pub(crate) fn has_files(&self) -> bool {
        !matches!(self, Self::Queued | Self::Reported(_))
    }
}

/// One attempt.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) assign: Assign,
    /// Index of its slot: a device, or the control lane.
    pub(crate) slot: usize,
    pub(crate) stage: Stage,
    pub(crate) folder: AttemptFolder,
    /// Ends its transfers.
    pub(crate) cancel: CancellationToken,
    pub(crate) fetch: Duration,
    pub(crate) upload: Duration,
    pub(crate) share: Share,
    pub(crate) peak_memory_bytes: u64,
}

impl Attempt {
    /// Bytes of its inputs.
    pub(crate) fn input_bytes(&self) -> u64 {
        self.assign.inputs.iter().map(|input| input.size_bytes).sum()
    }

    /// What it has used. The control lane takes no time of a device.
    pub(crate) fn usage(&self, reported_device_milliseconds: u64) -> Usage {
        let share = milliseconds(self.share.device);
        let device_milliseconds = match (self.assign.device_id.is_empty(), reported_device_milliseconds) {
            (true, _) => 0,
            (false, 0) => share,
            // The backend knows when it waited for files; it never used more than its share of the clock.
            (false, reported) => reported.min(share),
        };
        Usage {
            device_milliseconds,
            fetch_milliseconds: milliseconds(self.fetch),
            upload_milliseconds: milliseconds(self.upload),
            // Energy is measured only on GPUs, by the crate that speaks to them.
            energy_millijoules: 0,
            cpu_milliseconds: milliseconds(self.share.cpu),
            peak_memory_bytes: self.peak_memory_bytes,
        }
    }
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
