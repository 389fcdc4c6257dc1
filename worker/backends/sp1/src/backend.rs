//! What the backend says of itself, and which function runs which task.

use std::sync::Arc;

use prover_backend::protocol::{BackendDescription, Device, DeviceClass, ProofOffer, WithheldProof};
use prover_backend::{
    Attempt, Backend, Completed, TaskError, Verified, VerifyFailure, VerifyRequest, async_trait,
};
use prover_sp1_engine::Checked;

use crate::circuits::{self, Circuit};
use crate::graph::{self, MemoryScale, task_type};
use crate::runtime::Engine;
use crate::{leftovers, plan, settings, tasks};

/// Changes when tasks of one version could not be understood by another.
const TASKS_VERSION: u32 = 2;

/// Name of the child that runs planners and other parents.
pub(crate) const CONTROL_DEVICE: &str = "control";

/// Digits of the hash of a verifying key.
const PROGRAM_ID_DIGITS: usize = 64;

/// Longest message about what is missing: 1 KiB in any language.
const WITHHELD_CHARACTERS: usize = 256;

/// Silence after which this process counts as hung: a prover may hold all cores for seconds.
const HANG_AFTER_MS: u64 = 120_000;

/// Tasks that a prover works on at once. Long stretches of a shard keep one core busy, so that a second one beside it makes use of
/// the others (docs/sp1.md).
const ATTEMPTS_AT_ONCE: u32 = 2;

/// The backend.
pub struct Sp1 {
    engine: Arc<Engine>,
    version: String,
    device_class: DeviceClass,
    wraps: Vec<Circuit>,
    withheld: Vec<WithheldProof>,
}

/// A backend whose circuits are not there does not share jobs with one that has them: a wrap must never come to it.
fn wraps_suffix(wraps: &[Circuit]) -> String {
    wraps
        .iter()
        .map(|circuit| format!(".{}", circuit.name().to_ascii_lowercase()))
        .collect()
}

impl Sp1 {
    /// The backend of this process. What is missing for wraps is told in the log and in the description.
    #[must_use]
    pub fn new(engine: Engine) -> Self {
        let (mut wraps, mut withheld) = (Vec::new(), Vec::new());
        for circuit in Circuit::ALL {
            match circuits::missing(circuit) {
                None => wraps.push(circuit),
                Some(missing) => {
                    tracing::info!(kind = circuit.name(), %missing, "is not offered");
                    withheld.push(WithheldProof {
                        system: "sp1".to_owned(),
                        kind: circuit.name().to_owned(),
                        reason: "CircuitsMissing".to_owned(),
                        // The protocol bounds it, and paths may be long.
                        message: missing.to_string().chars().take(WITHHELD_CHARACTERS).collect(),
                    });
                }
            }
        }
        let version = format!(
            "{}-tasks.{TASKS_VERSION}-{}{}",
            crate::SP1_VERSION,
            settings::version_suffix(&engine.settings()),
            wraps_suffix(&wraps)
        );
        Self {
            engine: Arc::new(engine),
            version,
            device_class: prover_backend::device_class(),
            wraps,
            withheld,
        }
    }

    fn offer(&self, kind: &str) -> ProofOffer {
        let settings = self.engine.settings();
        let of = |name: &str| {
            graph::resources(
                name,
                kind,
                self.device_class,
                settings.executor_memory_bytes,
                MemoryScale::of(settings.element_threshold),
            )
        };
        let (parents, leaf) = match kind {
            "ExecuteOnly" => (vec![of(task_type::EXECUTE)], task_type::VERIFY),
            "Core" => (
                vec![of(task_type::CONTROL), of(task_type::EXECUTE)],
                task_type::SHARD,
            ),
            "Groth16" => (
                vec![of(task_type::CONTROL), of(task_type::EXECUTE)],
                task_type::SHRINK_WRAP,
            ),
            "Plonk" => (
                vec![of(task_type::CONTROL), of(task_type::EXECUTE)],
                task_type::PLONK,
            ),
            _ => (
                vec![of(task_type::CONTROL), of(task_type::EXECUTE)],
                task_type::SHARD,
            ),
        };
        ProofOffer {
            system: "sp1".to_owned(),
            kind: kind.to_owned(),
            root_task_type: task_type::CONTROL.to_owned(),
            parent_chain: parents,
            largest_leaf: Some(of(leaf)),
        }
    }
}

impl Sp1 {
    /// Judges a proof with the verifying key of a program.
    async fn verify_with(&self, program: &[u8], proof: Vec<u8>) -> Result<Checked, VerifyFailure> {
        let broke = |error: TaskError| VerifyFailure::bad_input(error.to_string());
        let key = self.engine.verifying_key(program).await.map_err(broke)?;
        let judged = self.engine.verify(proof, key).await.map_err(broke)?;
        judged.map_err(VerifyFailure::refused)
    }
}

#[async_trait]
impl Backend for Sp1 {
    fn describe(&self) -> BackendDescription {
        let kinds = ["Core", "Compressed", "ExecuteOnly"].into_iter();
        let wraps = self.wraps.iter().map(|circuit| circuit.name());
        BackendDescription {
            name: "sp1".to_owned(),
            version: self.version.clone(),
            attempts_at_once: ATTEMPTS_AT_ONCE,
            proofs: kinds.chain(wraps).map(|kind| self.offer(kind)).collect(),
            task_types: graph::declared(),
            hang_after_ms: HANG_AFTER_MS,
            emulated: false,
            withheld: self.withheld.clone(),
        }
    }

    // The child of the control lane needs no keys, and it is the only one of a pod that executes: the containers of a pod
    // share their memory for that, but don't see each other's processes.
    async fn prepare(&self, device: &Device) -> Result<(), TaskError> {
        if device.id == CONTROL_DEVICE {
            leftovers::remove_abandoned();
        } else {
            self.engine.prover().await?;
        }
        Ok(())
    }

    async fn run(&self, attempt: Attempt) -> Result<Completed, TaskError> {
        match attempt.task_type() {
            task_type::CONTROL => plan::run(&attempt, &self.engine, &self.version).await,
            task_type::EXECUTE => tasks::execute(&attempt, &self.engine, &self.version).await,
            task_type::GAS => tasks::gas(&attempt, &self.engine).await,
            task_type::VERIFY => tasks::verify(&attempt, &self.engine).await,
            other => match graph::device_kind(other) {
                Some(kind) => tasks::on_device(&attempt, &self.engine, kind).await,
                None => Err(TaskError::fatal(
                    "TaskTypeUnknown",
                    format!("the sp1 backend has no task type {other:?}"),
                )),
            },
        }
    }

    // All but Core proofs can be judged by the hash of the program's verifying key.
    fn verify_file(&self, request: &VerifyRequest) -> Result<Verified, VerifyFailure> {
        let id = request.program_id.trim_start_matches("0x").to_ascii_lowercase();
        if id.len() != PROGRAM_ID_DIGITS || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let message = format!("{id:?} is not the hash of a verifying key: it has 64 hexadecimal digits");
            return Err(VerifyFailure::bad_input(message));
        }
        let checked = match &request.program {
            Some(program) => futures::executor::block_on(self.verify_with(program, request.proof.clone()))?,
            None => prover_sp1_engine::verify_by_id(&request.proof, &id)
                .map_err(|error| VerifyFailure::refused(format!("{error:#}")))?,
        };
        Ok(Verified {
            kind: checked.kind.to_owned(),
            public_values: checked.public_values,
            verifier: tasks::verifier_name(),
        })
    }

    fn program_id(&self, program: &[u8]) -> Result<String, VerifyFailure> {
        let key = futures::executor::block_on(self.engine.verifying_key(program))
            .map_err(|error| VerifyFailure::bad_input(error.to_string()))?;
        prover_sp1_engine::program_id(&key).map_err(|error| VerifyFailure::bad_input(format!("{error:#}")))
    }
}
