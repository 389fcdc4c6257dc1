//! The custom resource types `ProverCluster` and `ProofJob`, group `proving.rs`, version `v1alpha1`.
