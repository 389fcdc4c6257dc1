//! What an attempt fails with, whatever SP1 makes of it.
//!
//! SP1 knows hardly any errors: what a store or a coordinator answers becomes fatal, an empty set of events, or a panic. So
//! whoever answers SP1 remembers the first thing that went wrong for good, and that decides.

use std::sync::{Mutex, PoisonError};

use prover_backend::{CallError, CancellationToken, TaskError};
use sp1_prover::worker::TaskError as Sp1Error;

/// Reason of a program that ended with an error of its own.
pub const GUEST_PANICKED: &str = "GuestPanicked";

/// Reason of an execution that failed while SP1 told only what followed from it.
pub const CAUSE_UNTOLD: &str = "ExecutionEnded";

/// What the parts of SP1's executor say when another part has failed. Whichever ends first is all that SP1 tells.
const CONSEQUENCES: [&str; 3] = ["final vm state not set", "failed to receive", "failed to send"];

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

/// What it means that the program ended with this code, and with these words if they are known; `None` where it ended well.
#[must_use]
pub fn of_exit_code(code: u64, last_words: &str) -> Option<TaskError> {
    if code == 0 {
        return None;
    }
    let words = match last_words.trim() {
        "" => String::new(),
        words => format!(". Its last words: {words}"),
    };
    let message = format!(
        "the program ended with exit code {code}, as it does when it panics: nothing is proved about such a run{words}"
    );
    Some(TaskError::invalid_input(GUEST_PANICKED, message))
}

/// Whether the executor's process died, other than by being killed.
fn died(said: &str) -> bool {
    said.contains("executor terminated abnormally") || said.contains("executor crashed")
}

/// What SP1 says of an execution that a program or its input made fail, told to whoever submitted them.
#[must_use]
pub fn of_execution(said: &str) -> TaskError {
    if said.contains("cycle limit") {
        let message = format!(
            "the program was stopped: {said}. If it is meant to run that long, raise spec.maxCycles; else look for a loop \
             that does not end"
        );
        return TaskError::invalid_input("CycleLimitExceeded", message);
    }
    if !died(said) {
        return TaskError::invalid_input("ProgramFailed", said);
    }
    // The executor's memory is files in /dev/shm without room set aside: writing to them is a bus error when it is full.
    if said.contains("signal: Some(7)") || said.contains("signal: 7,") {
        return TaskError::retryable(
            "SharedMemoryFull",
            format!("{said}: /dev/shm is full or smaller than an executor needs"),
        );
    }
    let message = format!(
        "the program did what SP1's executor does not survive, such as a jump to where it has no instructions: build it \
         again with `cargo prove build` and the SP1 version of this backend ({said})"
    );
    TaskError::invalid_input("ProgramFailed", message)
}

/// What SP1 itself says.
#[must_use]
pub fn of_sp1(error: &Sp1Error) -> TaskError {
    match error {
        Sp1Error::Retryable(error) => {
            let message = format!("{error:#}");
            if died(&message) {
                return of_execution(&message);
            }
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
        Sp1Error::Execution(error) => of_execution(&error.to_string()),
        Sp1Error::Fatal(error) => {
            let message = format!("{error:#}");
            if message.contains("failed to execute chunk")
                || message.contains("cycle limit exceeded")
                || message.contains("terminated abnormally")
            {
                return of_execution(&message);
            }
            if CONSEQUENCES.iter().any(|said| message.contains(said)) {
                let message = format!("the execution of the program broke off: {message}");
                return TaskError::retryable(CAUSE_UNTOLD, message);
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
    fn a_program_that_panics_is_quoted() {
        assert!(of_exit_code(0, "a warning").is_none());
        let words = "thread '<unnamed>' panicked at src/main.rs:3:5:\nno input\n";
        let error = of_exit_code(1, words).expect("it failed");
        assert_eq!(error.reason, GUEST_PANICKED);
        assert!(error.message.ends_with("src/main.rs:3:5:\nno input"), "{error}");
    }

    #[test]
    fn what_an_executor_does_not_survive_is_the_programs_fault_but_for_full_shared_memory() {
        let died = |signal| {
            let said =
                format!("Child native executor terminated abnormally, code: Some(101), signal: {signal}");
            of_sp1(&Sp1Error::Execution(ExecutionError::Other(said)))
        };
        assert_eq!(died("None").reason, "ProgramFailed");
        assert!(died("Some(11)").message.contains("cargo prove build"));
        assert_eq!(died("Some(7)").reason, "SharedMemoryFull");
        let limit = of_sp1(&Sp1Error::Execution(ExecutionError::ExceededCycleLimit(1000)));
        assert_eq!(limit.reason, "CycleLimitExceeded");
        assert!(limit.message.contains("raise spec.maxCycles"), "{limit}");
        let crashed =
            "Child native executor crashed, details: CrashDetails { signal: 6, addr: 0, operation: 0 }";
        assert!(of_execution(crashed).message.contains("cargo prove build"));
    }

    #[test]
    fn a_consequence_of_an_unknown_failure_is_never_fatal() {
        let consequence = Sp1Error::Fatal(anyhow::anyhow!("final vm state not set"));
        assert_eq!(of_sp1(&consequence).class, FailureClass::Retryable);
        assert_eq!(of_sp1(&consequence).reason, CAUSE_UNTOLD);
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
