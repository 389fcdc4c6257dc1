//! The format in which the log keeps the facts of the scheduling core: protobuf, one record per fact.
//!
//! Owns the translation between [`prover_core::Fact`] and bytes. What a fact means is the core's; where records are
//! kept, and in which order, is the log's.
//!
//! Sizes, measured with `cargo test -p prover-facts sizes -- --nocapture` (a task with one input, one output, names as
//! RISC Zero's planner makes them, a result of 200 bytes): see `docs/architecture.md`.
#![forbid(unsafe_code)]

mod decode;
mod encode;

use prost::Message;
use prover_core::Fact;

#[allow(missing_docs, unreachable_pub, clippy::all)]
pub(crate) mod protocol {
    include!(concat!(env!("OUT_DIR"), "/proving.facts.v1.rs"));
}

/// Why bytes are no fact. Never worth a retry: the same bytes fail again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FactError {
    /// A kind of fact or a field is not known here.
    #[error("the fact was written by a newer version: start one that is at least as new")]
    WrittenByNewerVersion,
    /// It is no message of this format.
    #[error("the fact is damaged")]
    DecodeFact {
        /// What is wrong with the bytes.
        #[source]
        source: prost::DecodeError,
    },
    /// A part that every fact of its kind has is missing or has no meaning.
    #[error("the fact has no valid {field}")]
    MissingField {
        /// Which part.
        field: &'static str,
    },
}

impl FactError {
    /// Short name for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            FactError::WrittenByNewerVersion => "newer_version",
            FactError::DecodeFact { .. } => "damaged",
            FactError::MissingField { .. } => "missing_field",
        }
    }

    /// Whether the same bytes may be a fact later: never.
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// A fact as one record of the log.
pub fn encode(fact: &Fact) -> Vec<u8> {
    encode::fact(fact).encode_to_vec()
}

/// A record of the log as the fact that it states.
pub fn decode(record: &[u8]) -> Result<Fact, FactError> {
    let message = protocol::Fact::decode(record).map_err(|source| FactError::DecodeFact { source })?;
    // What is known fills the whole record: the rest is of a newer version. Records are written in one way only.
    if message.kind.is_none() || message.encoded_len() != record.len() {
        return Err(FactError::WrittenByNewerVersion);
    }
    decode::fact(message)
}
