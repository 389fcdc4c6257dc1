//! `prover-backend-command`: any prover that is a program.
//!
//! Owns: reading which commands to run, the three tasks of such a job, running a command with a bound on its time and
//! on what is kept of its output, and telling in words what went wrong. Does not own the proof system: only the exit
//! code of the verify command tells whether a proof is accepted.
//!
//! It is linked statically, since it runs in images of users.

mod backend;
mod config;
mod memory;
mod plan;
mod run;
mod tasks;

use std::process::ExitCode;

fn main() -> ExitCode {
    let config = match config::Config::from_environment() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    prover_backend::main(backend::Command::new(config))
}
