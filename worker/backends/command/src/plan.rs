//! The planner: one task that proves, one that verifies.

use prover_backend::protocol::{DeviceClass, ExecutionReport, JobPlan, Resources, TaskSubmission};
use prover_backend::{Attempt, Completed, TaskError};
use serde::{Deserialize, Serialize};

use crate::backend::{program_id, task_type};
use crate::config::{Config, Place};

/// What both tasks must know: artifact names and what the proof is checked against.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Parameters {
    pub(crate) program: String,
    pub(crate) input: String,
    pub(crate) proof: String,
    pub(crate) public_values: String,
    pub(crate) program_id: String,
}

pub(crate) async fn run(config: &Config, attempt: &Attempt) -> Result<Completed, TaskError> {
    let plan = attempt.require_plan()?.clone();
    if plan.segment_po2_reduction > 0 {
        return Err(TaskError::fatal(
            "OutOfMemory",
            format!(
                "memory did not suffice, and a proof of backend {} can't be cut into smaller pieces: give its worker \
                 group more resources.memory, or raise command.hostMemory so that fewer proofs share it",
                config.backend
            ),
        ));
    }
    let program = attempt.read_input(&plan.program).await?;
    let program_id = program_id(&program);
    if !plan.expected_program_id.is_empty() && plan.expected_program_id != program_id {
        return Err(TaskError::invalid_input(
            "ProgramIdMismatch",
            format!(
                "spec.program.programId is {}, but the SHA-256 of the program, which is its id for a command, is \
                 {program_id}",
                plan.expected_program_id
            ),
        ));
    }
    let execution = ExecutionReport {
        segments: 1,
        program_id: program_id.clone(),
        ..ExecutionReport::default()
    };
    attempt.submit_tasks(tasks(config, &plan, program_id)).await?;
    Ok(Completed {
        execution: Some(execution),
        ..Completed::default()
    })
}

fn tasks(config: &Config, plan: &JobPlan, program_id: String) -> Vec<TaskSubmission> {
    let parameters = Parameters {
        program: plan.program.clone(),
        input: plan.input.clone(),
        proof: plan.proof_output.clone(),
        public_values: plan.public_values_output.clone(),
        program_id,
    };
    let resources = |host_memory_bytes| Resources {
        device_class: match plan.device_class() {
            DeviceClass::Unspecified => DeviceClass::Cpu.into(),
            class => class.into(),
        },
        host_memory_bytes,
        vram_bytes: 0,
    };
    // A struct of strings always has a JSON form.
    let encoded = serde_json::to_vec(&parameters).unwrap_or_default();
    let prove_memory = config
        .host_memory_bytes
        .unwrap_or(plan.smallest_worker_memory_bytes);
    let verify_memory = match plan.smallest_worker_memory_bytes {
        0 => config.verify_host_memory_bytes(),
        smallest => config.verify_host_memory_bytes().min(smallest),
    };
    let prove = TaskSubmission {
        request_id: task_type::PROVE.to_owned(),
        task_type: task_type::PROVE.to_owned(),
        resources: Some(resources(prove_memory)),
        inputs: vec![plan.program.clone(), plan.input.clone()],
        outputs: vec![plan.proof_output.clone(), plan.public_values_output.clone()],
        parameters: encoded.clone(),
        ..TaskSubmission::default()
    };
    let mut inputs = vec![
        plan.program.clone(),
        plan.proof_output.clone(),
        plan.public_values_output.clone(),
    ];
    if config.verify.names(Place::Input) {
        inputs.push(plan.input.clone());
    }
    let verify = TaskSubmission {
        request_id: task_type::VERIFY.to_owned(),
        task_type: task_type::VERIFY.to_owned(),
        resources: Some(resources(verify_memory)),
        depends_on: vec![prove.request_id.clone()],
        inputs,
        parameters: encoded,
        concludes_job: true,
        ..TaskSubmission::default()
    };
    vec![prove, verify]
}
