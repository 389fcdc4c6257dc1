//! `prover-backend-command`: any prover that is a program.

fn main() {}
