//! The worker pods of a cluster: which exist, under which addresses, and which are gone for certain.
//!
//! Owns the watch and the conclusions from it. Does not own what follows: the coordinator takes attempts away, and
//! a node that is merely silent is left to the leases.

mod directory;
mod state;
mod watch;

pub use directory::{PodDirectory, PodProblem};
pub use state::{ContainerEnd, PodNews};
pub use watch::{PodSink, follow, run};

#[cfg(test)]
mod tests;
