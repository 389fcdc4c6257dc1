//! Starts worker processes and starts dead ones again, within limits.
//!
//! Owns processes only: what a dead worker means for its attempts is decided by the coordinator, which is told.
//! Must be polled on the main thread: the kernel's signal at the parent's death is tied to the thread that
//! started a process.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::processes::signal_group;

/// Deaths in a row after which a worker is given up: one that can't run at all is told within seconds.
const RESTARTS_IN_A_ROW: u32 = 5;
/// A worker that lived this long has left its row of deaths.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// Times that one worker is started again in all.
const RESTARTS_PER_WORKER: u32 = 100;
/// Wait before the second start in a row; doubles each time. The first restart is at once.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
/// Longest wait before a start.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// How long workers may take to leave after SIGTERM before they are killed.
pub(crate) const LEAVE_GRACE: Duration = Duration::from_secs(3);
/// Bytes of a worker's log that are shown when it failed.
const LOG_TAIL_BYTES: u64 = 4096;

/// What every worker of a run is started with.
#[derive(Clone, Debug)]
pub(crate) struct WorkerSettings {
    /// This executable, which starts the worker so that it dies with us.
    pub(crate) own_program: PathBuf,
    /// `prover-worker`.
    pub(crate) program: PathBuf,
    /// The backend that it starts for each device.
    pub(crate) backend: PathBuf,
    /// Where the coordinator listens.
    pub(crate) coordinator: String,
    /// File with the bearer token.
    pub(crate) token_file: PathBuf,
    /// Store as URL.
    pub(crate) store: String,
    /// Folder for the workers' own folders.
    pub(crate) work_directory: PathBuf,
    /// Folder for the workers' logs.
    pub(crate) log_directory: PathBuf,
    /// Worker processes.
    pub(crate) count: u16,
    /// Devices of each worker.
    pub(crate) devices: u16,
    /// Threads of each device's process; the backend's own default where none is given.
    pub(crate) threads: Option<u16>,
    /// Bytes that each worker may plan with.
    pub(crate) memory_bytes: u64,
}

/// No worker could be kept alive.
#[derive(Debug, thiserror::Error)]
#[error("every worker ended again and again; the last one: {last}")]
pub(crate) struct AllWorkersFailed {
    /// How the last one ended.
    pub(crate) last: String,
    /// Which it was.
    pub(crate) worker_number: u16,
}

/// What the supervisor tells while it works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WorkerEvent {
    /// A process ended that should not have.
    Gone { worker_id: String, how: String },
    /// A worker is not started again.
    GivenUp { worker_number: u16, restarts: u32 },
}

impl WorkerSettings {
    /// Log file of a worker.
    pub(crate) fn log_file(&self, worker_number: u16) -> PathBuf {
        self.log_directory.join(format!("worker-{worker_number}.log"))
    }

    fn start(&self, number: u16, worker_id: &str) -> std::io::Result<Child> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file(number))?;
        let work_directory = self.work_directory.join(worker_id);
        std::fs::create_dir_all(&work_directory)?;
        let mut command = Command::new(&self.own_program);
        command
            .args(["internal-run-child", "--parent"])
            .arg(std::process::id().to_string())
            .arg("--")
            .arg(&self.program)
            .args(["--coordinator", &self.coordinator, "--token-file"])
            .arg(&self.token_file)
            .args([
                "--worker-id",
                worker_id,
                "--worker-group",
                "local",
                "--store",
                &self.store,
            ])
            .arg("--work-directory")
            .arg(work_directory)
            .arg("--backend-command")
            .arg(&self.backend)
            .args(["--devices", &self.devices.to_string(), "--device-class", "cpu"])
            .args([
                "--host-memory",
                &self.memory_bytes.to_string(),
                "--drain-seconds",
                "1",
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own: Ctrl-C on the terminal reaches this process only, which then stops the workers.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(threads) = self.threads {
            command.env("RAYON_NUM_THREADS", threads.to_string());
        }
        command.spawn()
    }
}

/// Keeps all workers running until `stop`; ends early only when none can be kept alive.
pub(crate) async fn supervise(
    settings: &WorkerSettings,
    stop: &CancellationToken,
    tell: &dyn Fn(WorkerEvent),
) -> Result<(), AllWorkersFailed> {
    let mut slots: FuturesUnordered<_> = (1..=settings.count)
        .map(|number| keep_one_running(settings, number, stop, tell))
        .collect();
    let mut last_failure = None;
    while let Some(ended) = slots.next().await {
        if let Err(failure) = ended {
            last_failure = Some(failure);
        }
    }
    match last_failure {
        Some(failure) if !stop.is_cancelled() => Err(failure),
        _ => Ok(()),
    }
}

async fn keep_one_running(
    settings: &WorkerSettings,
    number: u16,
    stop: &CancellationToken,
    tell: &dyn Fn(WorkerEvent),
) -> Result<(), AllWorkersFailed> {
    let mut deaths_in_a_row = 0;
    let mut generation = 0_u32;
    loop {
        generation += 1;
        let worker_id = format!("worker-{number}-{generation}");
        let started = Instant::now();
        let how = match settings.start(number, &worker_id) {
            Err(error) => format!("worker {number} can't be started: {error}"),
            Ok(mut child) => {
                let group = child.id();
                tokio::select! {
                    () = stop.cancelled() => {
                        end(&mut child, group).await;
                        return Ok(());
                    }
                    status = child.wait() => {
                        // Whatever it started in its group has no master any more.
                        group.into_iter().for_each(|group| signal_group(group, Signal::KILL));
                        describe(number, status)
                    }
                }
            }
        };
        tell(WorkerEvent::Gone {
            worker_id,
            how: how.clone(),
        });
        if started.elapsed() >= STABLE_AFTER {
            deaths_in_a_row = 0;
        }
        deaths_in_a_row += 1;
        if deaths_in_a_row > RESTARTS_IN_A_ROW || generation > RESTARTS_PER_WORKER {
            tell(WorkerEvent::GivenUp {
                worker_number: number,
                restarts: generation - 1,
            });
            return Err(AllWorkersFailed {
                last: how,
                worker_number: number,
            });
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(backoff(deaths_in_a_row)) => {}
        }
    }
}

/// The first restart is at once, since a single death is most often somebody's kill.
fn backoff(deaths_in_a_row: u32) -> Duration {
    match deaths_in_a_row.checked_sub(2) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_BACKOFF
            .saturating_mul(1 << doublings.min(16))
            .min(LONGEST_BACKOFF),
    }
}

async fn end(child: &mut Child, group: Option<u32>) {
    let Some(group) = group else { return };
    signal_group(group, Signal::TERM);
    let left = tokio::time::timeout(LEAVE_GRACE, child.wait()).await;
    // Even after the leader has left, its group may hold a backend that was starting.
    signal_group(group, Signal::KILL);
    if left.is_err() {
        let _already_reaped = child.wait().await;
    }
}

fn describe(number: u16, status: std::io::Result<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status {
        Err(error) => format!("worker {number} can't be waited for: {error}"),
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("worker {number} ended with exit code {code}"),
            (None, Some(signal)) => format!("worker {number} was ended by signal {signal}"),
            (None, None) => format!("worker {number} ended"),
        },
    }
}

/// The last lines of a log, each on a line of its own, or nothing.
pub(crate) fn log_tail(path: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) if !text.trim().is_empty() => {
            format!("--- end of {}\n{}\n", path.display(), text.trim_end())
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
