//! SP1's worker components behind a small interface.
//!
//! Everything here is generic in SP1, so that this crate instantiates its provers: it takes minutes to compile and knows
//! nothing of our protocol. What the components ask of the outside goes through [`Host`], which the backend implements.
//! Its functions answer with boxed futures, since rustc compiles the body of an `async fn` wherever it is called.
//! Does not own: names of artifacts, retries, scheduling.

mod client;
mod control;
#[cfg(not(feature = "cuda"))]
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
#[cfg(not(feature = "cuda"))]
mod lazy;
mod prover;
mod settings;
mod verifier;

/// Work of SP1 that is compiled here.
pub type Boxed<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

pub use client::{Client, Host};
pub use control::{Executed, check_program, control, execute, execute_only};
pub use device::{DeviceError, ELEMENTS_OF_ANY_GPU, ON_GPU, check_device, check_gpu};
pub use prover::Prover;
pub use settings::Settings;
pub use verifier::{Checked, Verifier, program_id, user_proof, verify_by_id};
