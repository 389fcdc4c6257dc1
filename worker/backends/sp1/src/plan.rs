//! The root of a job: what can be known to be wrong is refused, then SP1's controller runs, then its proof is verified.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use prover_backend::protocol::{DeviceClass, ExecutionReport, JobPlan, TaskSubmission};
use prover_backend::{Attempt, Completed, TaskError};
use prover_sp1_engine::{Client, Settings};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sp1_prover::worker::{ProofId, RawTaskRequest, RequesterId, TaskContext};
use sp1_prover_types::Artifact;

use crate::circuits::{self, Circuit};
use crate::control_host::{BEGUN, ControlHost, JobTraits, PROOF};
use crate::failure::{self, Failure};
use crate::graph::{self, MemoryScale, task_type};
use crate::input::standard_input;
use crate::runtime::Engine;
use crate::store::Store;

/// Request id of the task that concludes the job: one for all plans, since it reads what users get.
const VERIFY: &str = "verify";

/// Request id of the execution that tells the gas.
const GAS: &str = "gas";

/// How often the number of shards is told.
const PROGRESS_PAUSE: Duration = Duration::from_millis(500);

/// SP1's numbers of the kinds of proof.
fn mode(kind: &str) -> Option<i32> {
    use sp1_prover_types::network_base_types::ProofMode;
    let mode = match kind {
        "Core" => ProofMode::Core,
        "Compressed" => ProofMode::Compressed,
        "Plonk" => ProofMode::Plonk,
        "Groth16" => ProofMode::Groth16,
        _ => return None,
    };
    Some(mode as i32)
}

/// Parameters of the task `verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyParameters {
    /// As in `ProofJob.spec.proof.kind`.
    pub kind: String,
}

/// Parameters of the task `gas`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GasParameters {
    /// As the backend protocol numbers it.
    pub input_format: i32,
    /// Cycles beyond which the execution is stopped.
    pub max_cycles: Option<u64>,
}

/// Runs the task `control`.
pub async fn run(attempt: &Attempt, engine: &Engine, version: &str) -> Result<Completed, TaskError> {
    let plan = attempt.require_plan()?.clone();
    let settings = engine.settings();
    let program = attempt.read_input(&plan.program).await?;
    let input = match attempt.inputs().iter().any(|input| input.name == plan.input) {
        true => attempt.read_input(&plan.input).await?,
        false => Vec::new(),
    };
    let stdin = standard_input(plan.input_format(), input)
        .map_err(|error| TaskError::invalid_input(error.category(), error.to_string()))?;
    refuse(&plan)?;
    prover_sp1_engine::check_program(&program).map_err(|error| {
        let message = format!(
            "the program is not what SP1 runs, an ELF file for its RISC-V of 64 bits (riscv64im-succinct-zkvm-elf): \
             {error:#}"
        );
        TaskError::invalid_input("ProgramUnreadable", message)
    })?;
    if plan.execute_only || plan.kind == "ExecuteOnly" {
        let limit = (plan.max_cycles > 0).then_some(plan.max_cycles);
        let executed = engine.execute_only(program, stdin, limit).await?;
        if let Some(error) = failure::of_exit_code(executed.exit_code, &executed.last_words) {
            return Err(error);
        }
        let store = Store::new(attempt.clone());
        let guard = store.over.clone().drop_guard();
        let put = async {
            Ok(store
                .put(&plan.public_values_output, &executed.public_values)
                .await?)
        };
        store.failure.guard(put).await?;
        drop(guard);
        return Ok(Completed {
            execution: Some(ExecutionReport {
                user_cycles: executed.cycles,
                total_cycles: executed.cycles,
                exit_code: executed.exit_code as i64,
                gas: executed.gas,
                public_values_sha256: sha256(&executed.public_values),
                ..ExecutionReport::default()
            }),
            ..Completed::default()
        });
    }
    attempt.send_channel_message(None, BEGUN.to_vec()).await?;

    let store = Store::new(attempt.clone());
    let guard = store.over.clone().drop_guard();
    let job = JobTraits {
        kind: plan.kind.clone(),
        version: version.to_owned(),
        device_class: device_class(&plan),
    };
    let host = ControlHost::new(store.clone(), job, settings);
    let stdin_name = format!("stdin-{}", attempt.id());
    let stdin =
        bincode::serialize(&stdin).map_err(|error| TaskError::retryable("PackFailed", error.to_string()))?;
    let failure = store.failure.clone();
    let work = async {
        host.put_and_keep(&stdin_name, stdin).await?;
        let request = request(&plan, &stdin_name, attempt);
        engine.control(Client::new(host.clone()), request).await
    };
    let watched = watch_job(attempt, &host, &plan, &settings, &failure);
    let output = tokio::select! {
        output = failure.guard(work) => output?,
        never = watched => match never {},
    };
    let mut report = report(&host, output.cycles)?;
    if plan.report_gas {
        let told = async { Ok(gas(attempt, &store, &plan, &settings).await?) };
        report.gas = Some(failure.guard(told).await?);
    }
    let proof = host
        .take_kept(PROOF)
        .ok_or_else(|| TaskError::retryable("ProofMissing", "SP1's controller ended without a proof"))?;
    let (proof, public_values) = prover_sp1_engine::user_proof(&proof)
        .map_err(|error| TaskError::retryable("ProofUnreadable", format!("{error:#}")))?;
    report.public_values_sha256 = sha256(&public_values);
    let conclude = async {
        store.put(&plan.proof_output, &proof).await?;
        store.put(&plan.public_values_output, &public_values).await?;
        let task = verify_task(&plan, &settings)?;
        store
            .insist("could not submit verify", || {
                attempt.submit_tasks(vec![task.clone()])
            })
            .await?;
        Ok(())
    };
    failure.guard(conclude).await?;
    drop(guard);
    Ok(Completed {
        execution: Some(report),
        ..Completed::default()
    })
}

fn device_class(plan: &JobPlan) -> DeviceClass {
    match plan.device_class() {
        DeviceClass::Gpu => DeviceClass::Gpu,
        DeviceClass::Cpu | DeviceClass::Unspecified => DeviceClass::Cpu,
    }
}

fn refuse(plan: &JobPlan) -> Result<(), TaskError> {
    if plan.execute_only || plan.kind == "ExecuteOnly" {
        return Ok(());
    }
    if mode(&plan.kind).is_none() {
        let message = format!(
            "the sp1 backend makes no {} proofs. It makes Core, Compressed, Groth16 and Plonk proofs, and ExecuteOnly",
            plan.kind
        );
        return Err(TaskError::invalid_input("ProofKindNotOffered", message));
    }
    if !plan.assumptions.is_empty() {
        let message = "spec.assumptions is not for sp1: give the proofs that the program verifies in an input of the \
                       format Stdin";
        return Err(TaskError::invalid_input("AssumptionsNotTaken", message));
    }
    if plan.segment_po2_reduction > 0 {
        let message = "proving ran out of memory, and the size of shards is the same for the whole cluster. Give the \
                       workers more memory, or lower the cluster's SP1_BACKEND_ELEMENT_THRESHOLD";
        return Err(TaskError::fatal("OutOfMemory", message));
    }
    if let Some(missing) = Circuit::of_kind(&plan.kind).and_then(circuits::missing) {
        return Err(TaskError::fatal("CircuitsMissing", missing.to_string()));
    }
    Ok(())
}

fn request(plan: &JobPlan, stdin: &str, attempt: &Attempt) -> RawTaskRequest {
    let cycle_limit = match plan.max_cycles {
        0 => String::new(),
        limit => limit.to_string(),
    };
    let mode = mode(&plan.kind).unwrap_or_default().to_string();
    // Program, input, kind of proof, cycle limit, nonce, and what is private: none of it.
    let inputs = [
        plan.program.clone(),
        stdin.to_owned(),
        mode,
        cycle_limit,
        String::new(),
        String::new(),
    ];
    RawTaskRequest {
        inputs: inputs.map(Artifact).to_vec(),
        outputs: vec![Artifact(PROOF.to_owned())],
        context: context(attempt),
    }
}

/// What SP1 is told about who asks.
#[must_use]
pub fn context(attempt: &Attempt) -> TaskContext {
    TaskContext {
        proof_id: ProofId::new(attempt.job_id()),
        parent_id: None,
        parent_context: None,
        requester_id: RequesterId::new("prover-operator"),
    }
}

fn report(host: &ControlHost, cycles: u64) -> Result<ExecutionReport, TaskError> {
    let key = host.verifying_key().unwrap_or_default();
    let program_id = prover_sp1_engine::program_id(&key)
        .map_err(|error| TaskError::retryable("VerifyingKeyUnreadable", format!("{error:#}")))?;
    Ok(ExecutionReport {
        segments: host.shards(),
        user_cycles: cycles,
        total_cycles: cycles,
        program_id,
        ..ExecutionReport::default()
    })
}

// Tells how many shards there are, and ends the job as soon as its program is known to be another than expected.
async fn watch_job(
    attempt: &Attempt,
    host: &Arc<ControlHost>,
    plan: &JobPlan,
    settings: &Settings,
    failure: &Failure,
) -> std::convert::Infallible {
    let expected = plan
        .expected_program_id
        .trim_start_matches("0x")
        .to_ascii_lowercase();
    let (mut told, mut program_id) = (0, String::new());
    loop {
        tokio::time::sleep(PROGRESS_PAUSE).await;
        if program_id.is_empty()
            && let Some(key) = host.verifying_key()
            && let Ok(found) = prover_sp1_engine::program_id(&key)
        {
            program_id = found;
            if !expected.is_empty() && expected != program_id {
                failure.set(TaskError::invalid_input(
                    "ProgramIdMismatch",
                    format!(
                        "the program's verifying key has the hash {program_id}, but the manifest expects {expected}"
                    ),
                ));
            }
        }
        let segments = host.shards();
        // Not before the executor runs: it would wait for the memory that this execution takes.
        if told == 0
            && segments > 0
            && plan.report_gas
            && let Ok(task) = gas_task(plan, settings)
            && let Err(error) = attempt.submit_tasks(vec![task]).await
        {
            tracing::info!(%error, "the gas is asked for at the end");
        }
        if segments > told {
            told = segments;
            let report = ExecutionReport {
                segments,
                program_id: program_id.clone(),
                ..ExecutionReport::default()
            };
            attempt.report_progress(None, Some(report)).await;
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// What the execution beside the proof told.
async fn gas(attempt: &Attempt, store: &Store, plan: &JobPlan, settings: &Settings) -> anyhow::Result<u64> {
    let task = gas_task(plan, settings)?;
    store
        .insist("could not submit gas", || {
            attempt.submit_tasks(vec![task.clone()])
        })
        .await?;
    loop {
        let mut results = store
            .insist("could not follow gas", || {
                attempt.subscribe_tasks(vec![GAS.to_owned()])
            })
            .await?;
        // A stream that breaks is asked for again. A failed task fails the job, and this attempt with it.
        while let Some(Ok(ended)) = results.next().await {
            if let Ok(gas) = <[u8; 8]>::try_from(ended.result.as_slice())
                && ended.succeeded
            {
                return Ok(u64::from_le_bytes(gas));
            }
        }
        tokio::time::sleep(PROGRESS_PAUSE).await;
    }
}

fn gas_task(plan: &JobPlan, settings: &Settings) -> anyhow::Result<TaskSubmission> {
    let parameters = GasParameters {
        input_format: plan.input_format,
        max_cycles: (plan.max_cycles > 0).then_some(plan.max_cycles),
    };
    let resources = graph::resources(
        task_type::GAS,
        &plan.kind,
        device_class(plan),
        settings.executor_memory_bytes,
        MemoryScale::of(settings.element_threshold),
    );
    Ok(TaskSubmission {
        request_id: GAS.to_owned(),
        task_type: task_type::GAS.to_owned(),
        resources: Some(resources),
        inputs: vec![plan.program.clone(), plan.input.clone()],
        parameters: serde_json::to_vec(&parameters)?,
        ..TaskSubmission::default()
    })
}

fn verify_task(plan: &JobPlan, settings: &Settings) -> anyhow::Result<TaskSubmission> {
    let parameters = VerifyParameters {
        kind: plan.kind.clone(),
    };
    let resources = graph::resources(
        task_type::VERIFY,
        &plan.kind,
        device_class(plan),
        settings.executor_memory_bytes,
        MemoryScale::of(settings.element_threshold),
    );
    Ok(TaskSubmission {
        request_id: VERIFY.to_owned(),
        task_type: task_type::VERIFY.to_owned(),
        resources: Some(resources),
        inputs: vec![
            plan.program.clone(),
            plan.proof_output.clone(),
            plan.public_values_output.clone(),
        ],
        parameters: serde_json::to_vec(&parameters)?,
        concludes_job: true,
        ..TaskSubmission::default()
    })
}
