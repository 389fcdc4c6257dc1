//! What the subcommands that serve have in common: their logs, their runtime, and the words with which they end.

use std::fmt::Display;
use std::process::ExitCode;

use prover_runtime::{LoggingArguments, LoggingError};

/// Serves until it ends, and says why where that is an error. Whatever still runs then ends with the process.
pub(crate) fn run<Error, Serving>(name: &str, logging: &LoggingArguments, serving: Serving) -> ExitCode
where
    Error: Display + From<LoggingError> + From<std::io::Error>,
    Serving: Future<Output = Result<(), Error>>,
{
    match serve(logging, serving) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("prover-operator {name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve<Error, Serving>(logging: &LoggingArguments, serving: Serving) -> Result<(), Error>
where
    Error: From<LoggingError> + From<std::io::Error>,
    Serving: Future<Output = Result<(), Error>>,
{
    logging.install()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(serving);
    runtime.shutdown_background();
    ended
}
