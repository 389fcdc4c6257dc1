//! `prover-supervisor`: the first process of a backend's container.

fn main() {}
