//! What the backend offers.

use async_trait::async_trait;
use prover_backend::protocol::{BackendDescription, DeviceClass, Lane, ProofOffer, Resources, TaskType};
use prover_backend::{Attempt, Backend, Completed, TaskError, Verified, VerifyFailure, VerifyRequest};
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::{plan, tasks};

/// The kind of proof, as in `ProofJob.spec.proof.kind`.
const KIND: &str = "Proof";
/// Host memory that a planner asks for: it reads nothing but the program's hash.
const PLANNER_MEMORY_BYTES: u64 = 32 * 1024 * 1024;
/// Least memory of a worker that is offered such jobs, where the configuration does not say what a proof takes.
const LEAST_MEMORY_BYTES: u64 = 64 * 1024 * 1024;

/// Names of task types.
pub(crate) mod task_type {
    pub(crate) const PLAN: &str = "plan";
    pub(crate) const PROVE: &str = "prove";
    pub(crate) const VERIFY: &str = "verify";
}

/// A prover that is a program.
pub(crate) struct Command {
    config: Config,
}

impl Command {
    pub(crate) fn new(config: Config) -> Self {
        Self { config }
    }
}

/// The identity of a program: the hash of its bytes, since nothing else is known of it.
pub(crate) fn program_id(program: &[u8]) -> String {
    hex::encode(Sha256::digest(program))
}

#[async_trait]
impl Backend for Command {
    fn describe(&self) -> BackendDescription {
        let resources = |device_class: DeviceClass, host_memory_bytes| Resources {
            device_class: device_class.into(),
            host_memory_bytes,
            vram_bytes: 0,
        };
        let task_types = [
            (task_type::PLAN, "Plan", Lane::Control),
            (task_type::PROVE, "Prove", Lane::Device),
            (task_type::VERIFY, "Verify", Lane::Device),
        ];
        let largest_leaf = self.config.host_memory_bytes.unwrap_or(LEAST_MEMORY_BYTES);
        BackendDescription {
            name: self.config.backend.clone(),
            version: self.config.version(),
            attempts_at_once: self.config.attempts_at_once(),
            proofs: vec![ProofOffer {
                system: self.config.offered_as(),
                kind: KIND.to_owned(),
                root_task_type: task_type::PLAN.to_owned(),
                parent_chain: vec![resources(DeviceClass::Cpu, PLANNER_MEMORY_BYTES)],
                largest_leaf: Some(resources(
                    prover_backend::device_class(),
                    largest_leaf.max(self.config.verify_host_memory_bytes()),
                )),
            }],
            task_types: (0..)
                .zip(task_types)
                .map(|(stage_order, (name, stage, lane))| TaskType {
                    name: name.to_owned(),
                    stage: stage.to_owned(),
                    stage_order,
                    cacheable: false,
                    verifies: name == task_type::VERIFY,
                    lane: lane.into(),
                })
                .collect(),
            hang_after_ms: 0,
            emulated: false,
            withheld: Vec::new(),
        }
    }

    async fn run(&self, attempt: Attempt) -> Result<Completed, TaskError> {
        match attempt.task_type() {
            task_type::PLAN => plan::run(&self.config, &attempt).await,
            task_type::PROVE => tasks::prove(&self.config, &attempt).await,
            task_type::VERIFY => tasks::verify(&self.config, &attempt).await,
            other => Err(TaskError::fatal(
                "TaskTypeUnknown",
                format!("the command backend has no task type {other:?}"),
            )),
        }
    }

    fn verify_file(&self, _request: &VerifyRequest) -> Result<Verified, VerifyFailure> {
        Err(VerifyFailure::bad_input(
            "a proof of a command is judged by the prover's own verify command with the program at hand: run that",
        ))
    }

    fn program_id(&self, program: &[u8]) -> Result<String, VerifyFailure> {
        Ok(program_id(program))
    }
}
