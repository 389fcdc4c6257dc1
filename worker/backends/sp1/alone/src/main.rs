//! `sp1-sdk` alone, without anything of ours: what our proofs are checked with, and our times compared with.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use sp1_core_executor::{SP1CoreOpts, ShardingThreshold};
use sp1_sdk::cpu::CpuProver;
use sp1_sdk::{
    Elf, HashableKey as _, LightProver, ProveRequest as _, Prover, ProvingKey as _, SP1Proof,
    SP1ProofWithPublicValues, SP1Stdin,
};

/// Elements below which SP1's own fixed tables don't fit into a shard.
const SMALLEST_ELEMENTS: u64 = 1 << 26;

/// Rows of a shard's largest table: SP1's own limit.
const MOST_ROWS: u64 = 1 << 22;

/// Stack of a thread: SP1's compilers recurse deeply.
const STACK_BYTES: usize = 16 << 20;

#[derive(Parser)]
#[command(about = "sp1-sdk alone: checks proofs, and proves for comparison")]
struct Arguments {
    #[command(subcommand)]
    step: Step,
}

#[derive(Subcommand)]
enum Step {
    /// Loads a proof with `SP1ProofWithPublicValues::load` and verifies it against the key of a program.
    Verify {
        #[arg(long)]
        program: PathBuf,
        #[arg(long)]
        proof: PathBuf,
    },
    /// Proves with the prover for processors and prints a line of JSON for each proof.
    Prove {
        #[arg(long)]
        program: PathBuf,
        /// File whose bytes are the program's one input.
        #[arg(long)]
        input: PathBuf,
        #[arg(long)]
        kind: Kind,
        /// Elements of a shard's traces.
        #[arg(long, value_parser = clap::value_parser!(u64).range(SMALLEST_ELEMENTS..))]
        elements: u64,
        /// Proofs, one after the other.
        #[arg(long, default_value_t = 1)]
        times: u32,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Core,
    Compressed,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let threads = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(STACK_BYTES)
        .build();
    let ended = threads
        .map_err(anyhow::Error::from)
        .and_then(|threads| threads.block_on(run(arguments.step)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("prover-sp1-alone: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{} can't be read", path.display()))
}

async fn run(step: Step) -> Result<()> {
    match step {
        Step::Verify { program, proof } => {
            let proof = SP1ProofWithPublicValues::load(&proof)?;
            let prover = LightProver::new().await;
            let key = prover.setup(Elf::from(read(&program)?)).await?;
            if let Err(error) = prover.verify(&proof, key.verifying_key(), None) {
                bail!("refused: {error}");
            }
            let kind = match proof.proof {
                SP1Proof::Core(shards) => format!("Core, {} shards", shards.len()),
                SP1Proof::Compressed(_) => "Compressed".to_owned(),
                SP1Proof::Plonk(_) => "Plonk".to_owned(),
                SP1Proof::Groth16(_) => "Groth16".to_owned(),
            };
            println!("accepted: {kind}, program {}", key.verifying_key().bytes32());
        }
        Step::Prove {
            program,
            input,
            kind,
            elements,
            times,
        } => prove(read(&program)?, read(&input)?, kind, elements, times).await?,
    }
    Ok(())
}

async fn prove(program: Vec<u8>, input: Vec<u8>, kind: Kind, elements: u64, times: u32) -> Result<()> {
    let sharding_threshold = ShardingThreshold {
        element_threshold: elements,
        height_threshold: MOST_ROWS,
    };
    let options = SP1CoreOpts {
        sharding_threshold,
        ..SP1CoreOpts::default()
    };
    let started = Instant::now();
    let prover = CpuProver::new_with_opts(Some(options)).await;
    let key = prover.setup(Elf::from(program)).await?;
    let ready = started.elapsed();
    for _ in 0..times {
        let mut stdin = SP1Stdin::new();
        stdin.write_slice(&input);
        let started = Instant::now();
        let request = prover.prove(&key, stdin);
        let proof = match kind {
            Kind::Core => request.core().await?,
            Kind::Compressed => request.compressed().await?,
        };
        let proved = started.elapsed();
        prover.verify(&proof, key.verifying_key(), None)?;
        let line = serde_json::json!({
            "readySeconds": ready.as_secs_f64(),
            "proveSeconds": proved.as_secs_f64(),
            "verifySeconds": (started.elapsed() - proved).as_secs_f64(),
            "peakBytes": peak_bytes(),
        });
        println!("{line}");
    }
    Ok(())
}

/// The most memory that this process has had resident.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
