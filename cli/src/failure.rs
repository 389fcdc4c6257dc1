//! How a command ends badly: what the user reads, the reason for scripts, and the exit code.

use std::fmt;

use crate::console;

/// Exit codes, as `--help` documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Proved and verified, accepted, valid.
    Success,
    /// The proof failed or was refused.
    ProofFailed,
    /// Something that the user gave is wrong.
    BadInput,
    /// SIGINT.
    Interrupted,
    /// SIGTERM.
    Terminated,
}

impl Exit {
    /// The number that the process ends with.
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Success => 0,
            Exit::ProofFailed => 1,
            Exit::BadInput => 2,
            Exit::Interrupted => 130,
            Exit::Terminated => 143,
        }
    }
}

/// A command that did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// How the process ends.
    pub(crate) exit: Exit,
    /// Short CamelCase word for scripts.
    pub(crate) reason: String,
    /// What was wrong, where, and what to do.
    pub(crate) message: String,
    /// Ends of logs, for people who look into it; empty where nothing was logged.
    pub(crate) logs: String,
}

impl Failure {
    /// Something that the user gave is wrong.
    pub(crate) fn bad_input(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Failure {
            exit: Exit::BadInput,
            reason: reason.into(),
            message: message.into(),
            logs: String::new(),
        }
    }

    /// Adds the ends of logs.
    pub(crate) fn with_logs(mut self, logs: String) -> Self {
        self.logs = logs;
        self
    }

    /// Says it on standard error.
    pub(crate) fn tell(&self) {
        console::say(&format!("error: {}", self.message));
        if !self.logs.is_empty() {
            console::say(&self.logs);
        }
    }

    /// The proof could not be made.
    pub(crate) fn proof_failed(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Failure {
            exit: Exit::ProofFailed,
            reason: reason.into(),
            message: message.into(),
            logs: String::new(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.message)
    }
}

impl std::error::Error for Failure {}
