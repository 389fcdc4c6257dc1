//! The child of a slot: a backend process for one device (or for the control lane), kept running.
//!
//! Owns the process and its session: start, restart with backoff, hang detection, judging its end. Does not own
//! what runs in it: attempts are the agent's.

mod ending;
mod output;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prover_backend::protocol::{BackendDescription, Device, Shutdown};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::event::{ChildNews, Commands, Event};
use crate::host::{Host, OutOfMemoryKills};
use crate::launch::Starter;
use crate::limits::{
    CLOSE_WITHIN, FAILED_STARTS, HANG_CONFIRMATION, HELLO_WITHIN, REAP_WITHIN, RESTART_FIRST,
    RESTART_LONGEST, SAMPLE_EVERY, SHUTDOWN_WITHIN,
};
pub(crate) use ending::{ChildEnd, Killed};
use ending::{Evidence, judge};
use output::LastLines;

/// Environment variable that names the device that a child serves.
pub const DEVICE_VARIABLE: &str = "PROVER_DEVICE";

/// Samples of the out-of-memory counters that are kept: the oldest one is what an end is compared with, since the
/// newest may have been taken between the kill and its notice.
const KEPT_SAMPLES: usize = 3;

/// How a child is started.
#[derive(Clone, Debug)]
pub(crate) struct ChildSettings {
    pub(crate) program: PathBuf,
    pub(crate) launcher: Vec<OsString>,
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) socket: PathBuf,
    pub(crate) device: Device,
}

/// A session that a child has opened.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) description: Box<BackendDescription>,
    pub(crate) commands: Commands,
    /// Passes the child's events on; ends with the session.
    pub(crate) events: JoinHandle<()>,
}

/// When the child was heard last.
#[derive(Clone, Debug)]
pub(crate) struct LastHeard(Arc<Mutex<Instant>>);

impl LastHeard {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(crate) fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn at(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the child of one slot running.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(crate) slot: usize,
    pub(crate) settings: ChildSettings,
    pub(crate) starter: Starter,
    pub(crate) host: Host,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) opened: mpsc::Receiver<Opened>,
    pub(crate) heard: LastHeard,
    /// The agent asks for the end of the child that runs now.
    pub(crate) kill: mpsc::Receiver<Killed>,
    /// The agent ends.
    pub(crate) stop: CancellationToken,
}

/// A process that runs, with what was seen of it.
struct Running {
    child: Child,
    process: u32,
    lines: LastLines,
    readers: Vec<JoinHandle<()>>,
    samples: std::collections::VecDeque<OutOfMemoryKills>,
    peak_memory_bytes: u64,
}

/// Why a run ended, before it is judged.
enum Outcome {
    Exited,
    Kill(Killed),
    AskedToEnd,
}

impl Supervisor {
    /// Runs until the agent ends. Then no process of the slot is left.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new(RESTART_FIRST, RESTART_LONGEST);
        let mut failed_starts = 0_u32;
        while !self.stop.is_cancelled() {
            match self.one_child().await {
                Ok(end) => {
                    // Restarted at once: only starts that fail are slowed down.
                    failed_starts = 0;
                    backoff.reset();
                    self.tell(ChildNews::Ended(end)).await;
                }
                Err(problem) => {
                    failed_starts = failed_starts.saturating_add(1);
                    let wait = backoff.next();
                    tracing::warn!(
                        device = self.settings.device.id,
                        failed_starts,
                        ?wait,
                        "{problem}"
                    );
                    if failed_starts == FAILED_STARTS {
                        self.tell(ChildNews::Unstartable { problem }).await;
                    }
                    tokio::select! {
                        () = sleep(wait) => {}
                        () = self.stop.cancelled() => {}
                    }
                }
            }
        }
    }

    async fn tell(&self, news: ChildNews) {
        // The agent's loop ends only with the agent, and then nobody needs the news.
        let _ = self
            .events
            .send(Event::Child {
                slot: self.slot,
                news,
            })
            .await;
    }

    /// Starts a child and follows it to its end. An error is a start that failed.
    async fn one_child(&mut self) -> Result<ChildEnd, String> {
        while self.opened.try_recv().is_ok() || self.kill.try_recv().is_ok() {}
        let program = self.settings.program.display().to_string();
        let mut running = self
            .start()
            .await
            .map_err(|error| format!("could not start {program}: {error}"))?;
        let opened = tokio::select! {
            opened = timeout(HELLO_WITHIN, self.opened.recv()) => match opened {
                Ok(Some(opened)) => opened,
                Ok(None) => return Err("the agent's socket is closed".to_owned()),
                Err(_) => {
                    let end = self.finish(running, Outcome::Kill(Killed::ToEnd), None).await;
                    return Err(format!(
                        "{program} did not say hello within {} s; {}", HELLO_WITHIN.as_secs(), end.message));
                }
            },
            _ = running.child.wait() => {
                let end = self.finish(running, Outcome::Exited, None).await;
                return Err(format!("{program} ended before it said hello: {}", end.message));
            }
            () = self.stop.cancelled() => {
                return Ok(self.finish(running, Outcome::Kill(Killed::ToEnd), None).await);
            }
        };
        let Opened {
            description,
            commands,
            mut events,
        } = opened;
        let hang_after = description.hang_after();
        tracing::info!(
            device = self.settings.device.id,
            process = running.process,
            backend = description.name,
            version = description.version,
            "the backend is ready"
        );
        self.tell(ChildNews::Ready {
            process: running.process,
            commands: commands.clone(),
            description,
        })
        .await;
        let outcome = self
            .follow(&mut running, &commands, &mut events, hang_after)
            .await;
        Ok(self.finish(running, outcome, Some(events)).await)
    }

    async fn start(&self) -> std::io::Result<Running> {
        let settings = &self.settings;
        let mut command = match settings.launcher.split_first() {
            None => tokio::process::Command::new(&settings.program),
            Some((launcher, arguments)) => {
                let mut command = tokio::process::Command::new(launcher);
                command
                    .args(arguments)
                    .arg("--parent")
                    .arg(std::process::id().to_string())
                    .arg("--");
                command.arg(&settings.program);
                command
            }
        };
        command
            .env(prover_backend::AGENT_SOCKET_VARIABLE, &settings.socket)
            .env(DEVICE_VARIABLE, &settings.device.id)
            .envs(settings.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that what it starts can be killed with it.
            .process_group(0)
            .kill_on_drop(true);
        self.heard.now();
        let mut child = self.starter.start(command).await?;
        let lines = LastLines::default();
        let device = &settings.device.id;
        let mut readers = Vec::new();
        if let Some(output) = child.stderr.take() {
            readers.push(tokio::spawn(lines.clone().follow(output, device.clone())));
        }
        if let Some(output) = child.stdout.take() {
            readers.push(tokio::spawn(lines.clone().follow(output, device.clone())));
        }
        let process = child.id().unwrap_or_default();
        let samples = [self.host.out_of_memory_kills()].into();
        Ok(Running {
            child,
            process,
            lines,
            readers,
            samples,
            peak_memory_bytes: 0,
        })
    }

    async fn follow(
        &mut self,
        running: &mut Running,
        commands: &Commands,
        events: &mut JoinHandle<()>,
        hang_after: Duration,
    ) -> Outcome {
        let mut sampling = tokio::time::interval(SAMPLE_EVERY.min(hang_after / 2));
        sampling.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = running.child.wait() => return Outcome::Exited,
                _ = &mut *events => {
                    return match timeout(CLOSE_WITHIN, running.child.wait()).await {
                        Ok(_) => Outcome::Exited,
                        Err(_) => Outcome::Kill(Killed::SessionEnded),
                    };
                }
                Some(killed) = self.kill.recv() => return Outcome::Kill(killed),
                () = self.stop.cancelled() => {
                    let _ = commands.try_send(Ok(Shutdown {}.into()));
                    return match timeout(SHUTDOWN_WITHIN, running.child.wait()).await {
                        Ok(_) => Outcome::AskedToEnd,
                        Err(_) => Outcome::Kill(Killed::ToEnd),
                    };
                }
                _ = sampling.tick() => {
                    running.sample(&self.host);
                    if let Some(silence) = self.hangs(hang_after).await {
                        return Outcome::Kill(Killed::Hung(silence));
                    }
                }
            }
        }
    }

    /// How long the child has been silent, if that is too long. Looks twice, so that an agent which was starved
    /// itself first reads what lies in the socket.
    async fn hangs(&self, hang_after: Duration) -> Option<Duration> {
        if self.heard.at().elapsed() < hang_after {
            return None;
        }
        sleep(HANG_CONFIRMATION).await;
        let silence = self.heard.at().elapsed();
        (silence >= hang_after).then_some(silence)
    }

    async fn finish(
        &self,
        mut running: Running,
        outcome: Outcome,
        events: Option<JoinHandle<()>>,
    ) -> ChildEnd {
        let killed = match outcome {
            Outcome::Kill(killed) => {
                running.sample(&self.host);
                Some(killed)
            }
            Outcome::Exited | Outcome::AskedToEnd => None,
        };
        // The whole group: what the child started must not outlive it.
        kill_group(running.process);
        let status = match timeout(REAP_WITHIN, running.child.wait()).await {
            Ok(status) => status.ok(),
            Err(_) => {
                tracing::error!(
                    process = running.process,
                    "a killed backend process does not end: its driver hangs"
                );
                None
            }
        };
        if let Some(mut events) = events
            && !events.is_finished()
            && timeout(CLOSE_WITHIN, &mut events).await.is_err()
        {
            events.abort();
        }
        for mut reader in running.readers.drain(..) {
            // A process that inherited the pipe could keep it open.
            if timeout(CLOSE_WITHIN, &mut reader).await.is_err() {
                reader.abort();
            }
        }
        let now = self.host.out_of_memory_kills();
        let before = running.samples.front().copied().unwrap_or(now);
        judge(&Evidence {
            status,
            killed,
            out_of_memory: now.evidence_since(before),
            peak_memory_bytes: running.peak_memory_bytes,
            last_words: &running.lines.text(),
            device: &self.settings.device.id,
            asked_to_end: matches!(outcome, Outcome::AskedToEnd),
        })
    }
}

impl Running {
    fn sample(&mut self, host: &Host) {
        if self.samples.len() == KEPT_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(host.out_of_memory_kills());
        if let Some(peak) = host.peak_memory_bytes(self.process) {
            self.peak_memory_bytes = peak;
        }
    }
}

fn kill_group(process: u32) {
    let group = i32::try_from(process).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        // No such group: everything has ended already.
        let _ = kill_process_group(group, Signal::KILL);
    }
}
