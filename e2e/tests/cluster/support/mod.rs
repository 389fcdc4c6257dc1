//! What the scenarios share.

pub(crate) mod coordinator;
pub(crate) mod kubectl;
pub(crate) mod node;
pub(crate) mod objects;
pub(crate) mod proofs;
pub(crate) mod scene;
pub(crate) mod steps;
pub(crate) mod store;
pub(crate) mod tokens;
