//! Finds the processes of one run by the TMPDIR that they inherited.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Wait between two looks at something that can't notify us, such as /proc.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A living process of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Its parent's process id.
    pub parent: i32,
    /// File name of its program.
    pub program: String,
    /// Program and arguments.
    pub arguments: Vec<String>,
}

impl Process {
    /// Sends SIGKILL.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Sends a signal; a process that is gone is no error.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _gone = rustix::process::kill_process(pid, signal);
        }
    }

    /// The value of an environment variable that it was started with.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<String> {
        let environment = std::fs::read(format!("/proc/{}/environ", self.pid)).ok()?;
        environment.split(|byte| *byte == 0).find_map(|variable| {
            let value = variable.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(String::from_utf8_lossy(value).into_owned())
        })
    }

    /// Whether it is still there, and no zombie.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        parent_of_living(&PathBuf::from(format!("/proc/{}", self.pid))).is_some()
    }
}

/// All living processes whose TMPDIR is `temporary`.
#[must_use]
pub fn processes_of(temporary: &Path) -> Vec<Process> {
    let mark = [b"TMPDIR=", temporary.as_os_str().as_bytes()].concat();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| process(&entry.path(), &mark))
        .collect()
}

fn process(folder: &Path, mark: &[u8]) -> Option<Process> {
    let pid = folder.file_name()?.to_str()?.parse().ok()?;
    let environment = std::fs::read(folder.join("environ")).ok()?;
    if !environment
        .split(|byte| *byte == 0)
        .any(|variable| variable == mark)
    {
        return None;
    }
    let parent = parent_of_living(folder)?;
    let program = std::fs::read_link(folder.join("exe"))
        .ok()?
        .file_name()?
        .to_str()?
        .to_owned();
    let arguments = std::fs::read(folder.join("cmdline")).ok()?;
    let arguments = arguments
        .split(|byte| *byte == 0)
        .filter(|argument| !argument.is_empty())
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect();
    Some(Process {
        pid,
        parent,
        program,
        arguments,
    })
}

/// Parent's id; none for a zombie or a process that is gone.
fn parent_of_living(folder: &Path) -> Option<i32> {
    let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.next()?.parse().ok(),
    }
}

/// Looks again and again until `look` finds something.
///
/// # Panics
/// It did not within `limit`; the message names `what`.
pub fn await_until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < limit, "waited {limit:?} in vain until {what}");
        std::thread::sleep(LOOK_INTERVAL);
    }
}
