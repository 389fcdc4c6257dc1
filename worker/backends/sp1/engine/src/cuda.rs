//! SP1's prover for GPUs.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use sp1_gpu_cudart::{CudaError, TaskScope, cuda_device_name, cuda_memory_info};
use sp1_gpu_prover::{SP1CudaProverComponents, cuda_worker_builder};
use sp1_prover::worker::SP1Worker;
use tokio::sync::{OnceCell, oneshot};

use crate::device::{DeviceError, check_gpu};
use crate::{Client, Settings};

/// Version of CUDA's compiler, told by the build.
const CUDA_VERSION: &str = match option_env!("SP1_CUDA_VERSION") {
    Some(version) => version,
    None => "of the same version",
};

/// GPUs that the kernels were compiled for, told by the build.
const ARCHITECTURES: &str = match option_env!("CUDA_ARCHS") {
    Some(architectures) => architectures,
    None => "SP1's own choice",
};

/// SP1's parts, with its provers for GPUs. Their keys are made at the start as SP1 makes them: seconds on a GPU.
pub(crate) type Components = SP1CudaProverComponents;

/// Whether this process has a GPU that can prove what the settings make.
pub(crate) fn check(settings: &Settings) -> Result<(), DeviceError> {
    let no_gpu = |error: CudaError| DeviceError::NoGpu {
        reason: reason(&error),
        cuda: CUDA_VERSION,
    };
    let (_, memory_bytes) = cuda_memory_info().map_err(no_gpu)?;
    let name = cuda_device_name().map_err(no_gpu)?;
    check_gpu(name, memory_bytes as u64, settings)
}

fn reason(error: &CudaError) -> String {
    let told = error.to_string();
    let words = told.rsplit_once("CudaRustError: ").map(|(_, words)| words);
    words.unwrap_or(&told).to_owned()
}

/// A worker with all its keys.
pub(crate) async fn worker(
    client: Client,
    settings: Settings,
    _keys: Option<PathBuf>,
) -> Result<SP1Worker<Client, Client, Components>> {
    check(&settings)?;
    let name = cuda_device_name()?;
    tracing::info!(
        gpu = name,
        built_for = ARCHITECTURES,
        cuda = CUDA_VERSION,
        "makes its keys on the GPU"
    );
    // SP1 panics where a kernel can't start, such as on a GPU that it was not compiled for.
    let made = tokio::spawn(async move {
        let scope = scope().await?;
        let builder = cuda_worker_builder(scope).await;
        builder
            .with_core_opts(settings.core_opts())
            .with_artifact_client(client.clone())
            .with_worker_client(client)
            .build()
            .await
    });
    made.await.unwrap_or_else(|error| {
        Err(anyhow!(
            "SP1 can't make its prover on {name} with kernels for CUDA architectures {ARCHITECTURES} (build with \
             SP1_CUDA_ARCHS for other GPUs): {error}"
        ))
    })
}

/// The stream of the device that all work belongs to. SP1 frees it when the future ends that it was given to, while provers
/// still point to it; so that future, and the thread that it is on, last as long as the process.
async fn scope() -> Result<TaskScope> {
    static SCOPE: OnceCell<TaskScope> = OnceCell::const_new();
    let make = || async {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("sp1-gpu").build()?;
        let (tell, told) = oneshot::channel();
        runtime.spawn(async move {
            drop(sp1_gpu_cudart::spawn(move |scope| async move {
                let _ = tell.send(scope);
                std::future::pending::<()>().await;
            }));
        });
        std::mem::forget(runtime);
        told.await.map_err(|_| anyhow!("SP1 got no stream of the GPU"))
    };
    SCOPE.get_or_try_init(make).await.cloned()
}
