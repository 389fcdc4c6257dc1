//! SP1's worker components behind a small interface.
//!
//! Everything here is generic in SP1, so that this crate instantiates its provers: it takes minutes to compile and knows
//! nothing of our protocol. What the components ask of the outside goes through [`Host`], which the backend implements.
//! Does not own: names of artifacts, retries, scheduling.

mod client;
mod control;
mod lazy;
mod prover;
mod settings;
mod verifier;

pub use client::{Client, Host};
pub use control::{Executed, control, execute, execute_only};
pub use prover::Prover;
pub use settings::Settings;
pub use verifier::{Checked, Verifier, program_id, user_proof, verify_by_id};
