//! What the backend of the tests can be asked to do.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One step of a task.
#[allow(missing_docs)]
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Step {
    /// Makes an empty file.
    Touch(PathBuf),
    /// Waits for a file; ends when the attempt is stopped.
    WaitFor(PathBuf),
    /// Waits for a file on a thread that can't be stopped.
    BlockFor(PathBuf),
    /// Writes an output.
    Write { name: String, text: String },
    /// Writes an output with all inputs, one after the other.
    Join { name: String },
    /// Writes the process id into a file.
    ProcessId(PathBuf),
    /// Writes all environment variables into an output.
    Environment { output: String },
    /// Prints a line on standard error.
    Print(String),
    /// Sends a signal to this process.
    Signal(i32),
    /// Ends this process.
    Exit(i32),
    /// Keeps the processor busy for so many milliseconds.
    Burn(u64),
    /// Fails.
    Fail {
        class: i32,
        reason: String,
        message: String,
    },
    /// Puts an artifact; its file is in the attempt's directory.
    Put { name: String, text: String },
    /// Gets an artifact and writes it into an output.
    Get { name: String, output: String },
    /// Tries to put a file that lies elsewhere, and writes the answer into an output.
    PutForeign { path: PathBuf, output: String },
    /// Submits tasks with these request ids and writes the answer into an output.
    Submit {
        request_ids: Vec<String>,
        output: String,
    },
    /// Follows tasks and writes their results into an output.
    Subscribe {
        request_ids: Vec<String>,
        output: String,
    },
    /// Completes a marker.
    CompleteMarker(String),
    /// Sends a message on the own channel.
    Send(String),
    /// Reads a channel to its end and writes its messages into an output.
    ReadChannel { request_id: String, output: String },
    /// Adds a reference, removes it, and writes the answer into an output.
    Reference { name: String, output: String },
    /// Waits for a permit.
    Permit { name: String, bytes: u64 },
    /// Reports progress.
    Progress(f64),
}
