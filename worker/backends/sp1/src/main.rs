//! The sp1 backend as a process: see [`prover_backend::main`] for its command line.

use std::process::ExitCode;

use prover_backend_sp1::runtime::Engine;
use prover_backend_sp1::{Sp1, device, leftovers, settings};

/// Exit code where the process can't begin to work.
const EXIT_UNUSABLE: u8 = 2;

fn main() -> ExitCode {
    match start() {
        Ok(engine) => {
            let code = prover_backend::main(Sp1::new(engine));
            leftovers::end_executions();
            code
        }
        Err(error) => {
            eprintln!("prover-backend-sp1: {error}");
            ExitCode::from(EXIT_UNUSABLE)
        }
    }
}

fn start() -> Result<Engine, Box<dyn std::error::Error>> {
    let settings = settings::settings(prover_sp1_engine::ON_GPU)?;
    device::check(&settings)?;
    Ok(Engine::new(settings)?)
}
