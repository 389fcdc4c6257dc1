//! What runs in the control lane: it needs a verifier, but no proving keys.

use std::sync::{Arc, OnceLock};

use anyhow::{Result, anyhow};
use sp1_core_executor::{Program, SP1Context};
use sp1_core_machine::{executor::ExecutionOutput, io::SP1Stdin};
use sp1_prover::verify::{SP1Verifier, VerifierRecursionVks};
use sp1_prover::worker::{
    CoreExecuteTaskRequest, RawTaskRequest, SP1Controller, SP1ControllerConfig, SP1ExecutorConfig, TaskError,
    TaskId, execute_with_options,
};
use tokio::sync::watch;

use crate::{Boxed, Client, Settings};

/// Sizes of SP1's own pipelines: its defaults.
const SPLICING_WORKERS: usize = 2;
const SPLICING_BUFFER: usize = 2;
const SENDERS_PER_SPLICE: usize = 2;
const SENDER_BUFFER: usize = 2;

/// Proofs that one recursion proof joins: what SP1's own keys are made for.
const REDUCE_ARITY: usize = 4;

// A controller for each attempt: it is cheap, and each one calls the outside in the name of its attempt.
fn controller(client: Client, settings: &Settings) -> SP1Controller<Client, Client> {
    static VERIFIER: OnceLock<SP1Verifier> = OnceLock::new();
    let verifier = VERIFIER.get_or_init(|| SP1Verifier::new(VerifierRecursionVks::default()));
    let config = SP1ControllerConfig {
        opts: settings.core_opts(),
        num_splicing_workers: SPLICING_WORKERS,
        splicing_buffer_size: SPLICING_BUFFER,
        max_reduce_arity: REDUCE_ARITY,
        number_of_send_splice_workers_per_splice: SENDERS_PER_SPLICE,
        send_splice_input_buffer_size_per_splice: SENDER_BUFFER,
        use_fixed_pk: false,
        global_memory_buffer_size: 2 * SPLICING_WORKERS,
    };
    SP1Controller::new(config, client.clone(), client, verifier.clone())
}

/// Runs a whole proof: submits everything and waits for it.
pub fn control(
    client: Client,
    settings: Settings,
    request: RawTaskRequest,
) -> Boxed<'static, Result<ExecutionOutput, TaskError>> {
    Box::pin(async move { controller(client, &settings).run(request).await })
}

/// Executes the program and submits its shards.
pub fn execute(
    client: Client,
    settings: Settings,
    task: TaskId,
    request: RawTaskRequest,
) -> Boxed<'static, Result<ExecutionOutput, TaskError>> {
    Box::pin(async move {
        let request = CoreExecuteTaskRequest::from_raw(request)?;
        controller(client, &settings).execute(task, request).await
    })
}

/// Whether these bytes are a program of SP1's. Milliseconds: it is not executed.
pub fn check_program(elf: &[u8]) -> Result<()> {
    let read = std::panic::catch_unwind(|| Program::from(elf).map(drop));
    match read {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(anyhow!("{error}")),
        Err(_) => Err(anyhow!("SP1 can't take it apart")),
    }
}

/// What an execution without a proof told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// What the program made public.
    pub public_values: Vec<u8>,
    /// SHA-256 of them, as the program's proof has it.
    pub public_values_hash: [u8; 32],
    /// Instructions that ran.
    pub cycles: u64,
    /// SP1's prover gas units.
    pub gas: Option<u64>,
    /// How the program ended.
    pub exit_code: u64,
    /// What the program wrote to its standard error last, at most 2 KiB.
    pub last_words: String,
}

/// Executes a program without proving anything.
pub fn execute_only(
    settings: Settings,
    elf: Vec<u8>,
    stdin: SP1Stdin,
    max_cycles: Option<u64>,
) -> Boxed<'static, Result<Executed>> {
    Box::pin(async move {
        let program = Program::from(&elf).map_err(|error| anyhow!("the program can't be read: {error}"))?;
        let mut context = SP1Context::builder();
        context.calculate_gas(true);
        if let Some(limit) = max_cycles {
            context.max_cycles(limit);
        }
        let (sender, last_words) = watch::channel(String::new());
        context.stderr_channel(sender);
        let (public_values, public_values_hash, report) = execute_with_options(
            Arc::new(program),
            stdin,
            context.build(),
            settings.core_opts(),
            SP1ExecutorConfig::default(),
        )
        .await?;
        Ok(Executed {
            public_values: public_values.to_vec(),
            public_values_hash,
            cycles: report.total_instruction_count(),
            gas: report.gas(),
            exit_code: report.exit_code,
            last_words: last_words.borrow().clone(),
        })
    })
}
