//! What runs on a device: SP1's prover with all its keys.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use sp1_prover::worker::{RawTaskRequest, SP1Worker, TaskError, TaskId, TaskMetadata};
use sp1_prover_types::TaskType;

#[cfg(not(feature = "cuda"))]
use crate::cpu::{self as build, Components};
#[cfg(feature = "cuda")]
use crate::cuda::{self as build, Components};
use crate::{Boxed, Client, Settings};

/// SP1's prover. Cheap to clone.
#[derive(Clone)]
pub struct Prover {
    worker: SP1Worker<Client, Client, Components>,
}

impl Prover {
    /// Makes the programs of all recursion tasks, and what must be known of their keys: minutes on a CPU where `keys` is empty.
    /// On a GPU it makes the keys themselves, and keeps nothing in `keys`.
    pub fn build(client: Client, settings: Settings, keys: Option<PathBuf>) -> Boxed<'static, Result<Self>> {
        Box::pin(Self::build_here(client, settings, keys))
    }

    async fn build_here(client: Client, settings: Settings, keys: Option<PathBuf>) -> Result<Self> {
        let started = Instant::now();
        let worker = build::worker(client, settings, keys).await?;
        tracing::info!(seconds = started.elapsed().as_secs_f64(), "the prover is ready");
        Ok(Self { worker })
    }

    /// Runs one task and answers with the time that it took on the device, where SP1 measures it.
    pub fn run(
        &self,
        kind: TaskType,
        task: TaskId,
        request: RawTaskRequest,
    ) -> Boxed<'_, Result<Option<Duration>, TaskError>> {
        Box::pin(self.run_here(kind, task, request))
    }

    async fn run_here(
        &self,
        kind: TaskType,
        task: TaskId,
        request: RawTaskRequest,
    ) -> Result<Option<Duration>, TaskError> {
        let engine = self.worker.prover_engine();
        let ended = |error: &dyn std::fmt::Display| TaskError::Retryable(anyhow!("{error}"));
        let metadata = match kind {
            TaskType::SetupVkey => {
                let [elf] = exactly(request.inputs)?;
                let [output] = exactly(request.outputs)?;
                let handle = engine.submit_setup(task, elf, output).await?;
                handle.await.map_err(|error| ended(&error))??.1
            }
            TaskType::ProveShard => {
                let handle = engine.submit_prove_core_shard(request).await?;
                handle.await.map_err(|error| ended(&error))??
            }
            TaskType::RecursionReduce => {
                let handle = engine.submit_recursion_reduce(request).await?;
                handle.await.map_err(|error| ended(&error))??
            }
            TaskType::RecursionDeferred => {
                let handle = engine.submit_prove_deferred(request).await?;
                handle.await.map_err(|error| ended(&error))??
            }
            TaskType::ShrinkWrap => engine.run_shrink_wrap(request).await?,
            TaskType::PlonkWrap => {
                engine.run_plonk(request).await?;
                TaskMetadata::default()
            }
            TaskType::Groth16Wrap => {
                engine.run_groth16(request).await?;
                TaskMetadata::default()
            }
            other => {
                let message = anyhow!("{} is not run on a device", other.as_str_name());
                return Err(TaskError::Fatal(message));
            }
        };
        Ok(metadata.gpu_ms.map(Duration::from_millis))
    }
}

fn exactly<T, const N: usize>(items: Vec<T>) -> Result<[T; N], TaskError> {
    let count = items.len();
    items
        .try_into()
        .map_err(|_| TaskError::Fatal(anyhow!("the task names {count} artifacts where it needs {N}")))
}
