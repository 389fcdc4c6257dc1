//! What the scenarios share.

pub(crate) mod kubectl;
pub(crate) mod objects;
pub(crate) mod scene;
pub(crate) mod steps;
pub(crate) mod store;
