//! Compares what Criterion measured last with `operator/bench/expected.toml`.
//!
//! Exit code 0: all inside; 1: at least one outside; 2: a measurement or the file with the ranges is missing.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Deserialize;

const EXPECTED: &str = include_str!("../../expected.toml");

#[derive(Deserialize)]
struct Expected {
    range: Vec<Range>,
    growth: Vec<Growth>,
}

#[derive(Deserialize)]
struct Range {
    benchmark: String,
    least: f64,
    most: f64,
}

#[derive(Deserialize)]
struct Growth {
    from: String,
    to: String,
    most: f64,
}

/// Where Criterion leaves its estimates: below the target directory.
fn criterion_directory() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    target.join("criterion")
}

fn mean(directory: &Path, benchmark: &str) -> Result<f64, String> {
    let path = directory.join(benchmark).join("new/estimates.json");
    let hint = "run `cargo bench -p prover-bench` first";
    let text =
        std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}; {hint}", path.display()))?;
    let estimates: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let mean = estimates["mean"]["point_estimate"].as_f64();
    mean.ok_or_else(|| format!("{}: no mean", path.display()))
}

fn check(directory: &Path) -> Result<bool, String> {
    let expected: Expected = toml::from_str(EXPECTED).map_err(|error| format!("expected.toml: {error}"))?;
    let mut inside = true;
    for Range {
        benchmark,
        least,
        most,
    } in &expected.range
    {
        let found = mean(directory, benchmark)?;
        let good = (*least..=*most).contains(&found);
        inside &= good;
        println!(
            "{} {benchmark}: {found:.0} ns, expected {least} to {most}",
            if good { "ok  " } else { "FAIL" }
        );
    }
    for Growth { from, to, most } in &expected.growth {
        let found = mean(directory, to)? / mean(directory, from)?;
        let good = found <= *most;
        inside &= good;
        println!(
            "{} {to} / {from}: {found:.2}, expected at most {most}",
            if good { "ok  " } else { "FAIL" }
        );
    }
    Ok(inside)
}

fn main() -> ExitCode {
    match check(&criterion_directory()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}
