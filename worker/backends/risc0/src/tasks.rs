//! The tasks that prove, each from input files to output files.

use std::path::Path;
use std::time::Instant;

use prover_backend::protocol::ProofReport;
use prover_backend::{Attempt, Completed, TaskError};

use crate::graph::Parameters;
use crate::program::Program;
use crate::prover::{self, ProveError};
use crate::sizing::ProofKind;

impl From<ProveError> for TaskError {
    fn from(error: ProveError) -> Self {
        let message = error.to_string();
        match error {
            ProveError::Decode { .. } => Self::artifact(error.category(), message),
            ProveError::Prove { .. } => Self::retryable(error.category(), message),
            ProveError::Refused { .. } => Self::fatal(error.category(), message),
        }
    }
}

/// Runs the task `prove`.
pub async fn prove(attempt: &Attempt) -> Result<Completed, TaskError> {
    let [segment] = input_bytes(attempt).await?;
    one_output(attempt, move || prover::prove_segment(&segment)).await
}

/// Runs the task `lift`.
pub async fn lift(attempt: &Attempt) -> Result<Completed, TaskError> {
    let [receipt] = input_bytes(attempt).await?;
    one_output(attempt, move || prover::lift(&receipt)).await
}

/// Runs the task `join`.
pub async fn join(attempt: &Attempt) -> Result<Completed, TaskError> {
    let [left, right] = input_bytes(attempt).await?;
    one_output(attempt, move || prover::join(&left, &right)).await
}

/// Runs the task `resolve`.
pub async fn resolve(attempt: &Attempt) -> Result<Completed, TaskError> {
    let [conditional, assumption] = input_bytes(attempt).await?;
    one_output(attempt, move || {
        prover::resolve(&conditional, &prover::read_assumption(&assumption)?)
    })
    .await
}

/// Runs the task `finalize`: assembles the receipt and checks it.
pub async fn finalize(attempt: &Attempt) -> Result<Completed, TaskError> {
    let started = Instant::now();
    let parameters = parameters(attempt)?;
    let [proof, public_values] = outputs(attempt)?;
    let journal = attempt.read_input(crate::graph::JOURNAL).await?;
    let paths: Vec<_> = attempt
        .inputs()
        .iter()
        .map(|input| (input.name.clone(), input.path.clone()))
        .collect();
    let public = journal.clone();
    let receipt = attempt
        .blocking(move || assemble(&parameters, &paths, journal))
        .await?;
    attempt.write_output(&proof, &receipt).await?;
    attempt.write_output(&public_values, &public).await?;
    Ok(Completed {
        device_time: started.elapsed(),
        ..Completed::default()
    })
}

fn assemble(
    parameters: &Parameters,
    inputs: &[(String, String)],
    journal: Vec<u8>,
) -> Result<Vec<u8>, TaskError> {
    let read = |path: &str| {
        std::fs::read(path).map_err(|error| TaskError::file("read a receipt", Path::new(path), &error))
    };
    let image_id = crate::backend::parse_image_id(&parameters.image_id)
        .map_err(|error| TaskError::fatal("ParametersInvalid", error.to_string()))?;
    match ProofKind::from_name(&parameters.kind) {
        Some(ProofKind::Succinct) => {
            let (_, path) = inputs.first().ok_or_else(|| no_input("a receipt"))?;
            Ok(prover::finish_succinct(&read(path)?, journal, image_id)?)
        }
        Some(ProofKind::Composite) => {
            let mut segments = Vec::new();
            for (name, path) in inputs {
                if name.starts_with("segment-receipt-") {
                    segments.push(read(path)?);
                }
            }
            let mut assumptions = Vec::new();
            for wanted in &parameters.assumptions {
                let (_, path) = inputs
                    .iter()
                    .find(|(name, _)| name == wanted)
                    .ok_or_else(|| no_input(wanted))?;
                assumptions.push(prover::read_assumption(&read(path)?)?);
            }
            Ok(prover::finish_composite(
                &segments,
                assumptions,
                journal,
                image_id,
            )?)
        }
        _ => Err(TaskError::fatal(
            "ParametersInvalid",
            format!("no proof is of kind {:?}", parameters.kind),
        )),
    }
}

/// Runs the task `verify`: RISC Zero's verifier over the bytes that the user gets, against the image id of the bytes
/// that the user submitted. Nothing that the planner found out goes into it.
pub async fn verify(attempt: &Attempt) -> Result<Completed, TaskError> {
    let started = Instant::now();
    let parameters = parameters(attempt)?;
    let [program_name, proof_name, values_name] = input_names(attempt)?;
    let [program, proof, public_values] = input_bytes(attempt).await?;
    let proof_bytes = proof.len() as u64;
    let (program_id, accepted) = attempt
        .blocking(move || {
            let program = Program::parse(&program)
                .map_err(|error| TaskError::invalid_input(error.category(), error.to_string()))?;
            let accepted = prover::verify(&proof, program.image_id())?;
            Ok::<_, TaskError>((hex::encode(program.image_id()), accepted))
        })
        .await?;
    if accepted.journal != public_values || accepted.kind != parameters.kind {
        let message = format!(
            "{proof_name} is a {} proof of other public values than {values_name}, or of another kind than {}",
            accepted.kind, parameters.kind
        );
        return Err(TaskError::fatal("ReceiptRefused", message));
    }
    tracing::info!(%program_id, program = program_name, kind = accepted.kind, proof_bytes, "the proof verifies");
    let report = ProofReport {
        proof: proof_name,
        public_values: values_name,
        program_id,
        proof_bytes,
        verifier: prover::verifier_name(),
    };
    Ok(Completed {
        proof: Some(report),
        device_time: started.elapsed(),
        ..Completed::default()
    })
}

async fn one_output(
    attempt: &Attempt,
    work: impl FnOnce() -> Result<Vec<u8>, ProveError> + Send + 'static,
) -> Result<Completed, TaskError> {
    let [name] = outputs(attempt)?;
    let (bytes, device_time) = attempt
        .blocking(move || {
            let started = Instant::now();
            work().map(|bytes| (bytes, started.elapsed()))
        })
        .await?;
    attempt.write_output(&name, &bytes).await?;
    Ok(Completed {
        device_time,
        ..Completed::default()
    })
}

fn input_names<const N: usize>(attempt: &Attempt) -> Result<[String; N], TaskError> {
    let names: Vec<String> = attempt.inputs().iter().map(|input| input.name.clone()).collect();
    let count = names.len();
    names
        .try_into()
        .map_err(|_| wrong_number(attempt, "inputs", count, N))
}

async fn input_bytes<const N: usize>(attempt: &Attempt) -> Result<[Vec<u8>; N], TaskError> {
    let mut all = Vec::with_capacity(N);
    for name in input_names::<N>(attempt)? {
        all.push(attempt.read_input(&name).await?);
    }
    all.try_into()
        .map_err(|all: Vec<_>| wrong_number(attempt, "inputs", all.len(), N))
}

fn outputs<const N: usize>(attempt: &Attempt) -> Result<[String; N], TaskError> {
    let names = attempt.outputs().to_vec();
    let count = names.len();
    names
        .try_into()
        .map_err(|_| wrong_number(attempt, "outputs", count, N))
}

fn wrong_number(attempt: &Attempt, what: &str, found: usize, needed: usize) -> TaskError {
    let message = format!(
        "task type {} has {found} {what}: it needs {needed}",
        attempt.task_type()
    );
    TaskError::fatal("TaskInvalid", message)
}

fn no_input(what: &str) -> TaskError {
    TaskError::fatal(
        "TaskInvalid",
        format!("the task reads {what}, which is not among its inputs"),
    )
}

fn parameters(attempt: &Attempt) -> Result<Parameters, TaskError> {
    serde_json::from_slice(attempt.parameters()).map_err(|error| {
        TaskError::fatal(
            "ParametersInvalid",
            format!("parameters of {}: {error}", attempt.task_type()),
        )
    })
}
