//! The tasks below the root.

use std::time::Instant;

use prover_backend::protocol::{DeviceClass, InputFormat, ProofReport};
use prover_backend::{Attempt, Completed, TaskError};
use prover_sp1_engine::Client;
use sp1_prover::worker::{CoreExecuteTaskRequest, RawTaskRequest, TaskError as Sp1Error, TaskId};
use sp1_prover_types::{Artifact, TaskType};

use crate::circuits::{self, Circuit};
use crate::codec;
use crate::control_host::{BEGUN, ControlHost, JobTraits, OWN};
use crate::failure::{self, of_sp1};
use crate::graph::Words;
use crate::input::standard_input;
use crate::plan::{GasParameters, VerifyParameters, context};
use crate::runtime::Engine;
use crate::store::Store;

fn words(attempt: &Attempt) -> Result<Words, TaskError> {
    serde_json::from_slice(attempt.parameters()).map_err(|error| {
        TaskError::fatal(
            "ParametersInvalid",
            format!("parameters of {}: {error}", attempt.task_type()),
        )
    })
}

fn raw(words: Words, attempt: &Attempt) -> RawTaskRequest {
    let artifacts = |names: Vec<String>| names.into_iter().map(Artifact).collect();
    RawTaskRequest {
        inputs: artifacts(words.inputs),
        outputs: artifacts(words.outputs),
        context: context(attempt),
    }
}

/// Runs the task `execute`.
pub async fn execute(attempt: &Attempt, engine: &Engine, version: &str) -> Result<Completed, TaskError> {
    let mut words = words(attempt)?;
    let job = JobTraits::of_words(&mut words, version)?;
    let request = raw(words, attempt);
    attempt.send_channel_message(None, BEGUN.to_vec()).await?;
    let store = Store::new(attempt.clone());
    let guard = store.over.clone().drop_guard();
    let host = ControlHost::new(store.clone(), job, engine.settings());
    let work = engine.execute(Client::new(host), TaskId::new(OWN), request.clone());
    let ended = store.failure.guard(work).await;
    drop(guard);
    match ended {
        Ok(_) => Ok(Completed::default()),
        Err(error) if [failure::CAUSE_UNTOLD, failure::GUEST_PANICKED].contains(&error.reason.as_str()) => {
            Err(cause(attempt, engine, request).await.unwrap_or(error))
        }
        Err(error) => Err(error),
    }
}

/// Why an execution failed of which SP1 told only a consequence, or not the program's words: what the program does when it is
/// executed alone. `None` where it ends well, so that the next attempt may.
async fn cause(attempt: &Attempt, engine: &Engine, request: RawTaskRequest) -> Option<TaskError> {
    let execution = async {
        let request = CoreExecuteTaskRequest::from_raw(request).map_err(|error| of_sp1(&error))?;
        let program = attempt.read_input(&request.elf.to_id()).await?;
        let stdin = attempt.read_input(&request.stdin.to_id()).await?;
        let unreadable = |error: String| TaskError::artifact("InputUnreadable", error);
        let stdin = codec::unpack(&stdin).map_err(|error| unreadable(error.to_string()))?;
        let stdin = bincode::deserialize(&stdin).map_err(|error| unreadable(error.to_string()))?;
        engine.execute_only(program, stdin, request.cycle_limit).await
    };
    match execution.await {
        Ok(executed) => failure::of_exit_code(executed.exit_code, &executed.last_words),
        Err(error) => Some(error),
    }
}

/// Runs the task `gas`. Its result is the gas as 8 bytes, little-endian.
pub async fn gas(attempt: &Attempt, engine: &Engine) -> Result<Completed, TaskError> {
    let parameters: GasParameters = serde_json::from_slice(attempt.parameters())
        .map_err(|error| TaskError::fatal("ParametersInvalid", format!("parameters of gas: {error}")))?;
    let names: Vec<String> = attempt.inputs().iter().map(|input| input.name.clone()).collect();
    let [program, input] = names.as_slice() else {
        let message = format!("gas has {} inputs: it needs 2", names.len());
        return Err(TaskError::fatal("TaskInvalid", message));
    };
    let program = attempt.read_input(program).await?;
    let input = attempt.read_input(input).await?;
    let format = InputFormat::try_from(parameters.input_format).unwrap_or_default();
    let stdin = standard_input(format, input)
        .map_err(|error| TaskError::invalid_input(error.category(), error.to_string()))?;
    let executed = engine.execute_only(program, stdin, parameters.max_cycles).await?;
    let gas = executed
        .gas
        .ok_or_else(|| TaskError::fatal("GasUnknown", "SP1 executed the program and told no gas"))?;
    Ok(Completed {
        result: gas.to_le_bytes().to_vec(),
        ..Completed::default()
    })
}

/// Runs a task of SP1's prover.
pub async fn on_device(attempt: &Attempt, engine: &Engine, kind: TaskType) -> Result<Completed, TaskError> {
    let circuit = match kind {
        TaskType::Groth16Wrap => Some(Circuit::Groth16),
        TaskType::PlonkWrap => Some(Circuit::Plonk),
        _ => None,
    };
    // SP1 would begin to download tens of gigabytes.
    if let Some(missing) = circuit.and_then(circuits::missing) {
        return Err(TaskError::fatal("CircuitsMissing", missing.to_string()));
    }
    let prover = engine.prover().await?;
    let started = Instant::now();
    let admitted = engine.host().admit(Store::new(attempt.clone()), words(attempt)?);
    let request = raw(admitted.words.clone(), attempt);
    let running = engine.start(prover, kind, TaskId::new(attempt.id().to_string()), request);
    // A stopped attempt has left the device when SP1 has. Its next call ends it.
    let work = attempt.blocking(move || futures::executor::block_on(running));
    let work = async {
        work.await
            .unwrap_or_else(|error| Err(Sp1Error::Retryable(anyhow::anyhow!("SP1 panicked: {error}"))))
    };
    let device_time = admitted.store.failure.guard(work).await?;
    Ok(Completed {
        result: engine.host().take_result(attempt.id()),
        device_time: device_time
            .filter(|time| !time.is_zero())
            .unwrap_or_else(|| started.elapsed()),
        ..Completed::default()
    })
}

/// Runs the task `verify`: SP1's verifier over the bytes that the user gets, against the verifying key of the program that the
/// user submitted, made from that program by this process. Nothing that the controller found out goes into it.
pub async fn verify(attempt: &Attempt, engine: &Engine) -> Result<Completed, TaskError> {
    let started = Instant::now();
    let parameters: VerifyParameters = serde_json::from_slice(attempt.parameters())
        .map_err(|error| TaskError::fatal("ParametersInvalid", format!("parameters of verify: {error}")))?;
    let names: Vec<String> = attempt.inputs().iter().map(|input| input.name.clone()).collect();
    let [program_name, proof_name, values_name] = names.as_slice() else {
        let message = format!("verify has {} inputs: it needs 3", names.len());
        return Err(TaskError::fatal("TaskInvalid", message));
    };
    let program = attempt.read_input(program_name).await?;
    let proof = attempt.read_input(proof_name).await?;
    let public_values = attempt.read_input(values_name).await?;
    let proof_bytes = proof.len() as u64;
    let key = engine.verifying_key(&program).await?;
    let checked = engine.verify(proof, key).await?.map_err(|refusal| {
        TaskError::fatal(
            "ProofRefused",
            format!("SP1's verifier refuses the proof: {refusal}"),
        )
    })?;
    if checked.public_values != public_values || checked.kind != parameters.kind {
        let message = format!(
            "{proof_name} is a {} proof of other public values than {values_name}, or of another kind than {}",
            checked.kind, parameters.kind
        );
        return Err(TaskError::fatal("ProofRefused", message));
    }
    tracing::info!(
        program_id = checked.program_id,
        kind = checked.kind,
        proof_bytes,
        "the proof verifies"
    );
    Ok(Completed {
        proof: Some(ProofReport {
            proof: proof_name.clone(),
            public_values: values_name.clone(),
            program_id: checked.program_id,
            proof_bytes,
            verifier: verifier_name(),
        }),
        device_time: started.elapsed(),
        ..Completed::default()
    })
}

/// Which verifier accepted a proof.
#[must_use]
pub fn verifier_name() -> String {
    format!(
        "sp1-sdk {}, circuits {}",
        crate::SP1_VERSION,
        sp1_sdk::SP1_CIRCUIT_VERSION
    )
}

impl JobTraits {
    // What the root knows of the job travels as the last words of the execution.
    fn of_words(words: &mut Words, version: &str) -> Result<Self, TaskError> {
        let mut word = || words.inputs.pop();
        let (class, kind) = (word(), word());
        let (Some(class), Some(kind)) = (class, kind) else {
            return Err(TaskError::fatal("ParametersInvalid", "execute names no job"));
        };
        Ok(Self {
            kind,
            version: version.to_owned(),
            device_class: DeviceClass::from_str_name(&class).unwrap_or(DeviceClass::Cpu),
        })
    }

    /// The words that are added to those of an execution.
    #[must_use]
    pub fn to_words(&self) -> [String; 2] {
        [self.kind.clone(), self.device_class.as_str_name().to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_root_knows_of_the_job_reaches_the_execution() {
        let job = JobTraits {
            kind: "Core".to_owned(),
            version: "v".to_owned(),
            device_class: DeviceClass::Gpu,
        };
        let mut words = Words {
            inputs: ["program".to_owned()].into_iter().chain(job.to_words()).collect(),
            outputs: Vec::new(),
        };
        let read = JobTraits::of_words(&mut words, "v").expect("reads");
        assert_eq!(
            (read.kind.as_str(), read.device_class),
            ("Core", DeviceClass::Gpu)
        );
        assert_eq!(words.inputs, ["program"]);
    }
}
