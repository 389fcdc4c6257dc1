//! Starting a child so that it can't outlive the agent, without unsafe code.
//!
//! The kernel's signal at the parent's death must be asked for by the child itself, after the fork. So the agent
//! starts its own executable once more as a launcher, which asks for the signal and then becomes the child: the
//! setting survives `execve`. The signal is tied to the *thread* that started the process, so all children are
//! started by one thread that lives as long as the agent.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use tokio::sync::oneshot;

use crate::error::AgentError;

/// Why a launcher could not become the child.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The kernel refused to send a signal at the parent's death.
    #[error("could not ask for a signal at the agent's death: {source}")]
    AskForSignal {
        /// What it said.
        source: std::io::Error,
    },
    /// The agent died before the child was started.
    #[error("the agent {parent} is gone: nothing is started")]
    ParentGone {
        /// Its process id.
        parent: u32,
    },
    /// The program can't be executed.
    #[error("could not start {}: {source}", program.display())]
    Execute {
        /// Which.
        program: std::path::PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

impl LaunchError {
    /// Short name for metrics and logs.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::AskForSignal { .. } => "ask_for_signal",
            Self::ParentGone { .. } => "parent_gone",
            Self::Execute { .. } => "execute",
        }
    }

    /// Whether trying again may help: only where the agent still lives, and that it decides itself.
    #[must_use]
    pub fn retry(&self) -> bool {
        false
    }
}

/// Makes this process die with its parent and then becomes `program`. Returns only when that fails.
#[must_use]
pub fn become_child(parent: u32, program: &OsString, arguments: &[OsString]) -> LaunchError {
    if let Err(source) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return LaunchError::AskForSignal {
            source: source.into(),
        };
    }
    // A parent that died before the call above sends no signal any more.
    let actual = getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
    if actual != parent {
        return LaunchError::ParentGone { parent };
    }
    let source = Command::new(program).args(arguments).exec();
    LaunchError::Execute {
        program: program.into(),
        source,
    }
}

type Started = std::io::Result<tokio::process::Child>;

/// The one thread that starts children.
#[derive(Clone, Debug)]
pub(crate) struct Starter(std::sync::mpsc::Sender<(tokio::process::Command, oneshot::Sender<Started>)>);

impl Starter {
    /// Starts the thread, which ends with the last clone of the starter.
    pub(crate) fn new() -> Result<Self, AgentError> {
        let (sender, receiver) =
            std::sync::mpsc::channel::<(tokio::process::Command, oneshot::Sender<Started>)>();
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new()
            .name("child-starter".to_owned())
            .spawn(move || {
                let _entered = runtime.enter();
                while let Ok((mut command, reply)) = receiver.recv() {
                    // Who asked may have given up: the child is then killed on drop.
                    let _ = reply.send(command.spawn());
                }
            })
            .map_err(|source| AgentError::StartThread {
                what: "the thread that starts children",
                source,
            })?;
        Ok(Self(sender))
    }

    pub(crate) async fn start(&self, command: tokio::process::Command) -> Started {
        let (reply, started) = oneshot::channel();
        let gone = || std::io::Error::other("the thread that starts children has ended");
        self.0.send((command, reply)).map_err(|_| gone())?;
        started.await.map_err(|_| gone())?
    }
}
