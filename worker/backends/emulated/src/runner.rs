//! The backend itself: what it offers, and its tasks, which wait and write bytes that say what they are.

use std::time::Duration;

use async_trait::async_trait;
use prover_backend::protocol::{
    BackendDescription, DeviceClass, Lane, ProofOffer, ProofReport, Resources, TaskType, WithheldProof,
};
use prover_backend::{Attempt, Backend, Completed, TaskError, Verified, VerifyFailure, VerifyRequest};

use crate::model::{Failure, LEAF_MEMORY_BYTES, TASKS, TaskParameters};

/// Environment variable: how many attempts one process takes at once. 1 where it is not set.
const ATTEMPTS_VARIABLE: &str = "PROVER_EMULATED_ATTEMPTS_AT_ONCE";
/// Environment variable: milliseconds of silence after which the agent takes the process for hung.
const HANG_AFTER_VARIABLE: &str = "PROVER_EMULATED_HANG_AFTER_MS";
/// Environment variable: `<reason>: <message>` why this process does not offer its kind of proof.
const WITHHELD_VARIABLE: &str = "PROVER_EMULATED_WITHHELD";
/// Host memory that a planner asks for.
const PLANNER_MEMORY_BYTES: u64 = 32 * 1024 * 1024;
/// What the concluding task names as its verifier.
const VERIFIER: &str = "emulated (no proof)";
/// How every artifact of this backend begins.
const MARK: &str = "EMULATED, NOT A PROOF";

/// The emulated proof system.
pub(crate) struct Emulated;

fn from_environment<T: std::str::FromStr>(variable: &str) -> Option<T> {
    std::env::var(variable).ok().and_then(|value| value.parse().ok())
}

/// What the backend says of itself.
pub(crate) fn description() -> BackendDescription {
    let stage = |name: &str| name[..1].to_uppercase() + &name[1..];
    let task_types = (0..).zip(TASKS).map(|(stage_order, name)| TaskType {
        name: name.to_owned(),
        stage: if name == "plan" {
            "Execute".to_owned()
        } else {
            stage(name)
        },
        stage_order,
        cacheable: false,
        verifies: name == "verify",
        lane: if name == "plan" {
            Lane::Control.into()
        } else {
            Lane::Device.into()
        },
    });
    let resources = |device_class: DeviceClass, host_memory_bytes| Resources {
        device_class: device_class.into(),
        host_memory_bytes,
        vram_bytes: 0,
    };
    let offer = ProofOffer {
        system: "emulated".to_owned(),
        kind: "Emulated".to_owned(),
        root_task_type: "plan".to_owned(),
        parent_chain: vec![resources(DeviceClass::Cpu, PLANNER_MEMORY_BYTES)],
        largest_leaf: Some(resources(prover_backend::device_class(), LEAF_MEMORY_BYTES)),
    };
    let withheld = withheld(std::env::var(WITHHELD_VARIABLE).ok().as_deref());
    BackendDescription {
        name: "emulated".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        attempts_at_once: from_environment(ATTEMPTS_VARIABLE).unwrap_or(1),
        proofs: withheld.is_none().then_some(offer).into_iter().collect(),
        task_types: task_types.collect(),
        hang_after_ms: from_environment(HANG_AFTER_VARIABLE).unwrap_or(0),
        emulated: true,
        withheld: withheld.into_iter().collect(),
    }
}

/// The backend plays one that misses something: `<reason>: <message>`.
fn withheld(words: Option<&str>) -> Option<WithheldProof> {
    let (reason, message) = words?.split_once(": ")?;
    Some(WithheldProof {
        system: "emulated".to_owned(),
        kind: "Emulated".to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
    })
}

#[async_trait]
impl Backend for Emulated {
    fn describe(&self) -> BackendDescription {
        description()
    }

    async fn run(&self, attempt: Attempt) -> Result<Completed, TaskError> {
        if attempt.task_type() == "plan" {
            crate::plan::run(&attempt).await
        } else {
            run_task(&attempt).await
        }
    }

    fn verify_file(&self, _request: &VerifyRequest) -> Result<Verified, VerifyFailure> {
        Err(VerifyFailure::refused(
            "results of the emulated backend are no proofs: they prove nothing, whatever the file says",
        ))
    }
}

/// The failure of a model that strikes this attempt, if one does.
pub(crate) fn striking<'a>(
    failures: &'a [Failure],
    attempt: &Attempt,
    index: u64,
    reduction: u32,
) -> Option<&'a Failure> {
    failures
        .iter()
        .find(|failure| failure.strikes(attempt.task_type(), index, attempt.number(), reduction))
}

async fn run_task(attempt: &Attempt) -> Result<Completed, TaskError> {
    let parameters: TaskParameters = serde_json::from_slice(attempt.parameters()).map_err(|error| {
        TaskError::fatal(
            "InvalidParameters",
            format!("parameters of a {} task: {error}", attempt.task_type()),
        )
    })?;
    let duration = Duration::from_millis(parameters.milliseconds);
    if let Some(failure) = striking(
        &parameters.failures,
        attempt,
        parameters.index,
        parameters.reduction,
    ) {
        tokio::time::sleep(Duration::from_millis(failure.after_milliseconds)).await;
        let what = format!("{} of segment {}", attempt.task_type(), parameters.index);
        return Err(crate::failures::strike(failure, &what, duration).await);
    }
    // Inputs are looked at, so that a test with a damaged store fails here as with a real prover.
    for input in attempt.inputs() {
        let bytes = attempt.read_input(&input.name).await?;
        if !bytes.starts_with(MARK.as_bytes()) {
            let message = format!(
                "input {} does not begin as artifacts of the emulated backend do",
                input.name
            );
            return Err(TaskError::artifact("ArtifactDamaged", message));
        }
    }
    tokio::time::sleep(duration).await;
    for (name, size) in attempt.outputs().iter().zip(&parameters.output_bytes) {
        attempt.write_output(name, &emulated_bytes(name, *size)).await?;
    }
    let proof = match attempt.task_type() {
        "verify" => Some(conclusion(attempt, parameters.program_id)?),
        _ => None,
    };
    Ok(Completed {
        proof,
        device_time: duration,
        ..Completed::default()
    })
}

// A job ends with a report of its concluding task. This one says in its verifier that nothing was proved, and the
// backend's description says `emulated`.
fn conclusion(attempt: &Attempt, program_id: String) -> Result<ProofReport, TaskError> {
    let [proof, public_values] = attempt.inputs() else {
        let message = format!("a verify task has {} inputs instead of 2", attempt.inputs().len());
        return Err(TaskError::fatal("InvalidParameters", message));
    };
    Ok(ProofReport {
        proof: proof.name.clone(),
        public_values: public_values.name.clone(),
        program_id,
        proof_bytes: proof.size_bytes,
        verifier: VERIFIER.to_owned(),
    })
}

/// Bytes of an artifact: what it is, then filling. At least as long as the mark and the name.
pub(crate) fn emulated_bytes(name: &str, size: u64) -> Vec<u8> {
    let mut bytes = format!("{MARK}: {name}\n").into_bytes();
    let size = usize::try_from(size).unwrap_or(usize::MAX).max(bytes.len());
    bytes.resize(size, b'.');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_keeps_the_rules_of_the_protocol() {
        assert_eq!(prover_backend::validate::description(&description()), Ok(()));
        assert!(description().emulated);
    }

    #[test]
    fn artifacts_say_that_they_are_no_proofs_whatever_their_size() {
        for size in [0, 1000] {
            let bytes = emulated_bytes("proof", size);
            assert!(bytes.starts_with(b"EMULATED, NOT A PROOF: proof\n"));
            assert!(bytes.len() >= 29 && bytes.len() as u64 >= size);
        }
    }
}
