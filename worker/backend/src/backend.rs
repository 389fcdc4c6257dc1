//! What an author of a backend implements.

use async_trait::async_trait;

use crate::attempt::{Attempt, Completed};
use crate::error::TaskError;
use crate::protocol::{BackendDescription, Device};

/// A proof system, as one process for one device.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// What the backend is and offers. Must always be the same for one process.
    fn describe(&self) -> BackendDescription;

    /// Loads what all attempts need, such as keys. Called before the first attempt runs, and again before the next
    /// attempt if it failed; attempts that wait for it fail with its error.
    async fn prepare(&self, _device: &Device) -> Result<(), TaskError> {
        Ok(())
    }

    /// Runs one attempt. Work that keeps a core busy belongs into [`Attempt::blocking`]. When the attempt is
    /// stopped, this future is dropped and the SDK waits for its blocking sections. A panic fails the attempt only.
    async fn run(&self, attempt: Attempt) -> Result<Completed, TaskError>;

    /// Verifies a proof from bytes alone, for the `verify` subcommand.
    fn verify_file(&self, request: &VerifyRequest) -> Result<Verified, VerifyFailure>;

    /// The identity that proofs of this program are verified against, in lower-case hexadecimal, for the
    /// `program-id` subcommand.
    fn program_id(&self, _program: &[u8]) -> Result<String, VerifyFailure> {
        Err(VerifyFailure::bad_input(
            "this backend can't compute the identity of a program",
        ))
    }
}

/// A proof to be checked against a program.
#[derive(Clone, Debug)]
pub struct VerifyRequest {
    /// The proof file's bytes.
    pub proof: Vec<u8>,
    /// The program's identity in lower-case hexadecimal, without `0x`.
    pub program_id: String,
    /// The program of that identity, where its user has it. SP1's Core proofs can't be judged without.
    pub program: Option<Vec<u8>>,
}

/// An accepted proof.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Kind of the proof, as in `ProofJob.spec.proof.kind`.
    pub kind: String,
    /// What the program made public: RISC Zero's journal, SP1's public values.
    pub public_values: Vec<u8>,
    /// Which verifier accepted it, with its version.
    pub verifier: String,
}

/// Why a proof was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyFailure {
    /// It is a proof, or looks like one, but does not prove this program. Exit code 1.
    #[error("{0}")]
    Refused(String),
    /// It could not be judged, such as a program id of the wrong length. Exit code 2.
    #[error("{0}")]
    BadInput(String),
}

impl VerifyFailure {
    /// The proof does not hold.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::Refused(message.into())
    }

    /// The proof could not be judged.
    pub fn bad_input(message: impl Into<String>) -> Self {
        Self::BadInput(message.into())
    }

    /// Label for metrics.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::BadInput(_) => "bad_input",
        }
    }

    /// Bytes do not change: never.
    #[must_use]
    pub fn retry(&self) -> bool {
        false
    }
}
