//! What tests of this backend share: the sample programs, compiled once for each test binary.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use prover_backend_risc0::execute::{self, ExecuteError, Execution, Request, SegmentBytes};
use prover_backend_risc0::program::Program;
use risc0_zkvm::InnerAssumptionReceipt;

/// The smallest segments: the cheapest to prove.
pub(crate) const PO2: u32 = 14;

fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("programs-{}", std::process::id()));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../config/samples/programs/build.sh");
        let output = Command::new(&script).arg(&folder).output().expect("run build.sh");
        assert!(
            output.status.success(),
            "{}: {}",
            script.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        folder
    })
}

/// The ELF file of a sample program.
pub(crate) fn elf(name: &str) -> Vec<u8> {
    let path = programs().join(format!("{name}.elf"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn program(name: &str) -> Program {
    Program::parse(&elf(name)).expect("a program for the zkVM")
}

/// An execution with its segments.
pub(crate) struct Run {
    pub(crate) execution: Execution,
    pub(crate) segments: Vec<SegmentBytes>,
}

/// What a run is given beside program and input.
pub(crate) struct Options<'a> {
    pub(crate) po2: u32,
    pub(crate) max_cycles: u64,
    pub(crate) assumptions: &'a [InnerAssumptionReceipt],
    pub(crate) seed: [u8; 32],
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            po2: PO2,
            max_cycles: 100_000_000,
            assumptions: &[],
            seed: [7; 32],
        }
    }
}

pub(crate) fn run_with(
    program: &Program,
    input: &[u8],
    options: &Options<'_>,
) -> Result<Run, ExecuteError<String>> {
    let request = Request {
        program,
        input: input.to_vec(),
        assumptions: options.assumptions,
        max_cycles: options.max_cycles,
        segment_po2: options.po2,
    };
    let mut segments = Vec::new();
    let execution = execute::execute(request, &|| Ok(options.seed), |segment| {
        segments.push(segment);
        Ok(())
    })?;
    Ok(Run { execution, segments })
}

pub(crate) fn run(name: &str, input: &[u8]) -> Result<Run, ExecuteError<String>> {
    run_with(&program(name), input, &Options::default())
}
