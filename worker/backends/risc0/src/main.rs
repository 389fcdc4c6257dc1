//! The risc0 backend as a process: see [`prover_backend::main`] for its command line.

use std::process::ExitCode;

use prover_backend_risc0::{Risc0, processor};

fn main() -> ExitCode {
    let missing = processor::missing_features();
    if !missing.is_empty() {
        eprintln!("prover-backend-risc0: {}", processor::complaint(&missing));
        return ExitCode::from(processor::EXIT_UNSUPPORTED);
    }
    prover_backend::main(Risc0)
}
