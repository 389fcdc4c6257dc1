//! The rules that everything crossing the socket must keep. The agent checks what backends say, the SDK checks
//! what agents say and what its own backend is about to say. Pure but for [`output_files`], which looks at files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use prost::Message;

use crate::limits::{
    MAX_ATTEMPTS_AT_ONCE, MAX_CACHE_KEY_BYTES, MAX_DECLARATIONS, MAX_FAILURE_MESSAGE_BYTES, MAX_NAME_BYTES,
    MAX_OPAQUE_BYTES, MAX_REASON_BYTES, MAX_SUBMISSION_BYTES, MAX_TASK_ARTIFACTS, MAX_WITHHELD_MESSAGE_BYTES,
    MIN_HANG_AFTER,
};
use crate::protocol::{
    AttemptCompleted, AttemptFailed, BackendDescription, DeviceClass, FailureClass, Lane, OutputFile,
    PROTOCOL_VERSION, Resources, RunAttempt, SubmitTasksRequest, TaskSubmission, TaskType,
};

/// A message that breaks a rule of the protocol. The sender has a fault: the same message is refused again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValidationError {
    /// The other side speaks another version.
    #[error(
        "the other side speaks version {theirs} of the backend protocol and this one version {ours}: \
         install an agent and a backend of the same release"
    )]
    ProtocolVersion {
        /// Version of the other side.
        theirs: u32,
        /// Version of this side.
        ours: u32,
    },
    /// A name that is empty, too long or has other characters than letters, digits and `. _ : -`.
    #[error(
        "{what} {name:?} is not a name: 1 to {MAX_NAME_BYTES} letters, digits, '.', '_', ':' or '-', \
         the first one a letter or digit"
    )]
    Name {
        /// What should have been a name.
        what: &'static str,
        /// The name, cut to the longest length.
        name: String,
    },
    /// Something that must be there is not.
    #[error("{what} is missing")]
    Missing {
        /// What.
        what: &'static str,
    },
    /// A field has a value that makes no sense.
    #[error("{what} is {value}: {rule}")]
    Value {
        /// Which field.
        what: &'static str,
        /// What it says.
        value: String,
        /// What it should say.
        rule: &'static str,
    },
    /// More bytes than allowed.
    #[error("{what} has {bytes} bytes, and {limit} are allowed")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The named limit.
        limit: usize,
    },
    /// More elements than allowed.
    #[error("there are {count} {what}, and {limit} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// The named limit.
        limit: usize,
    },
    /// The same name twice.
    #[error("{what} {name:?} occurs twice")]
    Repeated {
        /// What.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A name that was not declared.
    #[error("{what} {name:?} was not declared")]
    Undeclared {
        /// What.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A declared output was not written.
    #[error("output {name:?} is missing ({path}): {problem}")]
    OutputMissing {
        /// Name of the output.
        name: String,
        /// Where it should be.
        path: String,
        /// What the file system says.
        problem: String,
    },
    /// An output does not lie in the attempt's directory.
    #[error("output {name:?} lies outside the attempt's directory ({path}): write it into the directory")]
    OutputOutsideDirectory {
        /// Name of the output.
        name: String,
        /// Where it is.
        path: String,
    },
    /// A verifying task ended without a proof report, or another one with it.
    #[error("task type {task_type:?} {problem}")]
    Proof {
        /// Type of the task.
        task_type: String,
        /// What is wrong.
        problem: &'static str,
    },
}

impl ValidationError {
    /// Label for metrics, and CamelCase reason of the failure of an attempt that broke the rule.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::ProtocolVersion { .. } => "ProtocolVersion",
            Self::Name { .. } => "InvalidName",
            Self::Missing { .. } => "FieldMissing",
            Self::Value { .. } => "InvalidValue",
            Self::TooLarge { .. } => "TooLarge",
            Self::TooMany { .. } => "TooMany",
            Self::Repeated { .. } => "Repeated",
            Self::Undeclared { .. } => "Undeclared",
            Self::OutputMissing { .. } => "OutputMissing",
            Self::OutputOutsideDirectory { .. } => "OutputOutsideDirectory",
            Self::Proof { .. } => "InvalidProofReport",
        }
    }

    /// The same message breaks the same rule: never.
    #[must_use]
    pub fn retry(&self) -> bool {
        false
    }
}

/// Both sides must speak the same version.
pub fn protocol_version(theirs: u32) -> Result<(), ValidationError> {
    if theirs == PROTOCOL_VERSION {
        return Ok(());
    }
    Err(ValidationError::ProtocolVersion {
        theirs,
        ours: PROTOCOL_VERSION,
    })
}

/// Names of artifacts, task types, request ids and references. They are safe as file names and in store keys.
pub fn name(what: &'static str, name: &str) -> Result<(), ValidationError> {
    let good = name.len() <= MAX_NAME_BYTES
        && name
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte));
    if good {
        return Ok(());
    }
    Err(ValidationError::Name {
        what,
        name: name.chars().take(MAX_NAME_BYTES).collect(),
    })
}

/// Whether a word is a CamelCase reason.
#[must_use]
pub fn is_reason(word: &str) -> bool {
    word.len() <= MAX_REASON_BYTES
        && word
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_uppercase())
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// An opaque field.
pub fn opaque(what: &'static str, bytes: &[u8]) -> Result<(), ValidationError> {
    at_most(what, bytes.len(), MAX_OPAQUE_BYTES)
}

fn at_most(what: &'static str, bytes: usize, limit: usize) -> Result<(), ValidationError> {
    if bytes <= limit {
        Ok(())
    } else {
        Err(ValidationError::TooLarge { what, bytes, limit })
    }
}

fn count_at_most(what: &'static str, count: usize, limit: usize) -> Result<(), ValidationError> {
    if count <= limit {
        Ok(())
    } else {
        Err(ValidationError::TooMany { what, count, limit })
    }
}

fn unique<'a>(what: &'static str, names: impl IntoIterator<Item = &'a str>) -> Result<(), ValidationError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(ValidationError::Repeated {
                what,
                name: name.to_owned(),
            });
        }
    }
    Ok(())
}

/// What a backend says of itself.
pub fn description(description: &BackendDescription) -> Result<(), ValidationError> {
    name("backend name", &description.name)?;
    if description.version.is_empty() || description.version.len() > MAX_NAME_BYTES {
        return Err(ValidationError::Value {
            what: "backend version",
            value: format!("{:?}", description.version),
            rule: "it must have 1 to 128 bytes",
        });
    }
    if !(1..=MAX_ATTEMPTS_AT_ONCE).contains(&description.attempts_at_once) {
        return Err(ValidationError::Value {
            what: "attempts_at_once",
            value: description.attempts_at_once.to_string(),
            rule: "it must be 1 to 64",
        });
    }
    if description.hang_after() < MIN_HANG_AFTER {
        return Err(ValidationError::Value {
            what: "hang_after_ms",
            value: description.hang_after_ms.to_string(),
            rule: "it must be 0 or at least 500",
        });
    }
    count_at_most("task types", description.task_types.len(), MAX_DECLARATIONS)?;
    count_at_most("proof offers", description.proofs.len(), MAX_DECLARATIONS)?;
    unique(
        "task type",
        description
            .task_types
            .iter()
            .map(|task_type| task_type.name.as_str()),
    )?;
    for task_type in &description.task_types {
        name("task type", &task_type.name)?;
        name("stage", &task_type.stage)?;
        if task_type.lane() == Lane::Unspecified {
            return Err(ValidationError::Missing {
                what: "lane of a task type",
            });
        }
    }
    offers(description)?;
    withheld(description)
}

fn withheld(description: &BackendDescription) -> Result<(), ValidationError> {
    count_at_most(
        "kinds of proof that are not offered",
        description.withheld.len(),
        MAX_DECLARATIONS,
    )?;
    let offered = description
        .proofs
        .iter()
        .map(|offer| format!("{} {}", offer.system, offer.kind));
    let withheld = description
        .withheld
        .iter()
        .map(|proof| format!("{} {}", proof.system, proof.kind));
    let kinds: Vec<String> = offered.chain(withheld).collect();
    unique("kind of proof", kinds.iter().map(String::as_str))?;
    for proof in &description.withheld {
        name("proof system", &proof.system)?;
        name("proof kind", &proof.kind)?;
        if !is_reason(&proof.reason) {
            return Err(ValidationError::Value {
                what: "reason why a proof is not offered",
                value: format!("{:?}", proof.reason),
                rule: "it must be a CamelCase word of at most 64 letters and digits",
            });
        }
        if proof.message.is_empty() {
            return Err(ValidationError::Missing {
                what: "message why a proof is not offered",
            });
        }
        at_most(
            "message why a proof is not offered",
            proof.message.len(),
            MAX_WITHHELD_MESSAGE_BYTES,
        )?;
    }
    Ok(())
}

fn offers(description: &BackendDescription) -> Result<(), ValidationError> {
    let kinds: Vec<String> = description
        .proofs
        .iter()
        .map(|offer| format!("{} {}", offer.system, offer.kind))
        .collect();
    unique("proof offer", kinds.iter().map(String::as_str))?;
    for offer in &description.proofs {
        name("proof system", &offer.system)?;
        name("proof kind", &offer.kind)?;
        let Some(root) = description.task_type(&offer.root_task_type) else {
            return Err(ValidationError::Undeclared {
                what: "root task type",
                name: offer.root_task_type.clone(),
            });
        };
        if root.lane() != Lane::Control {
            return Err(ValidationError::Value {
                what: "lane of a root task type",
                value: root.lane().as_str_name().to_owned(),
                rule: "planners wait for children and must be in LANE_CONTROL",
            });
        }
        if offer.parent_chain.is_empty() {
            return Err(ValidationError::Missing {
                what: "parent_chain of a proof offer",
            });
        }
        count_at_most(
            "resources in a parent chain",
            offer.parent_chain.len(),
            MAX_DECLARATIONS,
        )?;
        let Some(leaf) = &offer.largest_leaf else {
            return Err(ValidationError::Missing {
                what: "largest_leaf of a proof offer",
            });
        };
        offer.parent_chain.iter().chain([leaf]).try_for_each(resources)?;
    }
    Ok(())
}

fn resources(resources: &Resources) -> Result<(), ValidationError> {
    if resources.device_class() == DeviceClass::Unspecified {
        return Err(ValidationError::Missing {
            what: "device_class of resources",
        });
    }
    Ok(())
}

/// An attempt that an agent hands to a backend.
pub fn run_attempt(run: &RunAttempt) -> Result<(), ValidationError> {
    name("task type", &run.task_type)?;
    opaque("parameters", &run.parameters)?;
    if !Path::new(&run.directory).is_absolute() {
        return Err(ValidationError::Value {
            what: "directory of an attempt",
            value: format!("{:?}", run.directory),
            rule: "it must be an absolute path",
        });
    }
    count_at_most("inputs", run.inputs.len(), MAX_TASK_ARTIFACTS)?;
    count_at_most("outputs", run.outputs.len(), MAX_TASK_ARTIFACTS)?;
    count_at_most(
        "dependency results",
        run.dependency_results.len(),
        MAX_TASK_ARTIFACTS,
    )?;
    run.inputs
        .iter()
        .try_for_each(|input| name("input", &input.name))?;
    run.outputs.iter().try_for_each(|output| name("output", output))?;
    unique("input", run.inputs.iter().map(|input| input.name.as_str()))?;
    unique("output", run.outputs.iter().map(String::as_str))?;
    run.dependency_results
        .iter()
        .try_for_each(|result| opaque("dependency result", result))
}

/// Tasks that an attempt submits.
pub fn submit_tasks(
    description: &BackendDescription,
    request: &SubmitTasksRequest,
) -> Result<(), ValidationError> {
    at_most("submission of tasks", request.encoded_len(), MAX_SUBMISSION_BYTES)?;
    unique(
        "request id",
        request.tasks.iter().map(|task| task.request_id.as_str()),
    )?;
    request
        .tasks
        .iter()
        .try_for_each(|task| submission(description, task))
}

/// One task that an attempt submits.
pub fn submission(description: &BackendDescription, task: &TaskSubmission) -> Result<(), ValidationError> {
    name("request id", &task.request_id)?;
    opaque("parameters", &task.parameters)?;
    at_most("cache_key", task.cache_key.len(), MAX_CACHE_KEY_BYTES)?;
    count_at_most(
        "dependencies of a task",
        task.depends_on.len(),
        MAX_TASK_ARTIFACTS,
    )?;
    count_at_most("inputs of a task", task.inputs.len(), MAX_TASK_ARTIFACTS)?;
    count_at_most("outputs of a task", task.outputs.len(), MAX_TASK_ARTIFACTS)?;
    task.depends_on
        .iter()
        .try_for_each(|dependency| name("dependency", dependency))?;
    task.inputs.iter().try_for_each(|input| name("input", input))?;
    task.outputs
        .iter()
        .try_for_each(|output| name("output", output))?;
    unique("input", task.inputs.iter().map(String::as_str))?;
    unique("output", task.outputs.iter().map(String::as_str))?;
    if task.marker {
        return Ok(());
    }
    let Some(task_type) = description.task_type(&task.task_type) else {
        return Err(ValidationError::Undeclared {
            what: "task type",
            name: task.task_type.clone(),
        });
    };
    if task.concludes_job && !task_type.verifies {
        return Err(ValidationError::Proof {
            task_type: task.task_type.clone(),
            problem: "does not verify, so no task of it may conclude a job",
        });
    }
    if !task.cache_key.is_empty() && !task_type.cacheable {
        return Err(ValidationError::Value {
            what: "cache_key",
            value: format!("{:?}", task.cache_key),
            rule: "it must be empty, since the task type is not declared cacheable",
        });
    }
    let Some(needed) = &task.resources else {
        return Err(ValidationError::Missing {
            what: "resources of a task",
        });
    };
    resources(needed)
}

/// What an attempt says at its good end, all but its files: [`output_files`] checks those.
pub fn completed(task_type: &TaskType, completed: &AttemptCompleted) -> Result<(), ValidationError> {
    opaque("result", &completed.result)?;
    match (&completed.proof, task_type.verifies) {
        (Some(_), false) => Err(ValidationError::Proof {
            task_type: task_type.name.clone(),
            problem: "does not verify and still sent a proof report",
        }),
        (Some(proof), true) => {
            name("proof", &proof.proof)?;
            name("public values", &proof.public_values)
        }
        (None, true) => Err(ValidationError::Proof {
            task_type: task_type.name.clone(),
            problem: "verifies and sent no proof report: fail the attempt where the proof is not accepted",
        }),
        (None, false) => Ok(()),
    }
}

/// What an attempt says at its bad end.
pub fn failed(failed: &AttemptFailed) -> Result<(), ValidationError> {
    if failed.class() == FailureClass::Unspecified {
        return Err(ValidationError::Missing {
            what: "class of a failure",
        });
    }
    if !is_reason(&failed.reason) {
        return Err(ValidationError::Value {
            what: "reason of a failure",
            value: format!("{:?}", failed.reason),
            rule: "it must be one CamelCase word of at most 64 bytes",
        });
    }
    at_most(
        "message of a failure",
        failed.message.len(),
        MAX_FAILURE_MESSAGE_BYTES,
    )
}

/// Checks that the outputs are exactly the declared ones, in any order, and that each is a plain file inside the
/// attempt's directory with no link leading out of it. Answers with the real paths in the order of declaration.
pub fn output_files(
    directory: &Path,
    declared: &[String],
    outputs: &[OutputFile],
) -> Result<Vec<(String, PathBuf)>, ValidationError> {
    unique("output", outputs.iter().map(|output| output.name.as_str()))?;
    if let Some(extra) = outputs.iter().find(|output| !declared.contains(&output.name)) {
        return Err(ValidationError::Undeclared {
            what: "output",
            name: extra.name.clone(),
        });
    }
    let mut files = Vec::with_capacity(declared.len());
    for name in declared {
        let Some(output) = outputs.iter().find(|output| output.name == *name) else {
            return Err(ValidationError::OutputMissing {
                name: name.clone(),
                path: directory.display().to_string(),
                problem: "the completion does not list it".to_owned(),
            });
        };
        files.push((
            name.clone(),
            file_inside(directory, name, Path::new(&output.path))?,
        ));
    }
    Ok(files)
}

/// Checks that a path is a plain file inside the attempt's directory, and answers with its real path.
pub fn file_inside(directory: &Path, name: &str, path: &Path) -> Result<PathBuf, ValidationError> {
    let missing = |path: &Path, problem: String| ValidationError::OutputMissing {
        name: name.to_owned(),
        path: path.display().to_string(),
        problem,
    };
    let root = directory
        .canonicalize()
        .map_err(|error| missing(directory, error.to_string()))?;
    let real = path
        .canonicalize()
        .map_err(|error| missing(path, error.to_string()))?;
    if !path.is_absolute() || !real.starts_with(&root) {
        return Err(ValidationError::OutputOutsideDirectory {
            name: name.to_owned(),
            path: path.display().to_string(),
        });
    }
    let metadata = real
        .symlink_metadata()
        .map_err(|error| missing(path, error.to_string()))?;
    if !metadata.is_file() {
        return Err(missing(path, "it is not a plain file".to_owned()));
    }
    Ok(real)
}

#[cfg(test)]
mod tests;
