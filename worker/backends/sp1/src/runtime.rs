//! SP1's work on threads of its own.
//!
//! SP1 computes for seconds on the threads of its runtime. Pulses to the agent and the calls of attempts run on those of the
//! SDK, so that a busy prover is never taken for a hung one.

use std::sync::Arc;
use std::time::Duration;

use prover_backend::TaskError;
use prover_sp1_engine::{Checked, Client, Executed, Prover, Settings, Verifier};
use sp1_core_machine::executor::ExecutionOutput;
use sp1_core_machine::io::SP1Stdin;
use sp1_prover::worker::{RawTaskRequest, TaskError as Sp1Error, TaskId};
use sp1_prover_types::TaskType;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::device_host::DeviceHost;
use crate::failure::{of_execution, of_sp1};
use crate::settings;

/// Stack of a thread: SP1's verifiers and compilers recurse deeply.
const STACK_BYTES: usize = 16 << 20;

/// SP1 as one process has it.
pub struct Engine {
    threads: Handle,
    /// Taken when the engine goes.
    runtime: Option<Runtime>,
    settings: Settings,
    prover: OnceCell<Prover>,
    verifier: OnceCell<Verifier>,
    host: Arc<DeviceHost>,
}

impl Engine {
    /// Nothing is computed yet.
    pub fn new(settings: Settings) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_name("sp1")
            .thread_stack_size(STACK_BYTES)
            .build()?;
        Ok(Self {
            threads: runtime.handle().clone(),
            runtime: Some(runtime),
            settings,
            prover: OnceCell::new(),
            verifier: OnceCell::new(),
            host: Arc::default(),
        })
    }

    /// What all processes of the cluster have in common.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// The host of this process's prover.
    #[must_use]
    pub fn host(&self) -> &Arc<DeviceHost> {
        &self.host
    }

    async fn on_own_threads<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, TaskError> {
        let work = AbortOnDropHandle::new(self.threads.spawn(work));
        work.await
            .map_err(|error| TaskError::retryable("BackendPanicked", format!("SP1 panicked: {error}")))
    }

    /// The prover, with all its keys: minutes at the first call.
    pub async fn prover(&self) -> Result<Prover, TaskError> {
        let make = || async {
            let (client, settings) = (Client::new(self.host.clone()), self.settings);
            let keys = settings::keys_folder();
            let built = self.on_own_threads(Prover::build(client, settings, keys)).await?;
            built.map_err(|error| TaskError::retryable("ProverNotBuilt", format!("{error:#}")))
        };
        self.prover.get_or_try_init(make).await.cloned()
    }

    async fn verifier(&self) -> Result<Verifier, TaskError> {
        let settings = self.settings;
        let make = || self.on_own_threads(Verifier::new(settings));
        self.verifier.get_or_try_init(make).await.cloned()
    }

    /// Starts a task of a device. It goes on to its end whoever waits for it: what SP1 computes can't be interrupted.
    pub fn start(
        &self,
        prover: Prover,
        kind: TaskType,
        task: TaskId,
        request: RawTaskRequest,
    ) -> JoinHandle<Result<Option<Duration>, Sp1Error>> {
        self.threads
            .spawn(async move { prover.run(kind, task, request).await })
    }

    /// Runs SP1's controller.
    pub async fn control(
        &self,
        client: Client,
        request: RawTaskRequest,
    ) -> Result<ExecutionOutput, Sp1Error> {
        let settings = self.settings;
        self.on_own_threads(prover_sp1_engine::control(client, settings, request))
            .await
            .map_err(|error| Sp1Error::Retryable(anyhow::anyhow!(error)))?
    }

    /// Executes a program and submits its shards.
    pub async fn execute(
        &self,
        client: Client,
        task: TaskId,
        request: RawTaskRequest,
    ) -> Result<ExecutionOutput, Sp1Error> {
        let settings = self.settings;
        self.on_own_threads(prover_sp1_engine::execute(client, settings, task, request))
            .await
            .map_err(|error| Sp1Error::Retryable(anyhow::anyhow!(error)))?
    }

    /// Executes a program without proving anything.
    pub async fn execute_only(
        &self,
        program: Vec<u8>,
        stdin: SP1Stdin,
        max_cycles: Option<u64>,
    ) -> Result<Executed, TaskError> {
        let settings = self.settings;
        let executed = self
            .on_own_threads(prover_sp1_engine::execute_only(
                settings, program, stdin, max_cycles,
            ))
            .await?;
        executed.map_err(|error| {
            let message = format!("{error:#}");
            match message.contains("killed") {
                true => of_sp1(&Sp1Error::Retryable(error)),
                false => of_execution(&message),
            }
        })
    }

    /// The verifying key of a program, serialized. Remembered while the process lasts.
    pub async fn verifying_key(&self, program: &[u8]) -> Result<Vec<u8>, TaskError> {
        if let Some(key) = self.host.key_of(program) {
            return Ok(key);
        }
        let verifier = self.verifier().await?;
        let bytes = program.to_vec();
        let key = self
            .on_own_threads(async move { verifier.verifying_key(bytes).await })
            .await?
            .map_err(|error| TaskError::invalid_input("ProgramUnreadable", format!("{error:#}")))?;
        self.host.remember_key(program, key.clone());
        Ok(key)
    }

    /// Checks a proof as a user gets it. Outside: why it is not accepted.
    pub async fn verify(
        &self,
        proof: Vec<u8>,
        verifying_key: Vec<u8>,
    ) -> Result<Result<Checked, String>, TaskError> {
        let verifier = self.verifier().await?;
        let work = async move {
            tokio::task::spawn_blocking(move || verifier.verify(&proof, &verifying_key))
                .await
                .map_err(|error| TaskError::retryable("BackendPanicked", error.to_string()))
        };
        let checked = self.on_own_threads(work).await??;
        Ok(checked.map_err(|error| format!("{error:#}")))
    }
}

impl Drop for Engine {
    // Waiting for SP1's threads is not allowed where the SDK drops a backend.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
