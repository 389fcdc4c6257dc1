//! Proving with RISC Zero: each step from bytes to bytes, and the verifier.
//!
//! Owns: what each task computes, in RISC Zero's encodings. Does not own: which tasks a job has (the planner), nor
//! files and names.

use std::rc::Rc;

use bincode::Options as _;
use risc0_zkvm::sha::Digestible as _;
use risc0_zkvm::{
    CompositeReceipt, CompositeReceiptVerifierParameters, Digest, InnerAssumptionReceipt, InnerReceipt,
    ProverOpts, ProverServer, Receipt, ReceiptClaim, Segment, SegmentReceipt, SuccinctReceipt, Unknown,
    VerifierContext, get_prover_server,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The receipt of a task above the segments.
pub type Succinct = SuccinctReceipt<ReceiptClaim>;

/// Name of the verifier in reports.
#[must_use]
pub fn verifier_name() -> String {
    format!("risc0-zkvm {}", risc0_zkvm::VERSION)
}

/// A step that did not work out.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// Bytes that should be a value of RISC Zero's and are not.
    #[error("{what} can't be decoded: {detail}")]
    Decode {
        /// What they should be.
        what: &'static str,
        /// In the decoder's words.
        detail: String,
    },
    /// RISC Zero's prover failed.
    #[error("RISC Zero's prover failed to {action}: {detail}")]
    Prove {
        /// Such as `prove a segment`.
        action: &'static str,
        /// In the prover's words.
        detail: String,
    },
    /// A receipt that does not verify.
    #[error("the receipt is refused: {detail}")]
    Refused {
        /// In the verifier's words.
        detail: String,
    },
}

impl ProveError {
    /// Label for metrics, and the reason that users see.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::Decode { .. } => "ArtifactDamaged",
            Self::Prove { .. } => "ProverFailed",
            Self::Refused { .. } => "ReceiptRefused",
        }
    }

    /// A prover may fail for reasons of its machine; bytes stay what they are.
    #[must_use]
    pub fn retry(&self) -> bool {
        matches!(self, Self::Prove { .. })
    }
}

/// Reads a value of RISC Zero's.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, ProveError> {
    bincode::deserialize(bytes).map_err(|error| ProveError::Decode {
        what,
        detail: error.to_string(),
    })
}

/// Writes a value of RISC Zero's.
pub fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, ProveError> {
    bincode::serialize(value).map_err(|error| ProveError::Decode {
        what,
        detail: error.to_string(),
    })
}

thread_local! {
    // RISC Zero's prover can't be shared between threads, and is too cheap to make for that to matter.
    static SERVER: Rc<dyn ProverServer> = make_server();
}

fn make_server() -> Rc<dyn ProverServer> {
    // Explicit, so that no environment variable decides whether proofs are real; the feature `disable-dev-mode`
    // makes anything else a panic.
    let options = ProverOpts::succinct().with_dev_mode(false);
    get_prover_server(&options)
        .unwrap_or_else(|_| unreachable!("a prover on the CPU needs nothing to be made"))
}

fn with_server<T>(
    action: &'static str,
    run: impl FnOnce(&dyn ProverServer) -> anyhow::Result<T>,
) -> Result<T, ProveError> {
    SERVER
        .with(|server| run(server.as_ref()))
        .map_err(|error| ProveError::Prove {
            action,
            detail: format!("{error:#}"),
        })
}

/// Real proofs only, whatever the environment says.
fn verifier() -> VerifierContext {
    VerifierContext::default().with_dev_mode(false)
}

/// Proves a segment. RISC Zero verifies the receipt before it returns it.
pub fn prove_segment(segment: &[u8]) -> Result<Vec<u8>, ProveError> {
    let segment: Segment = decode("the segment", segment)?;
    let receipt = with_server("prove a segment", |server| {
        server.prove_segment(&verifier(), &segment)
    })?;
    encode("the segment's receipt", &receipt)
}

/// Turns a segment's receipt into one that can be joined. RISC Zero verifies it before it returns it.
pub fn lift(receipt: &[u8]) -> Result<Vec<u8>, ProveError> {
    let receipt: SegmentReceipt = decode("the segment's receipt", receipt)?;
    let lifted = with_server("lift a segment's receipt", |server| server.lift(&receipt))?;
    encode("the lifted receipt", &lifted)
}

/// Joins the receipts of two neighbouring parts of an execution. RISC Zero verifies the result.
pub fn join(left: &[u8], right: &[u8]) -> Result<Vec<u8>, ProveError> {
    let left: Succinct = decode("the left receipt", left)?;
    let right: Succinct = decode("the right receipt", right)?;
    let joined = with_server("join two receipts", |server| server.join(&left, &right))?;
    encode("the joined receipt", &joined)
}

/// Replaces the first assumption of a receipt by its proof. RISC Zero verifies the result.
pub fn resolve(conditional: &[u8], assumption: &InnerAssumptionReceipt) -> Result<Vec<u8>, ProveError> {
    let conditional: Succinct = decode("the conditional receipt", conditional)?;
    let InnerAssumptionReceipt::Succinct(assumption) = assumption else {
        let detail = "only a Succinct receipt can be resolved".to_owned();
        return Err(ProveError::Prove {
            action: "resolve an assumption",
            detail,
        });
    };
    let assumption: &SuccinctReceipt<Unknown> = assumption;
    let resolved = with_server("resolve an assumption", |server| {
        server.resolve(&conditional, assumption)
    })?;
    encode("the resolved receipt", &resolved)
}

/// The finished receipt of a Succinct proof, verified.
pub fn finish_succinct(receipt: &[u8], journal: Vec<u8>, image_id: Digest) -> Result<Vec<u8>, ProveError> {
    let receipt: Succinct = decode("the root receipt", receipt)?;
    finish(InnerReceipt::Succinct(receipt), journal, image_id)
}

/// The fields of [`CompositeReceipt`] in their order: its constructor is private, its encoding is not.
#[derive(Serialize, Deserialize)]
struct CompositeParts {
    segments: Vec<SegmentReceipt>,
    assumption_receipts: Vec<InnerAssumptionReceipt>,
    verifier_parameters: Digest,
}

/// The finished receipt of a Composite proof, verified.
pub fn finish_composite(
    segments: &[Vec<u8>],
    assumption_receipts: Vec<InnerAssumptionReceipt>,
    journal: Vec<u8>,
    image_id: Digest,
) -> Result<Vec<u8>, ProveError> {
    let segments = segments
        .iter()
        .map(|bytes| decode("the segment's receipt", bytes))
        .collect::<Result<Vec<SegmentReceipt>, _>>()?;
    let verifier_parameters = CompositeReceiptVerifierParameters::default().digest();
    let parts = CompositeParts {
        segments,
        assumption_receipts,
        verifier_parameters,
    };
    let receipt: CompositeReceipt =
        decode("the composite receipt", &encode("the composite receipt", &parts)?)?;
    finish(InnerReceipt::Composite(receipt), journal, image_id)
}

fn finish(inner: InnerReceipt, journal: Vec<u8>, image_id: Digest) -> Result<Vec<u8>, ProveError> {
    let receipt = Receipt::new(inner, journal);
    verify_receipt(&receipt, image_id)?;
    encode("the receipt", &receipt)
}

fn verify_receipt(receipt: &Receipt, image_id: Digest) -> Result<(), ProveError> {
    receipt
        .verify_with_context(&verifier(), image_id)
        .map_err(|error| ProveError::Refused {
            detail: error.to_string(),
        })
}

/// A receipt that was accepted.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// Kind of the proof: `Composite`, `Succinct` or `Groth16`.
    pub kind: &'static str,
    /// What the program made public.
    pub journal: Vec<u8>,
}

/// Verifies a receipt from its bytes alone: RISC Zero's verifier, against the image id of the program.
pub fn verify(proof: &[u8], image_id: Digest) -> Result<Accepted, ProveError> {
    let receipt: Receipt = decode_whole("the proof", proof)?;
    let kind = match &receipt.inner {
        InnerReceipt::Composite(_) => "Composite",
        InnerReceipt::Succinct(_) => "Succinct",
        InnerReceipt::Groth16(_) => "Groth16",
        _ => {
            return Err(ProveError::Refused {
                detail: "it is a fake receipt, which proves nothing".to_owned(),
            });
        }
    };
    verify_receipt(&receipt, image_id)?;
    Ok(Accepted {
        kind,
        journal: receipt.journal.bytes,
    })
}

/// As [`decode`], but bytes after the value are refused, so that one proof has one encoding.
fn decode_whole<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, ProveError> {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .deserialize(bytes)
        .map_err(|error| ProveError::Decode {
            what,
            detail: error.to_string(),
        })
}

/// Reads a receipt that a user gave as an assumption, and verifies it.
pub fn read_assumption(bytes: &[u8]) -> Result<InnerAssumptionReceipt, ProveError> {
    let receipt: Receipt = decode_whole("the assumption", bytes)?;
    receipt
        .verify_integrity_with_context(&verifier())
        .map_err(|error| ProveError::Refused {
            detail: error.to_string(),
        })?;
    Ok(receipt.inner.into())
}
