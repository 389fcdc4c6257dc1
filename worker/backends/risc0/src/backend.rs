//! What the backend says of itself, and which function runs which task.

use prover_backend::protocol::{BackendDescription, DeviceClass, Lane, ProofOffer, Resources, TaskType};
use prover_backend::{
    Attempt, Backend, Completed, TaskError, Verified, VerifyFailure, VerifyRequest, async_trait,
};
use risc0_zkvm::Digest;

use crate::graph::task_type;
use crate::program::Program;
use crate::sizing::{self, MIN_SEGMENT_PO2, ProofKind};
use crate::{plan, prover, tasks};

/// Changes when tasks of one version could not be understood by another.
const TASKS_VERSION: u32 = 1;

/// The backend.
#[derive(Clone, Copy, Debug)]
pub struct Risc0;

#[async_trait]
impl Backend for Risc0 {
    fn describe(&self) -> BackendDescription {
        BackendDescription {
            name: "risc0".to_owned(),
            version: format!("{}-tasks.{TASKS_VERSION}", risc0_zkvm::VERSION),
            attempts_at_once: 1,
            proofs: [ProofKind::Composite, ProofKind::Succinct, ProofKind::ExecuteOnly]
                .map(offer)
                .to_vec(),
            task_types: task_types(),
            hang_after_ms: 0,
            emulated: false,
            withheld: Vec::new(),
        }
    }

    async fn run(&self, attempt: Attempt) -> Result<Completed, TaskError> {
        match attempt.task_type() {
            task_type::PLAN => plan::run(attempt).await,
            task_type::PROVE => tasks::prove(&attempt).await,
            task_type::LIFT => tasks::lift(&attempt).await,
            task_type::JOIN => tasks::join(&attempt).await,
            task_type::RESOLVE => tasks::resolve(&attempt).await,
            task_type::FINALIZE => tasks::finalize(&attempt).await,
            task_type::VERIFY => tasks::verify(&attempt).await,
            other => Err(TaskError::fatal(
                "TaskTypeUnknown",
                format!("the risc0 backend has no task type {other:?}"),
            )),
        }
    }

    fn verify_file(&self, request: &VerifyRequest) -> Result<Verified, VerifyFailure> {
        let image_id = parse_image_id(&request.program_id)
            .map_err(|error| VerifyFailure::bad_input(error.to_string()))?;
        let accepted = prover::verify(&request.proof, image_id)
            .map_err(|error| VerifyFailure::refused(error.to_string()))?;
        Ok(Verified {
            kind: accepted.kind.to_owned(),
            public_values: accepted.journal,
            verifier: prover::verifier_name(),
        })
    }

    fn program_id(&self, program: &[u8]) -> Result<String, VerifyFailure> {
        let program = Program::parse(program).map_err(|error| VerifyFailure::bad_input(error.to_string()))?;
        Ok(hex::encode(program.image_id()))
    }
}

/// An image id that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image id: it has 64 hexadecimal digits")]
pub struct ImageIdError {
    text: String,
}

/// Reads an image id as people write it.
pub fn parse_image_id(text: &str) -> Result<Digest, ImageIdError> {
    let invalid = || ImageIdError {
        text: text.to_owned(),
    };
    let bytes = hex::decode(text.strip_prefix("0x").unwrap_or(text)).map_err(|_| invalid())?;
    Digest::try_from(bytes).map_err(|_| invalid())
}

fn offer(kind: ProofKind) -> ProofOffer {
    let largest_leaf = match kind {
        ProofKind::Composite => sizing::prove_bytes(MIN_SEGMENT_PO2),
        ProofKind::Succinct => sizing::recursion_bytes(),
        ProofKind::ExecuteOnly => sizing::VERIFY_BYTES,
    };
    ProofOffer {
        system: "risc0".to_owned(),
        kind: kind.name().to_owned(),
        root_task_type: task_type::PLAN.to_owned(),
        parent_chain: vec![on_cpu(sizing::PLAN_BYTES)],
        largest_leaf: Some(on_cpu(largest_leaf)),
    }
}

fn on_cpu(host_memory_bytes: u64) -> Resources {
    Resources {
        device_class: DeviceClass::Cpu.into(),
        host_memory_bytes,
        vram_bytes: 0,
    }
}

fn task_types() -> Vec<TaskType> {
    let task = |name: &str, stage: &str, stage_order, cacheable| TaskType {
        name: name.to_owned(),
        stage: stage.to_owned(),
        stage_order,
        cacheable,
        verifies: name == task_type::VERIFY,
        lane: if name == task_type::PLAN {
            Lane::Control
        } else {
            Lane::Device
        }
        .into(),
    };
    vec![
        task(task_type::PLAN, "Execute", 1, false),
        task(task_type::PROVE, "Prove", 2, true),
        task(task_type::LIFT, "Lift", 3, true),
        task(task_type::JOIN, "Join", 4, true),
        task(task_type::RESOLVE, "Resolve", 5, true),
        task(task_type::FINALIZE, "Finalize", 6, false),
        task(task_type::VERIFY, "Verify", 7, false),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_id_may_begin_with_0x() {
        let text = "ab".repeat(32);
        assert_eq!(parse_image_id(&text), parse_image_id(&format!("0x{text}")));
        assert!(parse_image_id(&text).is_ok());
        assert!(
            parse_image_id("ab")
                .expect_err("too short")
                .to_string()
                .contains("64 hexadecimal digits")
        );
        assert!(parse_image_id(&"zz".repeat(32)).is_err());
    }

    #[test]
    fn the_description_keeps_the_rules_of_the_protocol() {
        let description = Risc0.describe();
        prover_backend::validate::description(&description).expect("valid");
        assert!(!description.emulated);
        let verifying: Vec<_> = description
            .task_types
            .iter()
            .filter(|task| task.verifies)
            .collect();
        assert_eq!(verifying.len(), 1);
    }

    #[test]
    fn bytes_that_are_no_receipt_are_refused() {
        let request = VerifyRequest {
            proof: b"not a receipt".to_vec(),
            program_id: "ab".repeat(32),
            program: None,
        };
        assert!(matches!(
            Risc0.verify_file(&request),
            Err(VerifyFailure::Refused(_))
        ));
        let request = VerifyRequest {
            proof: vec![],
            program_id: "12".to_owned(),
            program: None,
        };
        assert!(matches!(
            Risc0.verify_file(&request),
            Err(VerifyFailure::BadInput(_))
        ));
    }
}
