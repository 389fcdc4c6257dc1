//! What runs the backend processes of a slot: this agent itself, or the supervisor in a container of its own. All
//! else about a child is the same for both.

use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prover_backend::supervisor::Sample;

use crate::host::{Host, OutOfMemoryKills};

/// Runs the processes of one slot, one after the other.
#[async_trait::async_trait]
pub(crate) trait Runner: Send + Sync {
    /// What is run and where, for messages.
    fn name(&self) -> String;

    /// Waits until a process could be started. Cancel safe.
    async fn available(&mut self);

    /// Why nothing could be started now and what to look at, for people.
    fn missing(&self) -> String;

    /// Starts a process; the one before has ended.
    async fn start(&mut self) -> Result<Started, String>;

    /// Waits for the end of the process; once it has ended, answers at once. Cancel safe.
    async fn ended(&mut self) -> ProcessEnd;

    /// SIGKILL to the process and to all that it has started.
    fn kill(&mut self);

    /// The last lines of the process that has ended.
    async fn last_words(&mut self) -> String;

    /// The agent ends for good and no process runs: whatever runs them ends, too.
    async fn close(&mut self);
}

/// A process that was started.
#[derive(Debug)]
pub(crate) struct Started {
    /// Its id, where it runs.
    pub(crate) process: u32,
    pub(crate) meter: Meter,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessEnd {
    /// As the kernel told it.
    Exit(ExitStatus),
    /// All of its container ended with it.
    ContainerEnded,
    /// It could not be waited for.
    Unknown,
}

/// Where the figures of a process come from.
#[derive(Clone, Debug)]
pub(crate) enum Meter {
    /// A process of this machine, read at once.
    Process { host: Host, process: u32 },
    /// What a supervisor told last, once per second: its processes can't be seen from here.
    Samples(Samples),
}

impl Meter {
    /// Processor time of the process and its children since its start.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        let milliseconds = match self {
            Self::Process { host, process } => host.cpu_milliseconds(*process),
            Self::Samples(samples) => Some(samples.last().cpu_milliseconds),
        };
        milliseconds.map(Duration::from_millis)
    }

    /// Highest memory of the process so far.
    pub(crate) fn peak_memory_bytes(&self) -> Option<u64> {
        match self {
            Self::Process { host, process } => host.peak_memory_bytes(*process),
            Self::Samples(samples) => Some(samples.last().peak_memory_bytes).filter(|bytes| *bytes > 0),
        }
    }

    /// Kills for memory where the process runs.
    pub(crate) fn out_of_memory_kills(&self) -> OutOfMemoryKills {
        match self {
            Self::Process { host, .. } => host.out_of_memory_kills(),
            Self::Samples(samples) => OutOfMemoryKills {
                in_cgroup: samples.last().out_of_memory_kills,
                on_machine: 0,
            },
        }
    }
}

/// The last sample of a supervisor.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Arc<Mutex<Sample>>);

impl Samples {
    /// As a container begins.
    pub(crate) fn begin(out_of_memory_kills: u64) -> Self {
        Self(Arc::new(Mutex::new(Sample {
            out_of_memory_kills,
            ..Sample::default()
        })))
    }

    pub(crate) fn set(&self, sample: Sample) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = sample;
    }

    /// A new process has used nothing yet.
    pub(crate) fn new_process(&self) {
        let out_of_memory_kills = self.last().out_of_memory_kills;
        self.set(Sample {
            out_of_memory_kills,
            ..Sample::default()
        });
    }

    pub(crate) fn last(&self) -> Sample {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
