//! SP1's prover for processors.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use sp1_core_machine::riscv::RiscvAir;
use sp1_hypercube::prover::{CpuShardProver, ProverSemaphore};
use sp1_prover::SP1ProverComponents as _;
use sp1_prover::worker::{SP1Worker, SP1WorkerBuilder};

pub(crate) use crate::lazy::Components;
use crate::lazy::{LazyProver, WrapBuilder};
use crate::{Client, Settings};

/// Proofs that SP1's CPU prover makes at once: its own default. A task makes one after the other.
const PROOFS_AT_ONCE: usize = 4;

/// A worker that knows of all its keys.
pub(crate) async fn worker(
    client: Client,
    settings: Settings,
    keys: Option<PathBuf>,
) -> Result<SP1Worker<Client, Client, Components>> {
    let permits = ProverSemaphore::new(PROOFS_AT_ONCE);
    let core = Components::core_verifier(RiscvAir::machine());
    let core = CpuShardProver::new(core.shard_verifier().clone());
    let compress = Components::compress_verifier();
    let compress = CpuShardProver::new(compress.shard_verifier().clone());
    let compress = LazyProver::new(compress, "compress", keys.clone());
    let shrink = Components::shrink_verifier();
    let shrink = CpuShardProver::new(shrink.shard_verifier().clone());
    let shrink = LazyProver::new(shrink, "shrink", keys);
    SP1WorkerBuilder::<Components>::new()
        .with_core_air_prover(Arc::new(core), permits.clone())
        .with_compress_air_prover(Arc::new(compress), permits.clone())
        .with_shrink_air_prover(Arc::new(shrink), permits.clone())
        .with_wrap_air_prover(WrapBuilder, permits)
        .with_core_opts(settings.core_opts())
        .with_artifact_client(client.clone())
        .with_worker_client(client)
        .build()
        .await
}
