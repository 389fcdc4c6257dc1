//! Recursion keys that are made when a task needs them.
//!
//! SP1's prover makes the proving keys of all its recursion programs when it starts: minutes on a CPU, and gigabytes that
//! stay. Of most of them it wants only the verifying key and the heights of the tables then, which are small and depend on
//! nothing but the program. They are kept on disk; the rest is made at the first proof that needs it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sp1_hypercube::prover::{
    AirProver, CpuShardProver, PcsProof, PreprocessedData, Program, ProverPermit, ProverSemaphore,
    ProvingKey, Record,
};
use sp1_hypercube::{Machine, MachineVerifyingKey, ShardProof};
use sp1_primitives::{SP1Field, SP1GlobalContext};
use sp1_prover::{CompressAir, CpuSP1ProverComponents, RecursionSC, SP1ProverComponents, WrapProverBuilder};
use tokio::sync::OnceCell;

type Cpu = <CpuSP1ProverComponents as SP1ProverComponents>::RecursionProver;
type Context = SP1GlobalContext;
type CpuKey = ProvingKey<Context, RecursionSC, Cpu>;
type Key = ProvingKey<Context, RecursionSC, LazyProver>;
type VerifyingKey = MachineVerifyingKey<Context>;

/// Bytes of the checksum at the end of a file.
const CHECKSUM_BYTES: usize = 32;

/// SP1's CPU provers, with lazy keys for recursion.
pub(crate) struct Components;

impl SP1ProverComponents for Components {
    type CoreProver = <CpuSP1ProverComponents as SP1ProverComponents>::CoreProver;
    type RecursionProver = LazyProver;
    type WrapProver = <CpuSP1ProverComponents as SP1ProverComponents>::WrapProver;
    type WrapProverBuilder = WrapBuilder;
}

pub(crate) struct WrapBuilder;

impl WrapProverBuilder<Components> for WrapBuilder {
    fn build(&self) -> Arc<<Components as SP1ProverComponents>::WrapProver> {
        let verifier = Components::wrap_verifier();
        Arc::new(CpuShardProver::new(verifier.shard_verifier().clone()))
    }
}

/// What SP1 asks of a recursion program's key when it starts.
#[derive(Serialize, Deserialize)]
struct Summary {
    verifying_key: VerifyingKey,
    heights: BTreeMap<String, usize>,
}

/// A CPU prover whose keys are made late.
pub(crate) struct LazyProver {
    inner: Arc<Cpu>,
    /// Part of the name of each file, since programs are proved with other parameters as compressed and as shrunk.
    parameters: &'static str,
    folder: Option<PathBuf>,
}

/// A key, or what it will be made of.
pub(crate) struct LazyKey {
    inner: Arc<Cpu>,
    program: Arc<Program<Context, RecursionSC>>,
    heights: BTreeMap<String, usize>,
    key: OnceCell<Arc<CpuKey>>,
}

impl LazyKey {
    async fn get(&self) -> Arc<CpuKey> {
        let make = || async {
            // Whoever proves next holds the permit of the device itself.
            let permits = ProverSemaphore::new(1);
            let started = Instant::now();
            let (made, _) = self.inner.setup(self.program.clone(), permits).await;
            let seconds = started.elapsed().as_secs_f64();
            tracing::info!(seconds, "the proving key of a recursion program was made");
            made.pk
        };
        self.key.get_or_init(make).await.clone()
    }
}

impl LazyProver {
    pub(crate) fn new(inner: Cpu, parameters: &'static str, folder: Option<PathBuf>) -> Self {
        Self {
            inner: Arc::new(inner),
            parameters,
            folder,
        }
    }

    fn file_of(&self, program: &Program<Context, RecursionSC>) -> Option<PathBuf> {
        let folder = self.folder.as_ref()?;
        let mut hasher = Hasher(Sha256::new());
        bincode::serialize_into(&mut hasher, program).ok()?;
        let digest = hasher.0.finalize();
        let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Some(folder.join(format!("{}-{name}.key", self.parameters)))
    }

    fn key(
        &self,
        program: Arc<Program<Context, RecursionSC>>,
        summary: Summary,
        made: Option<Arc<CpuKey>>,
    ) -> (Arc<Key>, VerifyingKey) {
        let lazy = LazyKey {
            inner: self.inner.clone(),
            program,
            heights: summary.heights,
            key: OnceCell::new_with(made),
        };
        let key = ProvingKey {
            vk: summary.verifying_key.clone(),
            preprocessed_data: lazy,
        };
        (Arc::new(key), summary.verifying_key)
    }
}

impl AirProver<Context, RecursionSC> for LazyProver {
    type PreprocessedData = LazyKey;

    fn machine(&self) -> &Machine<SP1Field, CompressAir<SP1Field>> {
        self.inner.machine()
    }

    async fn setup_from_vk(
        &self,
        program: Arc<Program<Context, RecursionSC>>,
        vk: Option<VerifyingKey>,
        permits: ProverSemaphore,
    ) -> (PreprocessedData<Key>, VerifyingKey) {
        let started = Instant::now();
        let file = self.file_of(&program);
        if let Some(summary) = file.as_deref().and_then(read) {
            let seconds = started.elapsed().as_secs_f64();
            tracing::info!(seconds, "a recursion program is known");
            let permit = permits.acquire().await.expect("SP1 never closes its permits");
            let (pk, vk) = self.key(program, summary, None);
            return (PreprocessedData { pk, permit }, vk);
        }
        let (PreprocessedData { pk, permit }, verifying_key) =
            self.inner.setup_from_vk(program.clone(), vk, permits).await;
        let summary = Summary {
            verifying_key,
            heights: Cpu::preprocessed_table_heights(pk.clone()).await,
        };
        // Where nothing can be kept the next start takes as long as this one.
        let kept = file.is_some_and(|file| write(&file, &summary).is_ok());
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(seconds, "the key of a recursion program was made");
        // The gigabytes of keys that no job may ever need: a first start takes no more memory than a later one.
        let (pk, vk) = self.key(program, summary, (!kept).then_some(pk));
        (PreprocessedData { pk, permit }, vk)
    }

    async fn setup_and_prove_shard(
        &self,
        program: Arc<Program<Context, RecursionSC>>,
        record: Record<Context, RecursionSC>,
        vk: Option<VerifyingKey>,
        permits: ProverSemaphore,
    ) -> (
        VerifyingKey,
        ShardProof<Context, PcsProof<Context, RecursionSC>>,
        ProverPermit,
    ) {
        self.inner
            .setup_and_prove_shard(program, record, vk, permits)
            .await
    }

    async fn prove_shard_with_pk(
        &self,
        pk: Arc<Key>,
        record: Record<Context, RecursionSC>,
        permits: ProverSemaphore,
    ) -> (ShardProof<Context, PcsProof<Context, RecursionSC>>, ProverPermit) {
        let key = pk.preprocessed_data.get().await;
        self.inner.prove_shard_with_pk(key, record, permits).await
    }

    async fn preprocessed_table_heights(pk: Arc<Key>) -> BTreeMap<String, usize> {
        pk.preprocessed_data.heights.clone()
    }
}

struct Hasher(Sha256);

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a file says; none where it is missing or damaged.
fn read(file: &Path) -> Option<Summary> {
    let bytes = fs::read(file).ok()?;
    let (content, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM_BYTES)?)?;
    if Sha256::digest(content)[..] != *checksum {
        return None;
    }
    bincode::deserialize(content).ok()
}

// Several processes may start at once: each writes a file of its own and puts it in place whole.
fn write(file: &Path, summary: &Summary) -> io::Result<()> {
    let mut bytes = bincode::serialize(summary).map_err(io::Error::other)?;
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let own = file.with_extension(format!("{}.part", std::process::id()));
    fs::write(&own, bytes)?;
    fs::rename(own, file)
}
