//! The custom resource types `ProverCluster` and `ProofJob`, group `proving.rs`, version `v1alpha1`.
//!
//! Owns the types, their validation rules, the words of their conditions, the generated CRDs and how a manifest
//! is read from a file. Does not own any client or reconciliation.

#![allow(
    unreachable_pub,
    reason = "KubeSchema copies each type, pub included, into a function body"
)]
#![allow(
    clippy::duplicated_attributes,
    reason = "printer columns repeat their keys; clippy takes them for one list"
)]

pub mod conditions;
mod crd;
mod manifest;
pub mod names;
mod proof_job;
mod prover_cluster;
mod quantity;
pub mod reasons;
pub mod rules;
mod source;
mod validation;

pub use crd::{GeneratedFile, generated_files, proof_job_crd, prover_cluster_crd};
pub use manifest::*;
pub use proof_job::*;
pub use prover_cluster::*;
pub use quantity::Quantity;
pub use source::*;
pub use validation::{Destination, Position, Violation, Violations};

#[cfg(test)]
mod crd_tests;
#[cfg(test)]
mod manifest_tests;
