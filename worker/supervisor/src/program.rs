//! The prover's process, and everything that it starts.
//!
//! Owns spawning, killing and reaping. All children of this process are waited for in one place, [`reap`], so that
//! nothing takes the status of the prover away.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use prover_backend::AGENT_SOCKET_VARIABLE;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::net::unix::pipe;
use tokio::task::JoinSet;

use crate::cgroup::{Reading, RunFigures};
use crate::limits::{KILL_AGAIN_EVERY, KILLED_WITHIN, OUTPUT_WITHIN};
use crate::output::{Lines, follow};

/// A prover that was started.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) process: Pid,
    pub(crate) figures: RunFigures,
    outputs: JoinSet<()>,
}

impl Program {
    /// Starts the prover in a process group of its own.
    ///
    /// # Errors
    /// What the system says, for the user.
    pub(crate) fn start(
        command: &[OsString],
        socket: &Path,
        environment: &HashMap<String, String>,
        reading: Reading,
        lines: &Lines,
    ) -> Result<Self, String> {
        let Some((program, arguments)) = command.split_first() else {
            return Err("no program is named".to_owned());
        };
        let mut child = Command::new(program)
            .args(arguments)
            .envs(environment)
            .env(AGENT_SOCKET_VARIABLE, socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| format!("can't run {}: {error}", program.to_string_lossy()))?;
        let mut outputs = JoinSet::new();
        if let Some(stdout) = child.stdout.take().and_then(|output| receiver(output.into())) {
            outputs.spawn(follow(stdout, tokio::io::stdout(), lines.clone()));
        }
        if let Some(stderr) = child.stderr.take().and_then(|output| receiver(output.into())) {
            outputs.spawn(follow(stderr, tokio::io::stderr(), lines.clone()));
        }
        // From here on only `reap` waits for it.
        Ok(Self {
            process: Pid::from_child(&child),
            figures: RunFigures::begin(reading),
            outputs,
        })
    }

    pub(crate) fn kill(&self) {
        // Gone already, if it fails.
        let _ = rustix::process::kill_process_group(self.process, Signal::KILL);
    }

    /// Waits until everything that was printed is passed on.
    pub(crate) async fn finish_output(&mut self) {
        let ended = async { while self.outputs.join_next().await.is_some() {} };
        if tokio::time::timeout(OUTPUT_WITHIN, ended).await.is_err() {
            self.outputs.abort_all();
        }
    }
}

fn receiver(output: OwnedFd) -> Option<pipe::Receiver> {
    match pipe::Receiver::from_owned_fd(output) {
        Ok(receiver) => Some(receiver),
        Err(error) => {
            tracing::warn!(%error, "the prover's output can't be read");
            None
        }
    }
}

/// Waits for all children that have ended, orphans among them; tells the end of `process`.
pub(crate) fn reap(process: Option<Pid>) -> Option<WaitStatus> {
    let mut ended = None;
    // Ends with no child at all (an error) or none that has ended.
    while let Ok(Some((child, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if Some(child) == process {
            ended = Some(status);
        }
    }
    ended
}

/// Kills and reaps everything that is left: the group, and what has left it and came to us as an orphan. Tells the end
/// of `process`, should that be among them.
pub(crate) async fn kill_everything(process: Option<Pid>) -> Option<WaitStatus> {
    let mut ended = None;
    let all_gone = async {
        loop {
            if let Some(process) = process {
                let _ = rustix::process::kill_process_group(process, Signal::KILL);
            }
            let children = children();
            for child in &children {
                let _ = rustix::process::kill_process(*child, Signal::KILL);
            }
            ended = ended.or(reap(process));
            if children.is_empty() {
                return;
            }
            // Children of children come to us only once those are gone.
            tokio::time::sleep(Duration::from_millis(1)).await;
            ended = ended.or(reap(process));
            if self::children().is_empty() {
                continue;
            }
            tokio::time::sleep(KILL_AGAIN_EVERY).await;
        }
    };
    if tokio::time::timeout(KILLED_WITHIN, all_gone).await.is_err() {
        tracing::error!(
            left = children().len(),
            "killed processes do not end: a driver may hold them"
        );
    }
    ended
}

/// The processes whose parent is this one.
fn children() -> Vec<Pid> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|process| parent_of(*process) == Some(own))
        .filter_map(Pid::from_raw)
        .collect()
}

fn parent_of(process: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}
