//! What an attempt fails with, whatever SP1 makes of it.
//!
//! SP1 knows hardly any errors: what a store or a coordinator answers becomes fatal, an empty set of events, or a panic. So
//! whoever answers SP1 remembers the first thing that went wrong for good, and that decides.

use std::sync::{Mutex, PoisonError};

use prover_backend::{CallError, CancellationToken, TaskError};
use sp1_prover::worker::TaskError as Sp1Error;

/// The first failure of an attempt.
#[derive(Debug, Default)]
pub struct Failure {
    first: Mutex<Option<TaskError>>,
    known: CancellationToken,
}

impl Failure {
    /// Remembers the failure, if it is the first one.
    pub fn set(&self, error: TaskError) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        tracing::warn!(%error, first = first.is_none(), "the attempt fails");
        first.get_or_insert(error);
        drop(first);
        self.known.cancel();
    }

    /// The first failure, if there is one.
    #[must_use]
    pub fn get(&self) -> Option<TaskError> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs SP1's work until it ends or something fails for good; then the work is dropped.
    pub async fn guard<T>(&self, work: impl Future<Output = Result<T, Sp1Error>>) -> Result<T, TaskError> {
        let ended = tokio::select! {
            biased;
            () = self.known.cancelled() => None,
            ended = work => Some(ended),
        };
        // SP1 may have gone on with what it took for an answer.
        match (self.get(), ended) {
            (Some(error), _) => Err(error),
            (None, Some(ended)) => ended.map_err(|error| of_sp1(&error)),
            (None, None) => Err(TaskError::retryable(
                "BackendFault",
                "a failure was told and then lost",
            )),
        }
    }
}

/// How a call that can't be repeated any more fails the attempt.
#[must_use]
pub fn of_call(what: &str, error: CallError) -> TaskError {
    let TaskError {
        class,
        reason,
        message,
        execution,
    } = error.into();
    TaskError {
        class,
        reason,
        message: format!("{what}: {message}"),
        execution,
    }
}

/// What it means that the program ended with this code; `None` where it ended well.
#[must_use]
pub fn of_exit_code(code: u64) -> Option<TaskError> {
    (code != 0).then(|| {
        let message = format!(
            "the program ended with exit code {code}, as it does when it panics: nothing is proved about such a run. \
             With PROVER_LOG=info,sp1_core_executor_runner=debug its own words are in the log of the worker"
        );
        TaskError::invalid_input("ProgramFailed", message)
    })
}

/// What SP1 itself says.
#[must_use]
pub fn of_sp1(error: &Sp1Error) -> TaskError {
    match error {
        Sp1Error::Retryable(error) => {
            let message = format!("{error:#}");
            // The watcher of the executor's child saw its own limit or somebody else's signal.
            if message.contains("killed by memory monitor") {
                return TaskError::fatal(
                    "ExecutorMemoryLimit",
                    format!(
                        "{message}. The program needs more memory than the cluster's limit for executors allows"
                    ),
                );
            }
            if message.contains("killed externally") {
                return TaskError::out_of_memory("ExecutorKilled", message);
            }
            TaskError::retryable("ProverFailed", message)
        }
        // The program or its input is at fault: SP1 says so for what happens while it executes.
        Sp1Error::Execution(error) => TaskError::invalid_input("ProgramFailed", error.to_string()),
        Sp1Error::Fatal(error) => {
            let message = format!("{error:#}");
            if message.contains("failed to execute chunk") || message.contains("cycle limit exceeded") {
                return TaskError::invalid_input("ProgramFailed", message);
            }
            TaskError::fatal("ProverFailed", message)
        }
    }
}

#[cfg(test)]
mod tests {
    use prover_backend::protocol::FailureClass;
    use sp1_core_executor::ExecutionError;

    use super::*;

    #[tokio::test]
    async fn what_failed_first_decides_though_sp1_goes_on() {
        let failure = Failure::default();
        failure.set(TaskError::artifact("NotFound", "the record is gone"));
        failure.set(TaskError::fatal("Later", "a consequence"));
        let ended = failure.guard(async { Ok::<_, Sp1Error>(1) }).await;
        assert_eq!(ended.expect_err("failed").reason, "NotFound");
    }

    #[tokio::test]
    async fn a_failure_ends_work_that_waits_for_ever() {
        let failure = Failure::default();
        let work = std::future::pending::<Result<(), Sp1Error>>();
        let (ended, ()) = tokio::join!(failure.guard(work), async {
            failure.set(TaskError::retryable("StoreAway", "the store is away"));
        });
        assert_eq!(ended.expect_err("failed").reason, "StoreAway");
    }

    #[test]
    fn a_program_that_fails_is_told_as_bad_input_and_a_prover_that_fails_is_not() {
        let program = Sp1Error::Execution(ExecutionError::ExceededCycleLimit(1000));
        assert_eq!(of_sp1(&program).class, FailureClass::InvalidInput);
        let chunk = Sp1Error::Fatal(anyhow::anyhow!(
            "failed to execute chunk: unimplemented syscall 7"
        ));
        assert_eq!(of_sp1(&chunk).class, FailureClass::InvalidInput);
        let own_check = Sp1Error::Retryable(anyhow::anyhow!("shard verification failed: x"));
        assert_eq!(of_sp1(&own_check).class, FailureClass::Retryable);
        let killed = Sp1Error::Retryable(anyhow::anyhow!(
            "failed to execute chunk: {}",
            ExecutionError::ChildKilled()
        ));
        assert_eq!(of_sp1(&killed).class, FailureClass::OutOfMemory);
        let limit = Sp1Error::Retryable(anyhow::anyhow!(
            "failed to execute chunk: {}",
            ExecutionError::KilledByMemoryMonitor(9)
        ));
        assert_eq!(of_sp1(&limit).reason, "ExecutorMemoryLimit");
    }
}
