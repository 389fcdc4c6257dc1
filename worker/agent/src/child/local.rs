//! Backend processes that this agent starts itself: local mode.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Child;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::output::LastLines;
use super::runner::{Meter, ProcessEnd, Runner, Started};
use crate::host::Host;
use crate::launch::Starter;
use crate::limits::CLOSE_WITHIN;

/// Environment variables of the agent that its children get, too. All others stay with the agent: among them may
/// be credentials of the store, which are no business of a prover.
const PASSED_ON: &[&str] = &[
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PATH",
    "PROVER_LOG",
    "RAYON_NUM_THREADS",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "TMPDIR",
    "TZ",
];

/// Families of variables that are passed on, by how their names begin.
const PASSED_ON_FAMILIES: &[&str] = &["CUDA_", "NVIDIA_", "PROVER_EMULATED_", "RISC0_", "SP1_"];

/// How a child of the agent is started.
#[derive(Clone, Debug)]
pub(crate) struct LocalSettings {
    pub(crate) program: PathBuf,
    pub(crate) launcher: Vec<OsString>,
    /// Names of further variables of the agent that are passed on.
    pub(crate) passed_on: Vec<String>,
    /// Set for this child.
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) device_id: String,
}

/// Starts and follows processes of this machine.
#[derive(Debug)]
pub(crate) struct LocalRunner {
    settings: LocalSettings,
    starter: Starter,
    host: Host,
    child: Option<Child>,
    process: u32,
    lines: LastLines,
    readers: Vec<JoinHandle<()>>,
}

impl LocalRunner {
    pub(crate) fn new(settings: LocalSettings, starter: Starter, host: Host) -> Self {
        Self {
            settings,
            starter,
            host,
            child: None,
            process: 0,
            lines: LastLines::default(),
            readers: Vec::new(),
        }
    }

    fn command(&self) -> tokio::process::Command {
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
        let own = std::env::vars_os().filter(|(name, _)| is_passed_on(name, &settings.passed_on));
        command
            .env_clear()
            .envs(own)
            .envs(settings.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that what it starts can be killed with it.
            .process_group(0)
            .kill_on_drop(true);
        command
    }
}

/// Whether a variable of the agent is one for its children.
fn is_passed_on(name: &OsStr, more: &[String]) -> bool {
    let Some(name) = name.to_str() else { return false };
    PASSED_ON.contains(&name)
        || PASSED_ON_FAMILIES.iter().any(|family| name.starts_with(family))
        || more.iter().any(|more| more == name)
}

#[async_trait::async_trait]
impl Runner for LocalRunner {
    fn name(&self) -> String {
        self.settings.program.display().to_string()
    }

    async fn available(&mut self) {}

    fn missing(&self) -> String {
        String::new()
    }

    async fn start(&mut self) -> Result<Started, String> {
        let mut child = self
            .starter
            .start(self.command())
            .await
            .map_err(|error| format!("could not start {}: {error}", self.name()))?;
        self.lines = LastLines::default();
        let device = &self.settings.device_id;
        self.readers.clear();
        if let Some(output) = child.stderr.take() {
            let lines = self.lines.clone();
            self.readers
                .push(tokio::spawn(lines.follow(output, device.clone())));
        }
        if let Some(output) = child.stdout.take() {
            let lines = self.lines.clone();
            self.readers
                .push(tokio::spawn(lines.follow(output, device.clone())));
        }
        self.process = child.id().unwrap_or_default();
        self.child = Some(child);
        let (host, process) = (self.host.clone(), self.process);
        Ok(Started {
            process,
            meter: Meter::Process { host, process },
        })
    }

    async fn ended(&mut self) -> ProcessEnd {
        match &mut self.child {
            None => ProcessEnd::Unknown,
            Some(child) => child.wait().await.map_or(ProcessEnd::Unknown, ProcessEnd::Exit),
        }
    }

    fn kill(&mut self) {
        let group = i32::try_from(self.process).ok().and_then(Pid::from_raw);
        if let Some(group) = group {
            // No such group: everything has ended already.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    async fn last_words(&mut self) -> String {
        for mut reader in self.readers.drain(..) {
            // A process that inherited the pipe could keep it open.
            if timeout(CLOSE_WITHIN, &mut reader).await.is_err() {
                reader.abort();
            }
        }
        self.lines.text()
    }

    async fn close(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_prover_needs_is_passed_on_and_credentials_are_not() {
        let more = ["MY_PROVER_THREADS".to_owned()];
        for name in ["PATH", "RISC0_INFO", "CUDA_VISIBLE_DEVICES", "MY_PROVER_THREADS"] {
            assert!(is_passed_on(OsStr::new(name), &more), "{name}");
        }
        for name in [
            "AWS_SECRET_ACCESS_KEY",
            "AWS_ACCESS_KEY_ID",
            "AWS_SESSION_TOKEN",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "PROVER_TOKEN_FILE",
            "PROVER_STORE",
            "KUBERNETES_SERVICE_HOST",
            "PATHOLOGICAL",
        ] {
            assert!(!is_passed_on(OsStr::new(name), &more), "{name}");
        }
    }
}
