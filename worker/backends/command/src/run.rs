//! Running a command: in a process group of its own, for a bounded time, with the last of its output kept.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prover_backend::CancellationToken;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::memory;

/// Lines of output that a failure tells.
const KEPT_LINES: usize = 20;
/// Longest of them, in bytes.
const LINE_BYTES: usize = 512;
/// How soon a stopped attempt is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Longest wait for the rest of the output of a command that has ended.
const OUTPUT_WITHIN: Duration = Duration::from_secs(1);
/// Variables of this process that begin so are not passed on.
const OWN_VARIABLES: [&str; 2] = ["PROVER_", "KUBERNETES_"];

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Exited(i32),
    Signalled {
        signal: i32,
        /// The kernel has killed for lack of memory meanwhile.
        out_of_memory: bool,
    },
    TimedOut,
    Stopped,
}

/// A command that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) ending: Ending,
    /// The last lines that it printed.
    pub(crate) last_words: String,
    pub(crate) took: Duration,
}

/// The command could not be run at all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("the command is empty")]
    Empty,
    #[error("can't run {program}: {source}")]
    Start { program: String, source: std::io::Error },
    #[error("can't watch the process of {program}: {source}")]
    Watch { program: String, source: std::io::Error },
}

/// Kills the group whatever happens.
struct Group {
    child: Child,
    id: Pid,
}

impl Group {
    fn kill(&self) {
        // Gone already, if it fails.
        let _ = rustix::process::kill_process_group(self.id, Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        // Killed, so it ends; nothing else waits for it.
        let _ = self.child.wait();
    }
}

/// Runs a command to its end. Blocks.
///
/// # Errors
/// It could not be started or watched.
pub(crate) fn run(
    words: &[String],
    directory: &Path,
    limit: Duration,
    stopped: &CancellationToken,
) -> Result<Outcome, RunError> {
    let (program, arguments) = words.split_first().ok_or(RunError::Empty)?;
    let began = Instant::now();
    let kills_before = memory::out_of_memory_kills();
    let mut child = prepared(program, arguments, directory)
        .spawn()
        .map_err(|source| RunError::Start {
            program: program.clone(),
            source,
        })?;
    let tail = Tail::default();
    let (open, closed) = mpsc::channel::<()>();
    if let Some(stdout) = child.stdout.take() {
        tail.follow(stdout, open.clone());
    }
    if let Some(stderr) = child.stderr.take() {
        tail.follow(stderr, open.clone());
    }
    drop(open);
    let mut group = Group {
        id: Pid::from_child(&child),
        child,
    };
    let ended = wait(&mut group, began + limit, stopped).map_err(|source| RunError::Watch {
        program: program.clone(),
        source,
    })?;
    drop(group);
    // All senders are gone when both outputs have ended, and a process outside of the group may hold them open.
    let _ = closed.recv_timeout(OUTPUT_WITHIN);
    let ending = match ended {
        Waited::Ended(status) => judge(status, memory::out_of_memory_kills() > kills_before),
        Waited::TimedOut => Ending::TimedOut,
        Waited::Stopped => Ending::Stopped,
    };
    Ok(Outcome {
        ending,
        last_words: tail.text(),
        took: began.elapsed(),
    })
}

fn prepared(program: &str, arguments: &[String], directory: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if OWN_VARIABLES.iter().any(|own| text.starts_with(own)) {
            command.env_remove(&name);
        }
    }
    for name in ["HOME", "TMPDIR"] {
        if std::env::var_os(name).is_none() {
            command.env(name, directory);
        }
    }
    command
}

fn judge(status: ExitStatus, out_of_memory: bool) -> Ending {
    match (status.code(), status.signal()) {
        (Some(code), _) => Ending::Exited(code),
        (None, signal) => Ending::Signalled {
            signal: signal.unwrap_or_default(),
            out_of_memory,
        },
    }
}

enum Waited {
    Ended(ExitStatus),
    TimedOut,
    Stopped,
}

fn wait(group: &mut Group, deadline: Instant, stopped: &CancellationToken) -> std::io::Result<Waited> {
    let handle = rustix::process::pidfd_open(group.id, PidfdFlags::empty())?;
    loop {
        if let Some(status) = group.child.try_wait()? {
            return Ok(Waited::Ended(status));
        }
        if stopped.is_cancelled() {
            return Ok(Waited::Stopped);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Waited::TimedOut);
        }
        let nanoseconds = left.min(LOOK_EVERY).subsec_nanos();
        let pause = Timespec {
            tv_sec: 0,
            tv_nsec: nanoseconds.into(),
        };
        match rustix::event::poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&pause)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The last lines of two outputs.
#[derive(Clone, Debug, Default)]
struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    /// Reads an output until it ends, passes it on to this process's standard error and keeps the last lines.
    fn follow(&self, output: impl Read + Send + 'static, open: mpsc::Sender<()>) {
        let tail = self.clone();
        std::thread::spawn(move || {
            tail.read(BufReader::new(output));
            drop(open);
        });
    }

    fn read(&self, mut output: impl BufRead) {
        let mut line = Vec::new();
        loop {
            let available = match output.fill_buf() {
                Ok([]) => break,
                Ok(available) => available,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = &available[..end.map_or(available.len(), |end| end + 1)];
            // A log that can't be written is no reason to stop the prover.
            let _ = std::io::stderr().write_all(part);
            let room = LINE_BYTES.saturating_sub(line.len());
            line.extend_from_slice(&part[..part.len().min(room)]);
            let passed = part.len();
            output.consume(passed);
            if end.is_some() {
                self.push(&mut line);
            }
        }
        self.push(&mut line);
    }

    fn push(&self, line: &mut Vec<u8>) {
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        line.clear();
        if text.is_empty() {
            return;
        }
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(text);
    }

    fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}
