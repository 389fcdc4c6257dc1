//! The tasks that run commands, and what is said of how these ended.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prover_backend::protocol::ProofReport;
use prover_backend::{Attempt, Completed, TaskError};
use rustix::fs::{Mode, OFlags};

use crate::config::{CommandLine, Config, Place};
use crate::plan::Parameters;
use crate::run::{Ending, Outcome, RunError, run};

/// Largest proof.
const PROOF_BYTES: u64 = 1 << 30;
/// Largest public values.
const PUBLIC_VALUES_BYTES: u64 = 64 << 20;
/// Exit code of a command for which the program or the input is at fault: EX_DATAERR of sysexits.h.
const DATA_ERROR: i32 = 65;
/// Folder in which a command runs, below the attempt's.
const RUN_FOLDER: &str = "run";

/// Which of the two commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Prove,
    Verify,
}

impl Step {
    /// As the ProverCluster names it.
    fn field(self) -> &'static str {
        match self {
            Step::Prove => "command.prove",
            Step::Verify => "command.verify",
        }
    }

    fn timeout_field(self) -> &'static str {
        match self {
            Step::Prove => "command.timeoutSeconds",
            Step::Verify => "command.verifyTimeoutSeconds",
        }
    }
}

/// Runs the task `prove`: the user's command, which leaves a proof and perhaps public values.
pub(crate) async fn prove(config: &Config, attempt: &Attempt) -> Result<Completed, TaskError> {
    let parameters = parameters(attempt)?;
    let paths = Paths {
        program: attempt.input_path(&parameters.program)?.to_owned(),
        input: attempt.input_path(&parameters.input)?.to_owned(),
        proof: attempt.output_path(&parameters.proof),
        public_values: attempt.output_path(&parameters.public_values),
    };
    let outcome = execute(
        config,
        &config.prove,
        Step::Prove,
        config.timeout(),
        &paths,
        attempt,
    )
    .await?;
    conclude(&outcome, config, Step::Prove, config.timeout())?;
    let words = &outcome.last_words;
    let size = written_size(&paths.proof)
        .ok_or_else(|| not_written(config, Place::Proof, words))?
        .map_err(|problem| bad_output(config, Place::Proof, &problem, words))?;
    within(config, Place::Proof, size, PROOF_BYTES)?;
    if config.prove.names(Place::PublicValues) {
        let size = written_size(&paths.public_values)
            .ok_or_else(|| not_written(config, Place::PublicValues, words))?
            .map_err(|problem| bad_output(config, Place::PublicValues, &problem, words))?;
        within(config, Place::PublicValues, size, PUBLIC_VALUES_BYTES)?;
    } else {
        attempt.write_output(&parameters.public_values, b"").await?;
    }
    Ok(Completed {
        device_time: outcome.took,
        ..Completed::default()
    })
}

/// Runs the task `verify`: the user's command over the bytes in the store. Only exit code 0 accepts.
pub(crate) async fn verify(config: &Config, attempt: &Attempt) -> Result<Completed, TaskError> {
    let parameters = parameters(attempt)?;
    let paths = Paths {
        program: attempt.input_path(&parameters.program)?.to_owned(),
        input: attempt
            .input_path(&parameters.input)
            .map_or_else(|_| PathBuf::from("/dev/null"), Path::to_owned),
        proof: attempt.input_path(&parameters.proof)?.to_owned(),
        public_values: attempt.input_path(&parameters.public_values)?.to_owned(),
    };
    let limit = config.verify_timeout();
    let outcome = execute(config, &config.verify, Step::Verify, limit, &paths, attempt).await?;
    conclude(&outcome, config, Step::Verify, limit)?;
    let proof_bytes = attempt
        .inputs()
        .iter()
        .find(|input| input.name == parameters.proof)
        .map_or(0, |input| input.size_bytes);
    Ok(Completed {
        proof: Some(ProofReport {
            proof: parameters.proof,
            public_values: parameters.public_values,
            program_id: parameters.program_id,
            proof_bytes,
            verifier: format!("{} {}", config.backend, config.version()),
        }),
        device_time: outcome.took,
        ..Completed::default()
    })
}

fn parameters(attempt: &Attempt) -> Result<Parameters, TaskError> {
    serde_json::from_slice(attempt.parameters()).map_err(|error| {
        TaskError::fatal(
            "InvalidParameters",
            format!("parameters of a {} task: {error}", attempt.task_type()),
        )
    })
}

struct Paths {
    program: PathBuf,
    input: PathBuf,
    proof: PathBuf,
    public_values: PathBuf,
}

impl Paths {
    fn of(&self, place: Place) -> String {
        let path = match place {
            Place::Program => &self.program,
            Place::Input => &self.input,
            Place::Proof => &self.proof,
            Place::PublicValues => &self.public_values,
        };
        path.to_string_lossy().into_owned()
    }
}

async fn execute(
    config: &Config,
    command: &CommandLine,
    step: Step,
    limit: Duration,
    paths: &Paths,
    attempt: &Attempt,
) -> Result<Outcome, TaskError> {
    let words = command.fill(|place| paths.of(place));
    let folder = attempt.directory().join(RUN_FOLDER);
    std::fs::create_dir_all(&folder).map_err(|error| TaskError::file("make a folder", &folder, &error))?;
    let stopped = attempt.cancellation().clone();
    // On a thread of its own: a stopped attempt waits until the command is gone from the device.
    let outcome = attempt
        .blocking(move || run(&words, &folder, limit, &stopped))
        .await;
    attempt.check_stopped()?;
    outcome.map_err(|error| match error {
        RunError::Empty | RunError::Start { .. } => TaskError::fatal(
            "CommandNotRunnable",
            format!(
                "backend {}: {error}. Correct {} or the image of the backend",
                config.backend,
                step.field()
            ),
        ),
        RunError::Watch { .. } => TaskError::retryable("CommandNotWatched", error.to_string()),
    })
}

/// Nothing, if the command did what it was to do.
fn conclude(outcome: &Outcome, config: &Config, step: Step, limit: Duration) -> Result<(), TaskError> {
    let field = step.field();
    let backend = &config.backend;
    let told = |what: String| {
        let words = &outcome.last_words;
        if words.is_empty() {
            format!("{field} of backend {backend} {what}. It printed nothing")
        } else {
            format!("{field} of backend {backend} {what}. Its last words:\n{words}")
        }
    };
    let seconds = outcome.took.as_secs_f64();
    match (&outcome.ending, step) {
        (Ending::Exited(0), _) => Ok(()),
        (Ending::Exited(DATA_ERROR), Step::Prove) => Err(TaskError::invalid_input(
            "CommandRefusedInput",
            told(format!(
                "ended with exit code {DATA_ERROR}, by which it says that the program or the input is at fault"
            )),
        )),
        (Ending::Exited(code), Step::Prove) => Err(TaskError::retryable(
            "CommandFailed",
            told(format!("ended with exit code {code} after {seconds:.1} s")),
        )),
        (Ending::Exited(code), Step::Verify) => Err(TaskError::fatal(
            "ProofRefused",
            told(format!("refused the proof with exit code {code}")),
        )),
        (
            Ending::Signalled {
                out_of_memory: true, ..
            },
            _,
        ) => Err(TaskError::out_of_memory(
            "CommandOutOfMemory",
            told(format!(
                "was killed after {seconds:.1} s, since its container's memory did not suffice"
            )),
        )),
        (Ending::Signalled { signal, .. }, _) => Err(TaskError::retryable(
            "CommandCrashed",
            told(format!("was ended by signal {signal} after {seconds:.1} s")),
        )),
        (Ending::TimedOut, _) => Err(TaskError::fatal(
            "CommandTimedOut",
            told(format!(
                "was stopped, since it took longer than the {} s of {}",
                limit.as_secs(),
                step.timeout_field()
            )),
        )),
        // `check_stopped` has told it already.
        (Ending::Stopped, _) => Err(TaskError::retryable("Stopped", "the attempt was stopped")),
    }
}

/// Size of a plain file; nothing where there is none.
fn written_size(path: &Path) -> Option<Result<u64, String>> {
    // Opened as it is: a link could lead to files that are not the command's.
    let opened = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let file = match opened {
        Ok(descriptor) => File::from(descriptor),
        Err(rustix::io::Errno::LOOP) => return Some(Err("it is a symbolic link".to_owned())),
        Err(error) => {
            let error = std::io::Error::from(error);
            let missing = error.kind() == ErrorKind::NotFound;
            return (!missing).then(|| Err(error.to_string()));
        }
    };
    Some(match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(metadata.len()),
        Ok(_) => Err("it is no plain file".to_owned()),
        Err(error) => Err(error.to_string()),
    })
}

fn place_name(place: Place) -> &'static str {
    match place {
        Place::PublicValues => "public values",
        _ => "proof",
    }
}

fn not_written(config: &Config, place: Place, last_words: &str) -> TaskError {
    let (reason, field) = match place {
        Place::PublicValues => ("PublicValuesNotWritten", "{publicValues}"),
        _ => ("ProofNotWritten", "{proof}"),
    };
    TaskError::fatal(
        reason,
        format!(
            "command.prove of backend {} ended with exit code 0 but wrote no file at {field}: it must write the {} there{}",
            config.backend,
            place_name(place),
            words(last_words)
        ),
    )
}

fn bad_output(config: &Config, place: Place, problem: &str, last_words: &str) -> TaskError {
    TaskError::fatal(
        "OutputUnreadable",
        format!(
            "command.prove of backend {}: the file of the {} can't be used: {problem}{}",
            config.backend,
            place_name(place),
            words(last_words)
        ),
    )
}

fn words(last_words: &str) -> String {
    if last_words.is_empty() {
        String::new()
    } else {
        format!(". Its last words:\n{last_words}")
    }
}

fn within(config: &Config, place: Place, size: u64, limit: u64) -> Result<(), TaskError> {
    if size == 0 && place == Place::Proof {
        return Err(bad_output(config, place, "it is empty", ""));
    }
    if size > limit {
        let problem = format!("it has {size} bytes, at most {limit} are allowed");
        return Err(bad_output(config, place, &problem, ""));
    }
    Ok(())
}
