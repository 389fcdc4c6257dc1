//! The child of a slot: a backend process for one device (or for the control lane), kept running.
//!
//! Owns the process and its session: start, restart with backoff, hang detection, judging its end. Does not own
//! what runs in it: attempts are the agent's. Who starts the process is a detail of its [`Runner`]: the agent itself
//! in local mode, a supervisor in a container of its own in a pod.

mod ending;
mod local;
mod output;
mod runner;
mod supervised;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prover_backend::protocol::{BackendDescription, Shutdown};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::event::{ChildNews, Commands, Event};
use crate::host::OutOfMemoryKills;
use crate::limits::{
    ABSENT_AFTER, CLOSE_WITHIN, FAILED_STARTS, HANG_CONFIRMATION, HELLO_WITHIN, REAP_WITHIN, RESTART_FIRST,
    RESTART_LONGEST, SAMPLE_EVERY, SHUTDOWN_WITHIN,
};
pub(crate) use ending::{ChildEnd, Killed};
use ending::{Evidence, judge};
pub(crate) use local::{LocalRunner, LocalSettings};
pub(crate) use runner::{Meter, Runner};
use runner::{ProcessEnd, Started};
pub(crate) use supervised::{SupervisedRunner, Supervision};

/// Environment variable that names the device that a child serves.
pub const DEVICE_VARIABLE: &str = "PROVER_DEVICE";

/// Samples of the out-of-memory counters that are kept: the oldest one is what an end is compared with, since the
/// newest may have been taken between the kill and its notice.
const KEPT_SAMPLES: usize = 3;

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
pub(crate) struct Keeper {
    pub(crate) slot: usize,
    pub(crate) device_id: String,
    pub(crate) runner: Box<dyn Runner>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) opened: mpsc::Receiver<Opened>,
    pub(crate) heard: LastHeard,
    /// The agent asks for the end of the child that runs now.
    pub(crate) kill: mpsc::Receiver<Killed>,
    /// The agent ends.
    pub(crate) stop: CancellationToken,
    /// It ends for good: whatever runs its processes ends, too. Else that waits for the next agent.
    pub(crate) leave: CancellationToken,
}

/// What was seen of a process that runs.
struct Seen {
    process: u32,
    meter: Meter,
    samples: VecDeque<OutOfMemoryKills>,
    peak_memory_bytes: u64,
}

/// Why a run ended, before it is judged.
enum Outcome {
    Exited,
    Kill(Killed),
    AskedToEnd,
}

impl Keeper {
    /// Runs until the agent ends. Then no process of the slot is left.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new(RESTART_FIRST, RESTART_LONGEST);
        let mut failed_starts = 0_u32;
        while self.may_start().await {
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
                    tracing::warn!(device = self.device_id, failed_starts, ?wait, "{problem}");
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
        if self.leave.is_cancelled() {
            self.runner.close().await;
        }
    }

    /// Waits until a child can be started; false where the agent ends.
    async fn may_start(&mut self) -> bool {
        let patience = sleep(ABSENT_AFTER);
        tokio::pin!(patience);
        let mut told = false;
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return false,
                () = self.runner.available() => return true,
                () = &mut patience, if !told => {
                    told = true;
                    let problem = self.runner.missing();
                    self.tell(ChildNews::Absent { problem }).await;
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
        let name = self.runner.name();
        self.heard.now();
        let mut seen = Seen::new(self.runner.start().await?);
        let opened = tokio::select! {
            opened = timeout(HELLO_WITHIN, self.opened.recv()) => match opened {
                Ok(Some(opened)) => opened,
                Ok(None) => return Err("the agent's socket is closed".to_owned()),
                Err(_) => {
                    let end = self.finish(seen, Outcome::Kill(Killed::ToEnd), None).await;
                    return Err(format!(
                        "{name} did not say hello within {} s; {}", HELLO_WITHIN.as_secs(), end.message));
                }
            },
            _ = self.runner.ended() => {
                let end = self.finish(seen, Outcome::Exited, None).await;
                return Err(format!("{name} ended before it said hello: {}", end.message));
            }
            () = self.stop.cancelled() => {
                return Ok(self.finish(seen, Outcome::Kill(Killed::ToEnd), None).await);
            }
        };
        let Opened {
            description,
            commands,
            mut events,
        } = opened;
        let hang_after = description.hang_after();
        tracing::info!(
            device = self.device_id,
            process = seen.process,
            backend = description.name,
            version = description.version,
            "the backend is ready"
        );
        self.tell(ChildNews::Ready {
            meter: seen.meter.clone(),
            commands: commands.clone(),
            description,
        })
        .await;
        let outcome = self.follow(&mut seen, &commands, &mut events, hang_after).await;
        Ok(self.finish(seen, outcome, Some(events)).await)
    }

    async fn follow(
        &mut self,
        seen: &mut Seen,
        commands: &Commands,
        events: &mut JoinHandle<()>,
        hang_after: Duration,
    ) -> Outcome {
        let mut sampling = tokio::time::interval(SAMPLE_EVERY.min(hang_after / 2));
        sampling.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = self.runner.ended() => return Outcome::Exited,
                _ = &mut *events => {
                    return match timeout(CLOSE_WITHIN, self.runner.ended()).await {
                        Ok(_) => Outcome::Exited,
                        Err(_) => Outcome::Kill(Killed::SessionEnded),
                    };
                }
                Some(killed) = self.kill.recv() => return Outcome::Kill(killed),
                () = self.stop.cancelled() => {
                    let _ = commands.try_send(Ok(Shutdown {}.into()));
                    return match timeout(SHUTDOWN_WITHIN, self.runner.ended()).await {
                        Ok(_) => Outcome::AskedToEnd,
                        Err(_) => Outcome::Kill(Killed::ToEnd),
                    };
                }
                _ = sampling.tick() => {
                    seen.sample();
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

    async fn finish(&mut self, mut seen: Seen, outcome: Outcome, events: Option<JoinHandle<()>>) -> ChildEnd {
        let killed = match outcome {
            Outcome::Kill(killed) => Some(killed),
            Outcome::Exited | Outcome::AskedToEnd => None,
        };
        seen.sample();
        // All of it: what the child started must not outlive it.
        self.runner.kill();
        let end = match timeout(REAP_WITHIN, self.runner.ended()).await {
            Ok(end) => end,
            Err(_) => {
                tracing::error!(
                    process = seen.process,
                    "a killed backend process does not end: its driver hangs"
                );
                ProcessEnd::Unknown
            }
        };
        if let Some(mut events) = events
            && !events.is_finished()
            && timeout(CLOSE_WITHIN, &mut events).await.is_err()
        {
            events.abort();
        }
        let last_words = self.runner.last_words().await;
        let now = seen.meter.out_of_memory_kills();
        let before = seen.samples.front().copied().unwrap_or(now);
        judge(&Evidence {
            end,
            killed,
            out_of_memory: now.evidence_since(before),
            peak_memory_bytes: seen.peak_memory_bytes,
            last_words: &last_words,
            device: &self.device_id,
            asked_to_end: matches!(outcome, Outcome::AskedToEnd),
        })
    }
}

impl Seen {
    fn new(started: Started) -> Self {
        let Started { process, meter } = started;
        let samples = [meter.out_of_memory_kills()].into();
        Self {
            process,
            meter,
            samples,
            peak_memory_bytes: 0,
        }
    }

    fn sample(&mut self) {
        if self.samples.len() == KEPT_SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(self.meter.out_of_memory_kills());
        if let Some(peak) = self.meter.peak_memory_bytes() {
            self.peak_memory_bytes = peak;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever would run a process is not there.
    struct Absence;

    #[async_trait::async_trait]
    impl Runner for Absence {
        fn name(&self) -> String {
            unreachable!()
        }
        async fn available(&mut self) {
            std::future::pending::<()>().await;
        }
        fn missing(&self) -> String {
            "no container".to_owned()
        }
        async fn start(&mut self) -> Result<Started, String> {
            unreachable!()
        }
        async fn ended(&mut self) -> ProcessEnd {
            unreachable!()
        }
        fn kill(&mut self) {}
        async fn last_words(&mut self) -> String {
            unreachable!()
        }
        async fn close(&mut self) {
            unreachable!()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_absent_is_told_once_after_a_while_and_waited_for_until_the_agent_ends() {
        let (events, mut news) = mpsc::channel(8);
        let (_opened, opened) = mpsc::channel(1);
        let (_kill, kill) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let keeper = Keeper {
            slot: 3,
            device_id: "cpu-3".to_owned(),
            runner: Box::new(Absence),
            events,
            opened,
            heard: LastHeard::new(),
            kill,
            stop: stop.clone(),
            leave: CancellationToken::new(),
        };
        let began = Instant::now();
        let keeping = tokio::spawn(keeper.run());
        let told = news.recv().await;
        assert!(
            matches!(&told, Some(Event::Child { slot: 3, news: ChildNews::Absent { problem } }) if problem == "no container"),
            "{told:?}"
        );
        assert_eq!(began.elapsed(), ABSENT_AFTER);
        assert!(timeout(ABSENT_AFTER * 5, news.recv()).await.is_err());
        stop.cancel();
        keeping.await.unwrap();
        assert!(news.recv().await.is_none());
    }
}
