//! Structured logs on standard error, as text for people or JSON lines for collectors.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One line of text per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

/// The logging arguments of every binary: flatten them into its own.
#[derive(Clone, Debug, clap::Args)]
pub struct LoggingArguments {
    /// What is logged: a level, or levels per module such as `info,prover_coordinator=debug`.
    #[arg(long = "log", env = "PROVER_LOG", default_value = "info", global = true)]
    pub filter: String,
    /// How log lines look.
    #[arg(long, env = "PROVER_LOG_FORMAT", value_enum, default_value_t, global = true)]
    pub log_format: LogFormat,
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is malformed.
    #[error(
        "the log filter {filter:?} is malformed: {source}; write a level such as info, or module=level pairs"
    )]
    MalformedFilter {
        /// As given.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Something else has set up logging in this process.
    #[error("logging is set up already")]
    AlreadySet {
        /// What was found.
        #[from]
        source: TryInitError,
    },
}

impl LoggingError {
    /// Short name for metrics and events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            LoggingError::MalformedFilter { .. } => "malformed_filter",
            LoggingError::AlreadySet { .. } => "already_set",
        }
    }
}

impl LoggingArguments {
    /// Sets up logging for the whole process, on standard error, so that standard output stays for results.
    ///
    /// # Errors
    /// The filter is malformed, or logging is set up already.
    pub fn install(&self) -> Result<(), LoggingError> {
        let filter = parse_filter(&self.filter)?;
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        match self.log_format {
            LogFormat::Text => builder.finish().try_init()?,
            LogFormat::Json => builder.json().finish().try_init()?,
        }
        Ok(())
    }
}

fn parse_filter(filter: &str) -> Result<EnvFilter, LoggingError> {
    EnvFilter::try_new(filter).map_err(|source| LoggingError::MalformedFilter {
        filter: filter.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_filter_is_named_in_the_message() {
        let message = parse_filter("info,prover=loud").unwrap_err().to_string();
        assert!(message.contains("info,prover=loud"), "{message}");
        assert!(message.contains("write a level"), "{message}");
    }

    #[test]
    fn levels_per_module_are_taken() {
        assert!(parse_filter("warn,prover_coordinator=debug").is_ok());
    }
}
