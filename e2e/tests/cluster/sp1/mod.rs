//! Fault scenarios of sp1-cluster's own test suite, under its names for them; docs/sp1.md says where the others are shown.
//!
//! [`real`] proves with SP1 in pods, and needs its image: `make e2e-sp1-cluster`. What [`scheduling`] is about is the same
//! whatever is proved, so the emulated backend shows it, in all runs of the scenes.

mod real;
mod scheduling;
