//! `ProverCluster`: which machines prove, with which provers, for whom.

mod pod;
mod spec;
mod status;

pub use pod::*;
pub use spec::*;
pub use status::*;
