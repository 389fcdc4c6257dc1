//! The sp1 backend as a process: see [`prover_backend::main`] for its command line.

use std::process::ExitCode;

use prover_backend_sp1::runtime::Engine;
use prover_backend_sp1::{Sp1, leftovers, settings};

/// Exit code where the process can't begin to work.
const EXIT_UNUSABLE: u8 = 2;

fn main() -> ExitCode {
    let settings = match settings::settings(false) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("prover-backend-sp1: {error}");
            return ExitCode::from(EXIT_UNUSABLE);
        }
    };
    match Engine::new(settings) {
        Ok(engine) => {
            let code = prover_backend::main(Sp1::new(engine));
            leftovers::end_executions();
            code
        }
        Err(error) => {
            eprintln!("prover-backend-sp1: no threads: {error}");
            ExitCode::from(EXIT_UNUSABLE)
        }
    }
}
